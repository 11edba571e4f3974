"""Audits at some steps of a training, told to a log and to trackers: what the integrations of all frameworks share.

At a due step the model and its optimizers are audited; what is found goes to the log, to trackers, and, where that is
wanted, ends the training.

A finding goes to trackers as a row of kind "alarm", as the monitor's do; what an audit comes to as one of kind "audit".
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from weightdecay.auditing.audit import audit
from weightdecay.auditing.result import Audit
from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.integrations.trackers import trackers_of
from weightdecay.runs import Row, Run, Tracker

logger = logging.getLogger("weightdecay")

FailOn = Literal["error", "warning"]


class StepAudits:
    """Audits a training at some of its steps.

    Nothing of the training is changed. Where there are several processes all of them audit, since sharded tensors are
    measured together, and the first tells.

    Args:
        at_steps: which of the optimizer's steps, counted from 1.
        every: besides, each step that this divides.
        fail_on: raise where there is such a finding, or a graver one; all processes do.
        trackers: where numbers and alarms go, by name (`"tensorboard"`, `"wandb"`, `"trackio"`) or as objects.
        asked: what was asked for, as `weightdecay.audit` takes it: `weight_decay`, `plan`, `policy`, `rule`, `ignore` …

    Attributes:
        audits: what was found, by step.

    Raises:
        ConfigError: an argument is of no use; all faults at once.
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
        if faults := [*_step_faults(at_steps, every), *_faults(fail_on, asked)]:
            raise ConfigError(faults)
        self.at_steps = frozenset(at_steps)
        self.every = every
        self.fail_on = fail_on
        self.trackers = trackers_of(trackers) if _tells() else []
        self.asked = asked
        self.audits: dict[int, Audit] = {}

    def is_due(self, step: int) -> bool:
        """Whether this step of the optimizer is to be audited, and has not been."""
        due = step in self.at_steps or (self.every is not None and step % self.every == 0)
        return due and step not in self.audits

    def start(self, folder: str | Path, step: int = 0) -> None:
        """A training begins, or goes on after `step`; trackers that keep files put them into the folder."""
        if self.trackers:
            Path(folder).mkdir(parents=True, exist_ok=True)
        for tracker in self.trackers:
            tracker.start(Run(Path(folder)), step)

    def look(self, model: nn.Module | None, optimizers: Iterable[Any], step: int, **asked: Any) -> Audit:
        """Audit now, and tell what is found.

        Args:
            asked: what the framework's own settings ask for; what the user has said comes before it.

        Raises:
            CheckFailedError: there is a finding that is to end the training.
        """
        stepped = list(optimizers)
        # Code that mends speaks of what was given: of one optimizer, or of several.
        found = audit(model, stepped[0] if len(stepped) == 1 else stepped, **{**asked, **self.asked})
        before = next(reversed(self.audits.items()), None)
        self.audits[step] = found
        if _tells():
            self._tell(found, step, before)
        if self.fail_on is not None:
            found.raise_if_wrong(warnings=self.fail_on == "warning")
        return found

    def _tell(self, found: Audit, step: int, before: tuple[int, Audit] | None) -> None:
        if found.ok:
            logger.info("step %d: %s", step, found.summary())
        elif before is not None and _said(found) == _said(before[1]):  # which is in the log already, page by page
            logger.warning("step %d: as at step %d: %s", step, before[0], found.summary())
        else:
            logger.warning("step %d\n%s", step, found)
        for row in rows_of(found, step):
            for tracker in self.trackers:
                tracker.row(row)

    def close(self) -> None:
        """No more steps come."""
        for tracker in self.trackers:
            tracker.close()


def _said(found: Audit) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(finding.code, finding.severity, finding.tensors) for finding in found]


def rows_of(found: Audit, step: int) -> Iterator[Row]:
    """An audit as rows: what it comes to, and each finding."""
    counts = {f"{severity}s": 0 for severity in ("error", "warning", "note")}
    for finding in found:
        counts[f"{finding.severity}s"] += 1
    yield {"kind": "audit", "step": step, **counts, **_decay(found), "elapsed_s": found.elapsed_s}
    for finding in found:
        yield {"kind": "alarm", "step": step, **finding.document()}


def _decay(found: Audit) -> dict[str, float]:
    """What of the weights that λ decays a step removes, asked and done: means over their numbers.

    Tensors of zeros are left out: nothing of them can be removed.
    """
    seen = [one for one in found.probe or () if one.requested and one.weight_norm and one.realised is not None]
    elements = sum(one.elements for one in seen)
    if not elements:
        return {}
    return {
        "decay_requested": sum(one.elements * (one.requested or 0.0) for one in seen) / elements,
        "decay_realised": sum(one.elements * (one.realised or 0.0) for one in seen) / elements,
    }


def _tells() -> bool:
    """Whether this process is the one that speaks."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def _step_faults(at_steps: Any, every: Any) -> Iterator[str]:
    if isinstance(at_steps, str) or not isinstance(at_steps, Collection):
        yield f"at_steps is {at_steps!r}: give the steps in a list, as (1, 1000)"
    elif odd := [step for step in at_steps if not _is_count(step)]:
        yield f"at_steps holds {odd[0]!r}: steps of the optimizer are counted from 1"
    if every is not None and not _is_count(every):
        yield f"every is {every!r}: give a number of steps, at least 1"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _faults(fail_on: Any, asked: Mapping[str, Any]) -> Iterator[str]:
    if fail_on not in (None, "error", "warning"):
        yield f"fail_on is {fail_on!r}: give 'error' or 'warning', or leave it out"
    known = set(inspect.signature(audit).parameters) - {"model", "optimizer", "optimizers"}
    for name in asked.keys() - known:
        yield f"there is no argument '{name}': {did_you_mean(name, known)}"
