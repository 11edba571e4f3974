"""A run's numbers and alarms in Weights & Biases.

weightdecay train … --track wandb
WANDB_MODE=offline keeps everything on this machine.
"""

from __future__ import annotations

from typing import Any

from weightdecay.errors import MissingExtraError
from weightdecay.integrations.tracker_rows import alarm_text, alarm_title, is_alarm, scalars
from weightdecay.runs import Row, Run

_LEVELS = {"error": "ERROR", "warning": "WARN", "note": "INFO"}


class WandB:
    """A `Tracker` that writes into the wandb run that is open, or opens one in the run directory.

    Alarms are `wandb.alert`s. A run that goes on is the same wandb run as before.

    Args:
        options: of `wandb.init`, where a run is opened here: `project`, `entity`, `mode` …

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtraError("tracking by wandb", "wandb") from None
        self._wandb: Any = wandb
        self._options = options
        self._run: Any = None
        self._is_ours = False
        self._kinds: set[str] = set()

    def start(self, run: Run, step: int) -> None:
        self._run = self._wandb.run
        if self._run is not None:
            return
        self._is_ours = True
        options: dict[str, Any] = {
            "project": "weightdecay", "name": run.path.resolve().name, "dir": str(run.path)
        }  # fmt: skip
        if (run.path / "run.toml").is_file():
            options["config"] = run.config().values()
        if step and (known := _known_id(run)):
            options |= {"id": known, "resume": "allow"}
        self._run = self._wandb.init(**(options | self._options))

    def row(self, row: Row) -> None:
        if is_alarm(row):
            level = getattr(self._wandb.AlertLevel, _LEVELS[row["severity"]])
            self._run.alert(title=alarm_title(row), text=f"step {row['step']}: {alarm_text(row)}", level=level)
            return
        values = scalars(row)
        if not values:
            return
        kind = next(iter(values)).partition("/")[0]
        if kind not in self._kinds:
            # Whoever else writes into this run counts its own steps: ours are an axis of their own.
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
            self._kinds.add(kind)
        self._run.log({f"{kind}/step": row["step"], **values})

    def close(self) -> None:
        if self._is_ours and self._run is not None:
            self._run.finish()


def _known_id(run: Run) -> str | None:
    """The id under which an earlier process of this run wrote: wandb's folders end in it."""
    folders = [path for path in (run.path / "wandb").glob("*run-*-*") if path.is_dir()]
    newest = max(folders, key=lambda path: path.name.split("-", 2)[-1], default=None)
    return newest.name.rpartition("-")[2] if newest else None
