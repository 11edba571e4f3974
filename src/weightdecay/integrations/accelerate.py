"""Accelerate: audits in a loop that it prepared.

    from accelerate import Accelerator
    from weightdecay.integrations.accelerate import audited

    accelerator = Accelerator()
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    with audited(accelerator, model, optimizer, at_steps=(1, 1000), weight_decay=0.1):
        for batch in batches:
            accelerator.backward(model(batch).mean())
            optimizer.step()
            optimizer.zero_grad()

Inside of it nothing else changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from weightdecay.errors import MissingExtraError
from weightdecay.integrations.step_audits import FailOn, StepAudits
from weightdecay.integrations.step_hooks import audited_steps
from weightdecay.integrations.tracker_rows import scalars
from weightdecay.runs import Row, Run, Tracker


@contextmanager
def audited(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    at_steps: Collection[int] = (1,),
    *,
    every: int | None = None,
    steps_done: int = 0,
    fail_on: FailOn | None = None,
    trackers: str | Tracker | Iterable[str | Tracker] = (),
    **asked: Any,
) -> Iterator[StepAudits]:
    """In here some of the optimizer's steps are audited just before they are made, with their gradients.

    What an audit comes to goes to Accelerate's own trackers, too (`log_with`). Steps that accumulate gradients, and
    those that a scaler skips, are none.

    Args:
        optimizer: one, or several in a list, prepared or not.
        steps_done: of a training that goes on.
        at_steps, every, fail_on, trackers, asked: as `weightdecay.integrations.step_audits.StepAudits` has them.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    try:
        from accelerate.optimizer import AcceleratedOptimizer
    except ImportError:
        raise MissingExtraError("weightdecay.integrations.accelerate", "accelerate") from None

    given = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    optimizers = [one.optimizer if isinstance(one, AcceleratedOptimizer) else one for one in given]
    audits = StepAudits(at_steps, every=every, fail_on=fail_on, trackers=trackers, **asked)
    if accelerator.is_main_process and accelerator.trackers:
        audits.trackers.append(AcceleratorTrackers(accelerator))
    folder = accelerator.logging_dir or accelerator.project_dir or "."
    with audited_steps(audits, model, optimizers, folder=folder, steps_done=lambda: steps_done):
        yield audits


class AcceleratorTrackers:
    """A `Tracker` that hands numbers to those of an Accelerator."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def start(self, run: Run, step: int) -> None:
        """`init_trackers` has opened them."""

    def row(self, row: Row) -> None:
        if values := scalars(row):
            self._accelerator.log(values, step=row["step"])

    def close(self) -> None:
        """`end_training` closes them."""
