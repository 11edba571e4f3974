"""What one step of an optimizer does to weights, group by group, seen on twins of it.

Twins that get the same gradients at another λ, with weights that shrink beside the step, or with λ·w in the gradient,
either walk the same way or not. With S(λ, g, w) for a step:

    none            S(λ, g, w) = S(0, g, w)
    coupled         S(λ, g, w) = S(0, g + λ·w, w)
    decoupled       S(λ, g, w) = S(0, g, (1 − c)·w)   before, or   (1 − c)·S(0, g, w)   after the update
    reads weights   S(0, g, (1 − a)·w) ≠ S(0, g, w) − a·w

over several steps and at more than one λ and lr. c is what a step without gradient removes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.probing.isolation import untouched
from weightdecay.probing.twin import Twin, Twins

Form: TypeAlias = Literal["none", "decoupled", "coupled", "other"]
Order: TypeAlias = Literal["before", "after"]

STEPS = 16
# A twin that cannot stand where its optimizer stands must go far enough to see what comes in every k-th step.
STEPS_WITHOUT_PHASE = 300
SHRINK = 0.1
"""What the twins' weights lose beside each step: as much as an update at lr 0.1 moves them."""
_LR, _OTHER_LR, _WEIGHT_DECAY, _OTHER_WEIGHT_DECAY = 0.1, 0.03, 0.5, 0.2


@dataclass(frozen=True)
class GroupReport:
    """What a step does to one group's weights.

    Attributes:
        form: how λ enters; "other" where the direction branches on λ, or neither form fits.
        order: of decay and update, where it is decoupled.
        decay_per_step: the fraction that a step without gradient removes at the group's own lr and λ.
        hidden_decay: the same with `weight_decay` 0 in the group.
        reads_weight_decay, reads_lr: whether another value of the key changes the step.
        own_decay_is_lr_times_lambda: whether the step is `w ← (1 − lr·λ)·w`, then the step of λ = 0.
        through_gradient: whether it is the step of λ = 0 with λ·w added to the gradient. Of plain SGD both are true.
        reads_weights: whether the direction at λ = 0 depends on the weights, or on chance.
        opaque: why nothing can be said; empty where it can.
    """

    index: int
    title: str
    form: Form = "none"
    order: Order | None = None
    decay_per_step: float = 0.0
    hidden_decay: float = 0.0
    reads_weight_decay: bool = False
    reads_lr: bool = False
    own_decay_is_lr_times_lambda: bool = False
    through_gradient: bool = False
    reads_weights: bool = False
    opaque: str = ""


@dataclass(frozen=True)
class StepReport:
    """What a step of an optimizer does.

    Attributes:
        groups: a report for each.
        opaque: why nothing can be said of any; empty where it can.
        steps: how many steps were seen.
        keeps_phase: whether they began where the optimizer stands.
    """

    groups: tuple[GroupReport, ...]
    opaque: str = ""
    steps: int = 0
    keeps_phase: bool = True


def probe_step(optimizer: torch.optim.Optimizer, *, hooks: bool = False) -> StepReport:
    """What a step of this optimizer does to the weights of each group; the optimizer does not change.

    Args:
        hooks: step with the optimizer's own step hooks.
    """
    try:
        with untouched(optimizer):
            twins = Twins(optimizer, hooks=hooks)
            fine = _Bench(twins, torch.float64)
            benches = [bench for bench in (fine, _Bench(twins, None)) if bench.works]
            if len(benches) > 1 and all(p.dtype == torch.float64 for g in optimizer.param_groups for p in g["params"]):
                del benches[1]  # the same twice
            if not benches:
                raise OptimizerError("its steps cannot be repeated on a small tensor with another lr or weight_decay")
            reports = [bench.reports() for bench in benches]
    except Exception as error:  # others' code runs here
        reason = "; ".join(error.faults) if isinstance(error, OptimizerError) else f"{type(error).__name__}: {error}"
        groups = [GroupReport(index, _title(group, index), opaque=reason) for index, group in _numbered(optimizer)]
        return StepReport(tuple(groups), reason)
    merged = [_merged(of_group) for of_group in zip(*reports, strict=True)]
    return StepReport(tuple(merged), "", benches[0].steps, twins.manner.keeps_phase or not _has_begun(optimizer))


def _numbered(optimizer: torch.optim.Optimizer) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(optimizer.param_groups))


def _title(group: dict[str, Any], index: int) -> str:
    return f"group {index}" + (f" ('{group['name']}')" if "name" in group else "")


def _has_begun(optimizer: torch.optim.Optimizer) -> bool:
    return any(bool(state) for state in optimizer.state.values())


def _merged(reports: Sequence[GroupReport]) -> GroupReport:
    """What holds in each precision; numbers are the finest's, which comes first."""
    fine = reports[0]
    if opaque := next((report.opaque for report in reports if report.opaque), ""):
        return GroupReport(fine.index, fine.title, opaque=opaque)
    # In low precision a decay may be rounded away, so that there "none" says nothing.
    forms = {report.form for report in reports if report.form != "none"} or {"none"}
    seen = [report for report in reports if report.form != "none"] or [fine]
    return GroupReport(
        fine.index,
        fine.title,
        form=seen[0].form if len(forms) == 1 else "other",
        order=seen[0].order,
        decay_per_step=fine.decay_per_step,
        hidden_decay=fine.hidden_decay,
        reads_weight_decay=any(report.reads_weight_decay for report in reports),
        reads_lr=any(report.reads_lr for report in reports),
        own_decay_is_lr_times_lambda=all(report.own_decay_is_lr_times_lambda for report in seen),
        through_gradient=all(report.through_gradient for report in seen),
        reads_weights=any(report.reads_weights for report in reports),
    )


# --- walks: the weights after each step, and how they are compared

Weights: TypeAlias = list[list[Tensor]]


@dataclass(frozen=True)
class Walk:
    """The small weights of each group before the first step and after each."""

    places: list[Weights]

    def of_group(self, index: int) -> list[list[Tensor]]:
        return [weights[index] for weights in self.places]


class Walker:
    """A twin that is led: with other settings, and with weights that shrink beside the step.

    Args:
        shrink: for each group a; 0 for none.
        where: `before` the step, `after` it, or `subtracted` after it, as a·w of the weights before.
        into_gradient: for each group λ, where λ·w is added to the gradient.
        gradient: the scale of random gradients; 0 for none.
    """

    def __init__(
        self,
        twin: Twin,
        *,
        shrink: Sequence[float] | None = None,
        where: Literal["before", "after", "subtracted"] = "before",
        into_gradient: Sequence[float] | None = None,
        gradient: float = 1.0,
    ) -> None:
        self.twin = twin
        self.shrink, self.where = shrink or [0.0] * len(twin.params), where
        self.into_gradient, self.gradient = into_gradient, gradient

    def step(self, *, guarded: bool) -> Weights:
        """Make one step; the weights after it."""
        if self.where == "before":
            self._shrink()
        self.twin.set_gradients(self.gradient, self.into_gradient)
        whole = self.twin.weights() if self.where == "subtracted" else []
        self.twin.step(guarded=guarded)
        if self.where == "after":
            self._shrink()
        for params, before, a in zip(self.twin.params, whole, self.shrink, strict=False):
            for p, w in zip(params, before, strict=True):
                p.data.sub_(w, alpha=a) if a else None
        return self.twin.weights()

    def _shrink(self) -> None:
        for params, a in zip(self.twin.params, self.shrink, strict=True):
            for p in params:
                p.data.mul_(1 - a) if a else None

    def walk(self, steps: int) -> Walk:
        return Walk([self.twin.weights(), *(self.step(guarded=True) for _ in range(steps))])


def is_alike(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    """Whether two walks of a group are the same but for rounding.

    The difference is compared with the longest step so far, and with what the dtype rounds off the weights.
    """
    moved = [0.0] * len(one[0]) if one else []
    largest = list(moved)
    for (was, _), (a, b) in itertools.pairwise(zip(one, other, strict=True)):
        for index, (w, x, y) in enumerate(zip(was, a, b, strict=True)):
            if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
                return False
            moved[index] = max(moved[index], _longest(x - w))
            largest[index] = max(largest[index], _longest(x), _longest(w))
            relative, floor = _tolerance(x.dtype)
            if _longest(x - y) > relative * moved[index] + floor * largest[index]:
                return False
    return True


def _longest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """Of a step, and of the weights.

    Measured over the optimizers of torch and of eleven packages (docs/optimizers.md): rounding in float64 stays under
    1e-7 of a step, where a kernel works in float32 inside, and the smallest true dependence seen was 1e-4. In the
    weights' own dtype the rounding of 16 steps adds up, and only what is coarse is asked of it.
    """
    if dtype in (torch.float64, torch.complex128):
        return 1e-5, 1e-13
    finfo = torch.finfo(dtype)
    return 1e-3 if finfo.bits == 32 else 0.1, 16 * finfo.eps


# --- experiments


class _Bench:
    """All experiments on twins of one precision.

    Args:
        dtype: of the twins' weights; None for the optimizer's own.
    """

    def __init__(self, twins: Twins, dtype: torch.dtype | None) -> None:
        self.twins, self.dtype = twins, dtype
        self.groups = twins.optimizer.param_groups
        begun_elsewhere = _has_begun(twins.optimizer) and not twins.manner.keeps_phase
        self.steps = STEPS_WITHOUT_PHASE if begun_elsewhere else STEPS
        self.lrs, self.decays = self._usable("lr", _LR, _OTHER_LR), self._usable("weight_decay", _WEIGHT_DECAY, _OTHER_WEIGHT_DECAY)
        self.works = self._steps_with()

    def _usable(self, key: str, *wanted: float) -> list[list[float]]:
        """Values for each group at which it steps: those wanted, or where a step refuses them parts of its own."""
        if not all(key in group for group in self.groups):
            return []
        own = [_number(group[key]) for group in self.groups]
        values = [[value] * len(own) for value in wanted]
        if self._steps_with(**{key: values[0]}):
            return values
        return [[value * part for value in own] for part in (1.0, 0.5)]

    def _steps_with(self, **settings: Sequence[float]) -> bool:
        try:
            self._walker(**settings).walk(1)
        except Exception:  # others' code
            return False
        return True

    def _walker(self, *, lr: Any = None, weight_decay: Any = None, **how: Any) -> Walker:
        twin = self.twins.make(self.dtype)
        settings = {"lr": lr, "weight_decay": weight_decay}
        twin.set(**{key: value for key, value in settings.items() if value is not None})
        return Walker(twin, **how)

    def _walk(self, steps: int = 0, **how: Any) -> Walk:
        return self._walker(**how).walk(steps or self.steps)

    def reports(self) -> list[GroupReport]:
        """For each group what the experiments show."""
        zeros = [0.0] * len(self.groups)
        has_decay = bool(self.decays)
        none = {"weight_decay": zeros} if has_decay else {}
        lr = {"lr": self.lrs[0]} if self.lrs else {}
        shrink = [SHRINK] * len(self.groups)

        direction = self._walk(**lr, **none)
        before = self._walk(**lr, **none, shrink=shrink)
        after = self._walk(**lr, **none, shrink=shrink, where="subtracted")
        reads_lr = self._walk(2, lr=self.lrs[1], **none) if self.lrs else direction
        hidden = self._decay_seen(**none)
        # Without lr, a decay of its own may be too small to see at the lr of now.
        hidden_at_lr = self._decay_seen(**lr, **none)
        enters = [self._enters(direction, lr, index) for index in range(2)] if has_decay else []
        own = self._decay_seen()

        reports = []
        for index, group in enumerate(self.groups):
            title = _title(group, index)
            if not _finite(direction.of_group(index)):
                reason = "its small tensors become infinite or nan within a few steps of random gradients"
                reports.append(GroupReport(index, title, opaque=reason))
                continue
            facts = _form([entry.facts(index) for entry in enters])
            exact = facts.pop("lr_times_lambda", False) and self._own_decay_is_exact(index)
            scale = _number(group["lr"]) / self.lrs[0][index] if self.lrs and self.lrs[0][index] else 1.0
            reports.append(
                GroupReport(
                    index,
                    title,
                    decay_per_step=own[index],
                    hidden_decay=hidden[index] or hidden_at_lr[index] * scale,
                    reads_lr=bool(self.lrs) and not _equal(direction.of_group(index)[:3], reads_lr.of_group(index)),
                    own_decay_is_lr_times_lambda=exact,
                    reads_weights=not is_alike(after.of_group(index), before.of_group(index)),
                    **facts,
                )
            )
        return reports

    def _enters(self, direction: Walk, lr: dict[str, Any], which: int) -> _Entry:
        """How one λ enters the steps."""
        weight_decay, zeros = self.decays[which], [0.0] * len(self.groups)
        seen = self._decay_seen(**lr, weight_decay=weight_decay)
        rates = self.lrs[0] if self.lrs else [1.0] * len(self.groups)
        named = [rate * value for rate, value in zip(rates, weight_decay, strict=True)]
        none = {"weight_decay": zeros, **lr}
        return _Entry(
            own=self._walk(**lr, weight_decay=weight_decay),
            without=direction,
            coupled=self._walk(**none, into_gradient=weight_decay),
            before=self._walk(**none, shrink=seen),
            after=self._walk(**none, shrink=seen, where="after"),
            lr_times_lambda=self._walk(**none, shrink=named),
        )

    @property
    def _exact_elsewhere(self) -> list[tuple[Walk, Walk]]:
        """The step with λ, and after a shrink by lr·λ without, at another lr and at the group's own lr and λ."""
        if not hasattr(self, "_pairs"):
            zeros = [0.0] * len(self.groups)
            own_lr = [_number(group["lr"]) for group in self.groups]
            own_decay = [_number(group["weight_decay"]) for group in self.groups]
            tried = [(self.lrs[1], self.decays[1]), (own_lr, self.decays[0]), (own_lr, own_decay)]
            self._pairs = []
            for lr, decay in tried:
                shrink = [rate * value for rate, value in zip(lr, decay, strict=True)]
                walks = self._walk(lr=lr, weight_decay=decay), self._walk(lr=lr, weight_decay=zeros, shrink=shrink)
                self._pairs.append(walks)
        return self._pairs

    def _own_decay_is_exact(self, index: int) -> bool:
        return bool(self.lrs) and all(
            is_alike(with_decay.of_group(index), shrunk.of_group(index)) for with_decay, shrunk in self._exact_elsewhere
        )

    def _decay_seen(self, **settings: Any) -> list[float]:
        """The fraction that a first step removes without gradient, ⟨w, w − w'⟩ / ⟨w, w⟩.

        Where a direction is not defined without gradient (it is normalised), it is the mean of steps with a gradient
        and with its opposite, whose updates are each other's.
        """
        seen = self._walk(1, **settings, gradient=0.0)
        if all(_finite(seen.of_group(index)) for index in range(len(self.groups))):
            walks = [seen]
        else:
            walks = [self._walk(1, **settings, gradient=scale) for scale in (1e-3, -1e-3)]
        fractions = []
        for index in range(len(self.groups)):
            removed = squared = 0.0
            for walk in walks:
                for w, after in zip(*walk.of_group(index), strict=True):
                    removed += float((w.conj() * (w - after)).sum().real)
                    squared += float((w.conj() * w).sum().real)
            fractions.append(removed / squared if squared else 0.0)
        return fractions


@dataclass(frozen=True)
class _Entry:
    """Walks with one λ, and what they would be if it entered in each way."""

    own: Walk
    without: Walk
    coupled: Walk
    before: Walk
    after: Walk
    lr_times_lambda: Walk

    def facts(self, index: int) -> dict[str, bool]:
        own = self.own.of_group(index)
        names = ("coupled", "before", "after", "lr_times_lambda")
        found = {name: is_alike(own, getattr(self, name).of_group(index)) for name in names}
        return {"none": _equal(own, self.without.of_group(index)), **found}


def _form(entries: Sequence[dict[str, bool]]) -> dict[str, Any]:
    """The form that fits at each λ that was tried."""
    if all(entry["none"] for entry in entries):
        return {"form": "none"}
    holds = {name: all(entry[name] for entry in entries) for name in entries[0]}
    facts: dict[str, Any] = {
        "reads_weight_decay": True,
        "through_gradient": holds["coupled"],
        "lr_times_lambda": holds["lr_times_lambda"],
        "form": "other",
    }
    if holds["before"] or holds["after"]:
        facts |= {"form": "decoupled", "order": "before" if holds["before"] else "after"}
    elif holds["coupled"]:
        facts["form"] = "coupled"
    return facts


def _equal(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    return all(torch.equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))


def _finite(walk: Sequence[Sequence[Tensor]]) -> bool:
    return all(bool(torch.isfinite(w).all()) for weights in walk for w in weights)


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
