"""The monitor of a training run: its rows go where the run's go, and its alarms are told."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from weightdecay.errors import printable
from weightdecay.monitoring.alarms import Alarm
from weightdecay.monitoring.monitor import Monitor
from weightdecay.runs import MetricsWriter, Row
from weightdecay.training.building import Built
from weightdecay.training.checkpointing import Position
from weightdecay.training.setup import Setup

_KEPT_ROWS = 1_000  # in memory; all of them are in metrics.jsonl


class Watched:
    """A monitor that is told where the run is, and goes on where a checkpoint left it.

    Args:
        note: told each alarm as it comes, and at the end what all of it took.
    """

    def __init__(
        self, setup: Setup, built: Built, position: Position, metrics: MetricsWriter, note: Callable[[str], None]
    ) -> None:
        run = setup.config.run
        self._setup, self._metrics, self._note = setup, metrics, note
        self.monitor = Monitor(
            built.model,
            built.optimizer,
            interval=run.monitor_every,
            budget_bytes=run.monitor_bytes or None,
            plan=setup.plan,
            steps=run.steps,
            done=position.done,
            tracker=self,
            keep=_KEPT_ROWS,
        )
        if position.monitor is not None:
            self.monitor.load_state_dict(position.monitor)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self.monitor.close()
        if kind is None and self.monitor.cost is not None:
            self._note(f"the monitor took {100 * self.monitor.cost:.2g} % of the time")

    def expect(self, step: int) -> None:
        """The step that comes, counted from 0."""
        sizes = self._setup.sizes
        self.monitor.follow(step, tokens=sizes.tokens_before(step + 1), batch_tokens=sizes.tokens_at(step))

    def row(self, row: Row) -> None:
        """A row of the monitor."""
        self._metrics.write(row)
        if row["kind"] == "alarm":
            self._note(printable(f"step {row['step']}: {Alarm.of_row(row)}"))
