"""Lightning: a callback that audits.

    from lightning import Trainer
    from weightdecay.integrations.lightning import AuditCallback

    trainer = Trainer(max_steps=1000, callbacks=[AuditCallback(at_steps=(1, 1000), weight_decay=0.1)])

A plan needs no callback: `torch.optim.AdamW(weightdecay.plan(self).param_groups(lr=1e-3))` in `configure_optimizers`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from weightdecay.errors import MissingExtraError
from weightdecay.integrations.step_audits import FailOn, StepAudits
from weightdecay.integrations.tracker_rows import scalars
from weightdecay.runs import Row, Run, Tracker

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    raise MissingExtraError("weightdecay.integrations.lightning", "lightning") from None


class AuditCallback(Callback):  # type: ignore[misc]  # lightning is not read for types
    """Audits a Lightning module just after some of its optimizers' steps, with the gradients of these.

    Lightning runs forward and backward inside of the optimizer's step, so that between two steps is after a batch. What
    an audit comes to goes to the Trainer's loggers, too. With several optimizers a step is a batch in which one of them
    stepped.

    Args:
        at_steps, every, fail_on, trackers, asked: as `weightdecay.integrations.step_audits.StepAudits` has them.
    """

    def __init__(
        self,
        at_steps: Collection[int] = (1,),
        *,
        every: int | None = None,
        fail_on: FailOn | None = None,
        trackers: str | Tracker | Iterable[str | Tracker] = (),
        **asked: Any,
    ) -> None:
        self.steps = StepAudits(at_steps, every=every, fail_on=fail_on, trackers=trackers, **asked)
        self._step = 0
        self._global_step = 0

    @property
    def audits(self) -> Any:
        """What was found, by step."""
        return self.steps.audits

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._global_step = trainer.global_step  # of all optimizers together
        self._step = trainer.global_step // max(len(trainer.optimizers), 1)
        if trainer.is_global_zero and trainer.loggers:
            self.steps.trackers.append(Loggers(trainer))
        self.steps.start(trainer.log_dir or trainer.default_root_dir, self._step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._global_step:
            return  # gradients are still being accumulated
        self._global_step = trainer.global_step
        self._step += 1
        if self.steps.is_due(self._step):
            planned = trainer.max_steps if trainer.max_steps > 0 else None
            self.steps.look(pl_module, trainer.optimizers, self._step, steps=planned)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.steps.close()


class Loggers:
    """A `Tracker` that hands numbers to the loggers of a Lightning Trainer."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def start(self, run: Run, step: int) -> None:
        """They were opened by the Trainer."""

    def row(self, row: Row) -> None:
        if values := scalars(row):
            for logger in self._trainer.loggers:
                logger.log_metrics(values, step=row["step"])

    def close(self) -> None:
        """The Trainer closes them."""
