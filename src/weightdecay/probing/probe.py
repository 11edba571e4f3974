"""What one step of an optimizer does to weights, group by group, seen on twins of it.

Twins that get the same gradients at another λ, with weights that shrink beside the step, or with λ·w in the gradient,
either walk the same way or not. With S(λ, g, w) for a step:

    none            S(λ, g, w) = S(0, g, w)
    coupled         S(λ, g, w) = S(0, g + λ·w, w)
    decoupled       S(λ, g, w) = S(0, g, (1 − c)·w)   before, or   (1 − c)·S(0, g, w)   after the update,
                    or S(0, g, w) − c·w               beside it
    reads weights   S(0, g, (1 − a)·w) ≠ S(0, g, w) − a·w

over several steps and at more than one λ and lr. c is what a step without gradient removes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.probing.isolation import untouched
from weightdecay.probing.report import Form as Form
from weightdecay.probing.report import GroupReport as GroupReport
from weightdecay.probing.report import StepReport as StepReport
from weightdecay.probing.twin import Twins
from weightdecay.probing.walks import Walk, Walker, Where, fine_dtype, is_alike, longest

STEPS = 16
_FEW = 6
"""Steps in which the form of a decay shows: Schedule-Free's first is as AdamW's, and its second is not."""
# A twin that cannot stand where its optimizer stands must go far enough to see what comes in every k-th step.
STEPS_WITHOUT_PHASE = 300
SHRINK = 0.1
"""What the twins' weights lose beside each step: as much as an update at lr 0.1 moves them."""
_SLOW = 0.01
_LR, _OTHER_LR, _WEIGHT_DECAY, _OTHER_WEIGHT_DECAY = 0.1, 0.03, 0.5, 0.2


def probe_step(optimizer: torch.optim.Optimizer, *, hooks: bool = False) -> StepReport:
    """What a step of this optimizer does to the weights of each group; the optimizer does not change.

    Args:
        hooks: step with the optimizer's own step hooks.
    """
    try:
        with untouched(optimizer):
            twins = Twins(optimizer, hooks=hooks)
            dtypes = {p.dtype for group in optimizer.param_groups for p in group["params"]}
            fine = fine_dtype(twins)
            own = [] if fine is not None and dtypes <= {fine} else [None]
            dtypes_tried = ([fine] if fine is not None else []) + own
            attempts = [_reports(twins, dtype, is_finest=dtype is fine) for dtype in dtypes_tried]
            reports = [attempt for attempt in attempts if isinstance(attempt, list)]
            if not reports:
                raise attempts[-1]  # type: ignore[misc]
    except Exception as error:  # others' code runs here
        reason = "; ".join(error.faults) if isinstance(error, OptimizerError) else f"{type(error).__name__}: {error}"
        groups = [GroupReport(index, _title(group, index), opaque=reason) for index, group in _numbered(optimizer)]
        return StepReport(tuple(groups), reason)
    merged = [_merged(of_group) for of_group in zip(*reports, strict=True)]
    keeps_phase = twins.manner.keeps_phase or not _has_begun(optimizer)
    return StepReport(tuple(merged), "", STEPS if keeps_phase else STEPS_WITHOUT_PHASE, keeps_phase)


def _reports(twins: Twins, dtype: torch.dtype | None, *, is_finest: bool) -> list[_Seen] | Exception:
    try:
        return _Bench(twins, dtype, is_finest=is_finest).reports()
    except Exception as error:  # others' code, which may take one step of another dtype and no second
        return error


def _numbered(optimizer: torch.optim.Optimizer) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(optimizer.param_groups))


def _title(group: dict[str, Any], index: int) -> str:
    return f"group {index}" + (f" ('{group['name']}')" if "name" in group else "")


def _has_begun(optimizer: torch.optim.Optimizer) -> bool:
    return any(bool(state) for state in optimizer.state.values())


def _merged(reports: Sequence[_Seen]) -> GroupReport:
    """What holds in each precision; numbers are the finest's, which comes first."""
    fine = reports[0]
    if opaque := next((report.opaque for report in reports if report.opaque), ""):
        return GroupReport(fine.index, fine.title, opaque=opaque)
    # In low precision a decay may be rounded away, and there it says nothing that λ changes nothing.
    telling = [report.ways for report in reports if report.ways is not None]
    ways = frozenset.intersection(*telling) if telling else frozenset()
    place = next((way for way in ("before", "after", "beside", "at its own rate") if way in ways), None)
    form: Form = "decoupled" if place else "coupled" if "coupled" in ways else "other" if telling else "none"
    return GroupReport(
        fine.index,
        fine.title,
        form=form,
        order="before" if place == "before" else "after" if place == "after" else None,
        decay_per_step=fine.decay_per_step,
        hidden_decay=fine.hidden_decay,
        reads_weight_decay=bool(telling),
        reads_lr=any(report.reads_lr for report in reports),
        own_decay_is_lr_times_lambda=bool(place) and "lr·λ" in ways,
        through_gradient="coupled" in ways,
        reads_weights=any(report.reads_weights for report in reports),
    )


# --- experiments


class _Bench:
    """All experiments on twins of one precision.

    Args:
        dtype: of the twins' weights; None for the optimizer's own.
        is_finest: whether long walks are made in it, once being enough.
    """

    def __init__(self, twins: Twins, dtype: torch.dtype | None, *, is_finest: bool) -> None:
        self.twins, self.dtype, self.is_finest = twins, dtype, is_finest
        self.groups = twins.optimizer.param_groups
        begun_elsewhere = _has_begun(twins.optimizer) and not twins.manner.keeps_phase
        self.steps = STEPS_WITHOUT_PHASE if begun_elsewhere else STEPS
        self.lrs = self._usable("lr", _LR, _OTHER_LR)
        self.decays = self._usable("weight_decay", _WEIGHT_DECAY, _OTHER_WEIGHT_DECAY)
        own = [_number(group["weight_decay"]) for group in self.groups] if self.decays else []
        if any(own):  # a direction may branch on how large λ is
            self.decays.append([value or _WEIGHT_DECAY for value in own])

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

    def reports(self) -> list[_Seen]:
        """For each group what the experiments show."""
        none: dict[str, Any] = {"weight_decay": [0.0] * len(self.groups)} if self.decays else {}
        lr: dict[str, Any] = {"lr": self.lrs[0]} if self.lrs else {}
        shrink = [SHRINK] * len(self.groups)

        direction = self._walk(**lr, **none)
        places: tuple[Where, ...] = ("before", "beside")
        before, beside = (self._walk(**lr, **none, shrink=shrink, where=where) for where in places)
        at_other_lr = self._walk(2, lr=self.lrs[1], **none) if self.lrs else direction
        own, hidden = self._decay_seen(), self._decay_seen(**none)
        # At an lr of 0 or nearly so a decay of its own would not be seen.
        hidden_at_lr = self._decay_seen(**lr, **none)
        enters = (
            [self._enters(direction, hidden_at_lr, lr, index) for index in range(len(self.decays))]
            if self.decays
            else []
        )

        reports = []
        for index, group in enumerate(self.groups):
            title, walk = _title(group, index), direction.of_group(index)
            if not _finite(walk):
                reason = "its small tensors become infinite or nan within a few steps of random gradients"
                reports.append(_Seen(index, title, opaque=reason))
                continue
            ways = _ways(enters, index) if enters else None
            reads_weights = not is_alike(beside.of_group(index), before.of_group(index))
            if (
                ways
                and self.lrs
                and all(_is_lr_times_lambda(some, index) for some in (enters, self._elsewhere))
                and not (reads_weights and self.is_finest and self._brings_weights_back(index))
            ):
                ways |= {"lr·λ"}
            scale = _number(group["lr"]) / self.lrs[0][index] if self.lrs and self.lrs[0][index] else 1.0
            reports.append(
                _Seen(
                    index,
                    title,
                    ways=ways,
                    decay_per_step=own[index],
                    hidden_decay=hidden[index] or hidden_at_lr[index] * (scale or 1.0),
                    reads_lr=not _equal(walk[:3], at_other_lr.of_group(index)[:3]),
                    reads_weights=reads_weights,
                )
            )
        return reports

    @functools.cached_property
    def _decaying(self) -> list[Walk]:
        """Long walks without gradient in which each step is to remove a hundredth, from weights and their opposite."""
        rate, count = 1e-4, len(self.groups)
        how: dict[str, Any] = {"lr": [rate] * count, "weight_decay": [_SLOW / rate] * count, "gradient": 0.0}
        walkers = [self._walker(**how, mirrored=mirrored) for mirrored in (False, True)]
        return [walker.walk(STEPS_WITHOUT_PHASE, guarded=False) for walker in walkers]

    def _brings_weights_back(self, index: int) -> bool:
        """Whether a direction that reads weights reads some that it remembers, such as a slow average's.

        The part of the weights that turns with them shrinks by the same fraction in every step if it does not.
        """
        try:
            walks = [walk.of_group(index) for walk in self._decaying]
        except Exception:  # others' code, at this lr and λ
            return False
        turning = [[(w - v) / 2 for w, v in zip(one, other, strict=True)] for one, other in zip(*walks, strict=True)]
        return not all(
            longest(now - (1 - _SLOW) * w) <= 0.05 * _SLOW * longest(w)
            for was, after in itertools.pairwise(turning)
            for w, now in zip(was, after, strict=True)
        )

    def _enters(self, direction: Walk, hidden: Sequence[float], lr: dict[str, Any], which: int) -> _Entry:
        """How one λ enters the steps, at one lr."""
        weight_decay, rates = self.decays[which], self.lrs[0] if self.lrs else [1.0] * len(self.groups)
        none = {"weight_decay": [0.0] * len(self.groups), **lr}
        whole = self._decay_seen(**lr, weight_decay=weight_decay)
        seen = [(c - h) / (1 - h) if h != 1 else 0.0 for c, h in zip(whole, hidden, strict=True)]
        named = [rate * value for rate, value in zip(rates, weight_decay, strict=True)]
        led: dict[str, dict[str, Any]] = {
            "coupled": {"into_gradient": weight_decay},
            "before": {"shrink": seen},
            "after": {"shrink": seen, "where": "after"},
            "beside": {"shrink": seen, "where": "beside"},
            "lr·λ before": {"shrink": named},
            "lr·λ beside": {"shrink": named, "where": "beside"},
        }
        walks = {way: functools.partial(self._walk, _FEW, **none, **how) for way, how in led.items()}
        without = Walk(direction.places[: _FEW + 1])
        return _Entry(self._walk(_FEW, **lr, weight_decay=weight_decay), without, walks)

    @functools.cached_property
    def _elsewhere(self) -> list[_Entry]:
        """How lr·λ enters at another lr and λ, and at the groups' own."""
        own_lr = [_number(group["lr"]) for group in self.groups]
        own_decay = [_number(group["weight_decay"]) for group in self.groups]
        entries = []
        for lr, decay in ((self.lrs[1], self.decays[1]), (own_lr, self.decays[0]), (own_lr, own_decay)):
            led = {"lr": lr, "weight_decay": [0.0] * len(lr), "shrink": [a * b for a, b in zip(lr, decay, strict=True)]}
            walks = {
                "lr·λ before": functools.partial(self._walk, _FEW, **led),
                "lr·λ beside": functools.partial(self._walk, _FEW, **led, where="beside"),
            }
            entries.append(_Entry(self._walk(_FEW, lr=lr, weight_decay=decay), None, walks))
        return entries

    def _decay_seen(self, **settings: Any) -> list[float]:
        """The fraction that a step without gradient removes.

        It is the part of the step that turns with the weights, c of c·w + u, so that what moments still move is left
        out. Where a direction is not defined without gradient (it is normalised), a step with one shows the same.
        """
        count = len(self.groups)
        walks: list[Walk] = []
        for scale in (0.0, 1e-3):
            try:
                walks = [self._walk(1, **settings, gradient=scale, mirrored=mirrored) for mirrored in (False, True)]
            except Exception:  # others' code, which may refuse gradients of 0
                if scale:
                    raise
                continue
            if all(_finite(walk.of_group(index)) for walk in walks for index in range(count)):
                break

        fractions = []
        for index in range(count):
            removed = squared = 0.0
            (w, after), (_, mirrored) = (walk.of_group(index) for walk in walks)
            for start, one, other in zip(w, after, mirrored, strict=True):
                removed += float((start.conj() * (2 * start - one + other)).sum().real)
                squared += float((start.conj() * start).sum().real)
            fractions.append(removed / (2 * squared) if squared else 0.0)
        return fractions


class _Entry:
    """A walk with one λ, and what it would be if λ entered in each way; those are walked when somebody asks."""

    def __init__(self, own: Walk, without: Walk | None, ways: Mapping[str, Callable[[], Walk]]) -> None:
        self._own, self._without, self._ways = own, without, ways
        self._walked: dict[str, Walk] = {}

    def fits(self, way: str, index: int) -> bool:
        if way not in self._walked:
            self._walked[way] = self._ways[way]()
        return is_alike(self._own.of_group(index), self._walked[way].of_group(index))

    def fits_at_own_rate(self, index: int) -> bool:
        """Whether each step is that without λ less some fraction of the weights, before the update or after it.

        The fraction may be another at each step, as of optimizers that find their own lr, or begin later.
        """
        assert self._without is not None
        own, without = self._own.of_group(index), self._without.of_group(index)
        pairs = zip(own, own[1:], without, without[1:], strict=False)
        steps = [list(zip(*tensors, strict=True)) for tensors in pairs]
        return any(
            all(_is_fraction(w if whole else w + (after - before), w + (after - before) - now)
                for step in steps for w, now, before, after in step)
            for whole in (True, False)
        )  # fmt: skip

    def changes_nothing(self, index: int) -> bool:
        assert self._without is not None
        return _equal(self._own.of_group(index), self._without.of_group(index))


def _ways(enters: Sequence[_Entry], index: int) -> frozenset[str] | None:
    """The ways in which λ enters at each λ that was tried; None where it changes nothing."""
    if all(entry.changes_nothing(index) for entry in enters):
        return None
    ways = {way for way in ("coupled", "before", "after", "beside") if all(entry.fits(way, index) for entry in enters)}
    if all(entry.fits_at_own_rate(index) for entry in enters):
        ways.add("at its own rate")
    return frozenset(ways)


def _is_lr_times_lambda(entries: Sequence[_Entry], index: int) -> bool:
    """Whether lr·λ of a weight goes before the step, or beside it."""
    return any(all(entry.fits(f"lr·λ {place}", index) for entry in entries) for place in ("before", "beside"))


@dataclass(frozen=True)
class _Seen:
    """What is seen of a group in one precision, as in its report."""

    index: int
    title: str
    ways: frozenset[str] | None = None
    decay_per_step: float = 0.0
    hidden_decay: float = 0.0
    reads_lr: bool = False
    reads_weights: bool = False
    opaque: str = ""


def _is_fraction(weights: Tensor, removed: Tensor) -> bool:
    """Whether `removed` is one number times the weights."""
    squared = float((weights.conj() * weights).sum().real)
    c = float((weights.conj() * removed).sum().real) / squared if squared else 0.0
    return is_alike([[weights], [weights - removed]], [[weights], [(1 - c) * weights]])


def _equal(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    return all(torch.equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))


def _finite(walk: Sequence[Sequence[Tensor]]) -> bool:
    return all(bool(torch.isfinite(w).all()) for weights in walk for w in weights)


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
