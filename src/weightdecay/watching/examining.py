"""The audit of a model in the midst of a program: by the first rank alone, without a word to the others."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from weightdecay.amounts import number
from weightdecay.auditing.arguments import UNSAID, told
from weightdecay.auditing.audit import audited
from weightdecay.auditing.rendering import show
from weightdecay.auditing.result import Audit
from weightdecay.auditing.sharding import alone, is_distributed
from weightdecay.errors import ConfigError, WeightDecayError
from weightdecay.naming import bare_class, unwrapped
from weightdecay.watching import telling
from weightdecay.watching.groupless import grouped, without_fixes
from weightdecay.watching.muted import muted
from weightdecay.watching.owners import Owners, held_by, tensors_of
from weightdecay.watching.records import Examined, Records, where
from weightdecay.watching.settings import Settings
from weightdecay.watching.steps import Steps, Watched

_MOST = 8  # audits in one process: a search over settings makes a model for each
_WEIGHT_DECAY = 0.1  # of a plan, where neither groups nor anybody says


class Examination:
    """Audits models as their optimizers come to the step that was asked for."""

    def __init__(self, settings: Settings, records: Records) -> None:
        self.settings, self.records = settings, records
        self._made = 0

    def examine(self, steps: Steps, due: Watched, owners: Owners) -> None:
        """Audit the model of an optimizer with all that step it."""
        optimizer = due.reference()
        tensors = tensors_of(optimizer)
        model = owners.model_of(tensors)
        optimizers = _in_use(steps, due, owners.optimizers_of(model, tensors))
        for one in optimizers:
            steps.of(one).is_done = True
        due.is_done = True
        if rank() != 0 or self._made >= _MOST or not tensors:
            return
        self._made += 1
        at_end = due.steps + 1 < steps.at_step
        examined = self._examined(steps, due.steps + 1, model, optimizers, at_end=at_end)
        self.records.add(examined)
        self._show(examined)

    def _examined(
        self, steps: Steps, step: int, model: nn.Module | None, optimizers: Sequence[Any], *, at_end: bool
    ) -> Examined:
        started = time.perf_counter()
        title = "" if model is None else bare_class(unwrapped(model)).__name__
        audit, failed, plan = {}, "", ""
        try:
            with warnings.catch_warnings(), alone(), muted():
                warnings.simplefilter("ignore")
                found = self._audit(steps, model, optimizers)
                inside = _inside(found, optimizers)
                if inside != list(optimizers):
                    said = (
                        f"{_kinds(inside)} was audited, and not {_kinds(optimizers)}, which cannot be stepped by itself"
                    )
                    found, optimizers = self._audit(steps, model, inside), inside
                    found = replace(found, remarks=(*found.remarks, said))
                audit = found.document()
                plan = "" if model is None else self._plan(model, optimizers)
        except Exception as error:  # the program must go on, whatever is wrong with its audit
            failed = (
                "; ".join(error.faults) if isinstance(error, WeightDecayError) else f"{type(error).__name__}: {error}"
            )
        notes = []
        if self._made == _MOST:
            notes.append(f"{_MOST} models were audited; those that came later were not")
        if any(is_distributed(tensor) for one in optimizers for tensor in tensors_of(one)):
            notes.append("of tensors that lie on several ranks the part of rank 0 was looked at")
        return Examined(
            step=step,
            model=title,
            optimizers=[type(one).__qualname__ for one in optimizers],
            elapsed_s=time.perf_counter() - started,
            at_end=at_end,
            audit=audit,
            failed=failed,
            plan=plan,
            notes=notes,
        )

    def _audit(self, steps: Steps, model: nn.Module | None, optimizers: Sequence[Any]) -> Audit:
        settings = self.settings
        policy: Any = settings.policy or UNSAID
        if settings.policy.endswith(".toml"):
            policy = Path(settings.policy)
        loaded_over = {
            (place, group): weight_decay
            for place, one in enumerate(optimizers)
            for group, weight_decay in steps.loads.changed(one).items()
        }

        stepped = [grouped(one) for one in optimizers]

        def made(ignore: Any) -> Audit:
            given = told(
                model,
                stepped[0] if len(stepped) == 1 else None,  # as code that mends calls it
                optimizers=None if len(stepped) == 1 else stepped,
                plan=None,
                policy=policy,
                weight_decay=settings.weight_decay,
                lr=None,
                rule=None,
                steps=None,
                ignore=ignore,
            )
            return without_fixes(audited(replace(given, loaded_over=loaded_over)), stepped)

        ignore: Any = settings.ignore
        if ignore is not None and not isinstance(ignore, str):
            ignore = {code: list(found) for code, found in ignore.items()}
        try:
            return made(ignore)
        except ConfigError as error:
            if ignore is None:
                raise
            # Patterns that this model has no tensor for: one of several models, or it has changed.
            audit = made(None)
            return replace(audit, remarks=(*audit.remarks, *error.faults))

    def _plan(self, model: nn.Module, optimizers: Sequence[Any]) -> str:
        """Write the model's plan, or compare it with one; what is wrong."""
        if not (self.settings.lock or self.settings.check):
            return ""
        from weightdecay.planning.lockfile import check_lock, write_lock
        from weightdecay.planning.plan import plan

        asked = [number(group.get("weight_decay")) or 0.0 for one in optimizers for group in grouped(one).param_groups]
        weight_decay = self.settings.weight_decay
        if weight_decay is None:
            weight_decay = max(asked, default=0.0) or _WEIGHT_DECAY
        policy: Any = Path(self.settings.policy) if self.settings.policy.endswith(".toml") else self.settings.policy
        try:
            decided = plan(model, weight_decay, policy or "default", trace="optional")
            if self.settings.check:
                check_lock(decided, Path(self.settings.check))
            if self.settings.lock:
                write_lock(decided, Path(self.settings.lock))
        except (WeightDecayError, OSError) as error:
            flag = "--check" if self.settings.check else "--lock"
            return f"{flag}: {'; '.join(error.faults) if isinstance(error, WeightDecayError) else error}"
        return ""

    def _show(self, examined: Examined) -> None:
        """The table, where people see it: the program may run on for days."""
        if not examined.audit:
            telling.tell(f"the audit of {where(examined)}, could not be made: {examined.failed}")
            return
        import io

        from rich.console import Console

        from weightdecay.watching.records import combined

        out = io.StringIO()
        colours: Any = "standard" if telling.is_terminal() and not os.environ.get("NO_COLOR") else None
        console = Console(file=out, width=telling.width(), color_system=colours, force_terminal=colours is not None)
        show(combined([examined]), console)
        telling.tell(where(examined))
        telling.say("\n".join(line.rstrip() for line in out.getvalue().splitlines()))


def rank() -> int:
    """The rank of this process among those that train together."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    said = os.environ.get("RANK", "0")
    return int(said) if said.isdecimal() else 0


def _in_use(steps: Steps, due: Watched, optimizers: Sequence[Any]) -> list[Any]:
    """The optimizers that step a model, the one that is due first.

    One that another's step steps is a part of that one; one that never came to a step and shares tensors with those
    that did was made and not used.
    """
    optimizer = due.reference()
    others = [one for one in optimizers if one is not optimizer]
    kept = [optimizer]
    stepped = {
        id(tensor) for one in (optimizer, *(o for o in others if steps.of(o).steps)) for tensor in tensors_of(one)
    }
    for one in others:
        watched = steps.of(one)
        is_left_over = not watched.steps and bool(stepped & _ids(tensors_of(one)))
        is_wrapped = any(inner is one for inner in held_by(optimizer))
        if not watched.is_within and not is_left_over and not is_wrapped:
            kept.append(one)
    return kept


def _inside(audit: Audit, optimizers: Sequence[Any]) -> list[Any]:
    """The optimizers, and in the place of those that cannot be stepped what they wrap: SAM's step needs a closure, and
    that of its base none."""
    if audit.probe is None:
        return list(optimizers)
    found = []
    for one, seen in zip(optimizers, audit.probe.optimizers, strict=True):
        own = _ids(tensors_of(one))
        inner = [held for held in held_by(one) if _ids(tensors_of(held)) == own] if seen.opaque else []
        found.append(inner[0] if len(inner) == 1 else one)
    return found


def _kinds(optimizers: Sequence[Any]) -> str:
    return ", ".join(type(one).__qualname__ for one in optimizers)


def _ids(tensors: Sequence[Tensor]) -> set[int]:
    return {id(tensor) for tensor in tensors}
