"""One optimizer, probed: on the real tensors where its step can be made and undone, else on its twin."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightdecay.auditing.forms import FormFinding, form_of
from weightdecay.auditing.measuring import local
from weightdecay.auditing.probed import ProbedGroup, ProbedOptimizer, ProbedTensor, SeenOn
from weightdecay.auditing.python_state import PythonState
from weightdecay.auditing.reading import unread_keys
from weightdecay.auditing.separating import Ways, units, ways_of
from weightdecay.auditing.sharding import added_over_shards, agreed, agreed_each
from weightdecay.auditing.sighting import Known, Sight, Sighting, decaying
from weightdecay.auditing.stepping import Bench, Gradients, Place, Settings, others_hooks, places_of, roots_of, surely
from weightdecay.auditing.telling import blank, group_seen, keeps_norm, seen_on_step, seen_on_twin, steps_wanted
from weightdecay.errors import OptimizerError, group_title
from weightdecay.probing.probe import probe_step

_NEEDS_CLOSURE = (
    "its step needs a closure, which would train the model in the midst of the probe; probe it with an optimizer whose "
    "step() takes none, or compare weights before and after a step with weight_decay 0 by hand"
)


_STILL = (
    "its step changes no tensor, though they have gradients: it begins later, or accumulates; probe it before a step "
    "that moves weights, or the optimizer that it wraps"
)


class OptimizerProbe:
    """One optimizer of a probe.

    Args:
        optimizer: with `param_groups` and `step()`.
        place: among the optimizers of the probe.
        names: of the model's tensors.
        steps: how many steps are compared.
    """

    def __init__(self, optimizer: Any, place: int, names: Mapping[Tensor, str], steps: int) -> None:
        self.optimizer, self.place, self.names, self.steps = optimizer, place, names, steps
        self.places = places_of(optimizer)
        self.forms = [form_of(group) for group in optimizer.param_groups]
        self.known = Known()
        self.unread: dict[int, tuple[str, ...]] = {}
        self.seen_on: SeenOn = "step"
        self.why = ""
        self.copied = 0
        self.normalises = False

    def probed(self) -> tuple[list[ProbedTensor], list[ProbedGroup], ProbedOptimizer]:
        started = time.perf_counter()
        found = {self._key(place): blank(place, self.place, self.names.get(place.tensor, "")) for place in self.places}
        if reason := self._cannot_step():
            self._see_on_twin(found, self.places, reason)
        else:
            self._see_on_steps(found)
        opaque = {tensor.opaque for tensor in found.values()}
        groups = [
            group_seen(form, group_title(group, index), self.place, index, self.unread.get(index, ()))
            for index, (form, group) in enumerate(zip(self.forms, self.optimizer.param_groups, strict=True))
        ]
        kind = type(self.optimizer)
        one = ProbedOptimizer(
            kind=f"{kind.__module__}.{kind.__qualname__}",
            bases=tuple(base.__name__ for base in kind.__mro__),
            seen_on=self.seen_on,
            why=self.why,
            steps=self.steps,
            copied_bytes=self.copied,
            elapsed_s=time.perf_counter() - started,
            hooks=hooks_of(self.optimizer),
            normalises=self.normalises,
            opaque=next(iter(opaque)) if len(opaque) == 1 else "",
        )
        return list(found.values()), groups, one

    def _key(self, place: Place) -> tuple[int, int]:
        return place.group, place.index

    # --- real steps

    def _cannot_step(self) -> str:
        if needs_closure(self.optimizer):
            return _NEEDS_CLOSURE
        if any(place.tensor.device.type == "meta" for place in self.places):
            return "its tensors are on the meta device and have no values"
        if any(_is_freed(place.tensor) for place in self.places):
            return "its tensors have no memory at this point: call it outside of forward and backward"
        return "" if self.places else "its groups hold no tensors"

    def _see_on_steps(self, found: dict[tuple[int, int], ProbedTensor]) -> None:
        everything = PythonState(roots_of(self.optimizer))
        try:
            leave_out_watches(self.optimizer)
            ways = ways_of(self.optimizer, self.places)
            self.seen_on, self.why = "step" if ways.apart else "whole step", ways.why
            self._find_forms(ways)
            if ways.is_still and not self._is_read(ways):
                raise OptimizerError(_STILL)
            self.known.is_complete = True
            sights = self._sights(ways, found)
            self._see_idle(sights, ways)
        except Exception as error:  # others' code runs here
            surely(everything.put_back)
            self._see_on_twin(found, self.places, _reason(error), raised=True)
            return
        finally:
            surely(everything.put_back)

        for sight in sights:
            for moments in (sight.own, sight.large, sight.mirrored):
                moments.copy_(added_over_shards(moments, sight.place.tensor))
            key, form = self._key(sight.place), self.forms[sight.place.group]
            found[key] = replace(found[key], **seen_on_step(sight, form, self.steps, self.seen_on))
        keeping = sum(sight.place.tensor.numel() for sight in sights if keeps_norm(sight))
        self.normalises = 2 * keeping > sum(sight.place.tensor.numel() for sight in sights)
        self.copied = max((sight.copied for sight in sights), default=0)

    def _find_forms(self, ways: Ways) -> None:
        for unit in units(ways.sample if ways.apart else self.places, apart=ways.apart):
            looked_at = [place for place in ways.sample if place in unit]
            with Bench(self.optimizer, unit, saves=ways.saves, gradients="drawn") as bench:
                FormFinding(bench, self.forms, looked_at, self.known).find()
                self.unread |= unread_keys(bench, looked_at)

    def _is_read(self, ways: Ways) -> bool:
        """Whether any λ is, or there is none that could be."""
        forms = [self.forms[place.group] for place in ways.sample]
        asking = [form for form in forms if form.weight_decay is not None]
        return not asking or any(form.reads_weight_decay for form in asking)

    def _sights(self, ways: Ways, found: dict[tuple[int, int], ProbedTensor]) -> list[Sight]:
        seen: list[Sight] = []
        waiting = units(self.places, apart=ways.apart)
        while waiting:
            unit = waiting.pop(0)
            try:
                seen += self._sights_of(unit, ways)
            except Exception as error:  # others' code, of a tensor that it does not take
                if len(unit) == 1 or not ways.apart:
                    self._see_on_twin(found, unit, _reason(error), raised=True)
                else:
                    waiting = [[place] for place in unit] + waiting
        return seen

    def _sights_of(self, unit: Sequence[Place], ways: Ways) -> list[Sight]:
        large = {index: form.large for index, form in enumerate(self.forms) if form.large}
        for gradients in _GRADIENTS:
            with Bench(self.optimizer, unit, saves=ways.saves, gradients=gradients) as bench:
                seen = Sighting(bench, large, steps=self.steps, known=self.known).seen()
                self._look_longer(bench, large, seen)
            # Some steps divide by the gradient's norm.
            infinite = any(not sight.mirrored.isfinite().all() or not sight.own.isfinite().all() for sight in seen)
            if not agreed(infinite, (place.tensor for place in unit)):
                return seen
        raise OptimizerError("its step leaves weights that are not finite")

    def _look_longer(self, bench: Bench, large: Settings, sights: Sequence[Sight]) -> None:
        """Where too few numbers of low precision would move in a step to tell, make some more."""
        steps = [steps_wanted(sight, self.forms[sight.place.group]) for sight in sights]
        for wanted in sorted(set(steps) - {1}):
            unsure = [sight for sight, own in zip(sights, steps, strict=True) if own == wanted]
            if wanted > self.steps:
                places = [sight.place for sight in unsure]
                Sighting(bench, large, steps=wanted, places=places, known=self.known).seen_again(unsure)

    def _see_idle(self, sights: Sequence[Sight], ways: Ways) -> None:
        """Tensors without a gradient, beside others that have one, which a step takes for 0 and decays."""
        tensors = [sight.place.tensor for sight in sights]
        missing = agreed_each([p.grad is None for p in tensors], tensors)
        without = [sight for sight, is_missing in zip(sights, missing, strict=True) if is_missing]
        if len(without) == len(sights) or not without:
            return
        by_place = {id(sight.place): sight for sight in without}
        looked_at = [sight.place for sight in without]
        for unit in units(looked_at if ways.apart else self.places, apart=ways.apart):
            with Bench(self.optimizer, unit, saves=ways.saves, gradients="as they are") as bench:
                idle = [place for place in unit if id(place) in by_place]
                for place in decaying(bench, idle):
                    by_place[id(place)].idle = place.tensor.shape[0] if place.tensor.ndim else 1

    # --- the twin

    def _see_on_twin(
        self, found: dict[tuple[int, int], ProbedTensor], places: Sequence[Place], reason: str, *, raised: bool = False
    ) -> None:
        """Look at a copy instead; where the real step cannot be made, that a copy does not decay proves nothing."""
        self.why = reason
        is_unsure = raised or reason is _NEEDS_CLOSURE
        reports = probe_step(self.optimizer, hooks=bool(hooks_of(self.optimizer))).groups
        for place in places:
            report, form, key = reports[place.group], self.forms[place.group], self._key(place)
            values = seen_on_twin(report, form)
            if "opaque" in values or (is_unsure and not report.reads_weight_decay):
                values = {"opaque": reason}
            else:
                form.reads_weight_decay, form.reads_lr = report.reads_weight_decay, report.reads_lr
                form.coupled = report.form == "coupled"
                if report.own_decay_is_lr_times_lambda:
                    form.factor, form.lr_power = 1.0, 1.0
            found[key] = replace(found[key], **values, weight_norm=_norm(place.tensor))
        if len(places) == len(self.places):
            self.seen_on = "twin"


_GRADIENTS: tuple[Gradients, ...] = ("own", "drawn")


def needs_closure(optimizer: Any) -> bool:
    try:
        parameters = inspect.signature(optimizer.step).parameters
    except (TypeError, ValueError):
        return False
    closure = parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def hooks_of(optimizer: Any) -> tuple[str, ...]:
    """What runs beside an optimizer's step, by name."""
    found = [
        f"{kind} hook {_name(hook)}"
        for kind in ("pre", "post")
        for hook in getattr(optimizer, f"_optimizer_step_{kind}_hooks", {}).values()
    ]
    found += [f"{kind} hook of all optimizers {_name(hook)}" for kind in ("pre", "post") for hook in others_hooks(kind)]
    step = getattr(optimizer, "__dict__", {}).get("step")
    # Schedulers count steps in this way, and do nothing else.
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        found.append(f"step replaced by {_name(step)}")
    return tuple(found)


def leave_out_watches(optimizer: Any) -> None:
    """Take off what looks on at real steps and changes none; it is put back with everything else."""
    for kind in ("pre", "post"):
        for hook in getattr(optimizer, f"_optimizer_step_{kind}_hooks", {}).values():
            owner = getattr(hook, "__self__", None)
            for name in getattr(type(owner), "left_out_of_twins", ()):
                setattr(owner, name, None)


def _name(value: Callable[..., Any]) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _reason(error: Exception) -> str:
    return "; ".join(error.faults) if isinstance(error, OptimizerError) else f"{type(error).__name__}: {error}"


def _is_freed(p: Tensor) -> bool:
    here = local(p)
    return bool(here.numel()) and here.layout == torch.strided and here.untyped_storage().size() == 0


def _norm(p: Tensor) -> float:
    if p.device.type == "meta" or _is_freed(p):
        return 0.0
    return math.sqrt(float(added_over_shards(local(p).double().square().sum(), p)))
