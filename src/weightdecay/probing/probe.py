"""What one step of an optimizer does to weights, group by group, seen on twins of it.

A step is some function S(λ, g, w) of λ, gradient and weights, and of state that came about in the same way. Nobody can
read it from outside, but it can be run: on twins with a few numbers in each tensor, which all get the same gradients.
Each question is two walks of some steps, which end at the same weights or do not:

                       one twin               the other
    reads weights?     S(0, g, w)             S(0, g, w′), w′ drawn anew before each step: is the same subtracted?
    λ enters
      none             S(λ, g, w)             S(0, g, w)
      coupled          S(λ, g, w)             S(0, g + λ·w, w)
      decoupled        S(λ, g, w)             S(0, g, (1 − c)·w)      before the update,
                                              (1 − c)·S(0, g, w)      after it, or
                                              S(0, g, w) − c·w        beside it
      other            S(λ → 0, g, w)         S(0, g, w)              or it branches as soon as there is a λ
                       S(λ, g, 0)             S(0, g, 0)              or λ does what is no decay
    hidden decay?      S(0, 0, w)             −S(0, 0, −w)
    heeds zeros?       how λ enters, once more with gradients of which some are 0

c is what a step without gradient removes; whether it is lr·λ is tried at two more pairs of lr and λ, the group's own
among them. Why that is enough: `control` sets λ to 0 and lets the weights decay beside the step, or gives the optimizer
another λ. The first is exact if S(0, ·) subtracts the same wherever the weights are, the second if a decay by lr·λ is
what λ does; both are among the questions. The walks are as long as `STEPS`; what comes more seldom the watch sees.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError, group_title
from weightdecay.probing.entering import WAYS, Entry, is_equal, is_lr_times_lambda, ways_of
from weightdecay.probing.isolation import untouched
from weightdecay.probing.report import GroupReport as GroupReport
from weightdecay.probing.report import StepReport as StepReport
from weightdecay.probing.seen import Seen, merged_reports
from weightdecay.probing.sparing import (
    decay_of_tensors,
    decay_seen,
    decays_apart,
    heeds_zeros,
    is_finite,
    spares_zeros,
)
from weightdecay.probing.twin import Twins
from weightdecay.probing.walks import Walk, Walker, fine_dtype, has_same_updates, is_alike, longest

STEPS = 16
_FEW = 6
"""Steps in which the form of a decay shows: Schedule-Free's first is as AdamW's, and its second is not."""
# A twin that cannot stand where its optimizer stands must go far enough to see what comes in every k-th step.
STEPS_WITHOUT_PHASE = 300
_SLOW = 0.01
# Nothing beside a gradient, and not 0.
_VANISHING = 1e-12
_LR, _OTHER_LR, _WEIGHT_DECAY, _OTHER_WEIGHT_DECAY = 0.1, 0.03, 0.5, 0.2


def probe_step(optimizer: torch.optim.Optimizer, *, hooks: bool = False) -> StepReport:
    """What a step of this optimizer does to the weights of each group; the optimizer does not change.

    Args:
        hooks: step with the optimizer's own step hooks.
    """
    try:
        with untouched(optimizer, hooks=hooks) as outside:
            outside.raise_if_telling()
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
        groups = [
            GroupReport(i, group_title(group, i), opaque=reason) for i, group in enumerate(optimizer.param_groups)
        ]
        return StepReport(tuple(groups), reason)
    merged = [merged_reports(of_group) for of_group in zip(*reports, strict=True)]
    # Of groups of one kind one was tried, and it says what all of them do.
    every = [
        replace(merged[place], index=index, title=group_title(group, index))
        for index, (group, place) in enumerate(zip(optimizer.param_groups, twins.of.stands_for, strict=True))
    ]
    keeps_phase = twins.manner.keeps_phase or not _has_begun(optimizer)
    return StepReport(tuple(every), "", STEPS if keeps_phase else STEPS_WITHOUT_PHASE, keeps_phase)


def _reports(twins: Twins, dtype: torch.dtype | None, *, is_finest: bool) -> list[Seen] | Exception:
    try:
        return _Bench(twins, dtype, is_finest=is_finest).reports()
    except Exception as error:  # others' code, which may take one step of another dtype and no second
        return error


def _has_begun(optimizer: torch.optim.Optimizer) -> bool:
    return any(bool(state) for state in optimizer.state.values())


# --- experiments


class _Bench:
    """All experiments on twins of one precision.

    Args:
        dtype: of the twins' weights; None for the optimizer's own.
        is_finest: whether long walks are made in it, once being enough.
    """

    def __init__(self, twins: Twins, dtype: torch.dtype | None, *, is_finest: bool) -> None:
        self.twins, self.dtype, self.is_finest = twins, dtype, is_finest
        self.groups = twins.of.groups
        begun_elsewhere = _has_begun(twins.optimizer) and not twins.manner.keeps_phase
        self.steps = STEPS_WITHOUT_PHASE if begun_elsewhere else STEPS
        self.lrs = self._usable("lr", _LR, _OTHER_LR)
        self.decays = self._usable("weight_decay", _WEIGHT_DECAY, _OTHER_WEIGHT_DECAY)
        own = [_number(group["weight_decay"]) for group in self.groups] if self.decays else []
        if any(own):  # a direction may branch on how large λ is
            self.decays.append([value or _WEIGHT_DECAY for value in own])

    @functools.cached_property
    def _lr(self) -> dict[str, Any]:
        return {"lr": self.lrs[0]} if self.lrs else {}

    @functools.cached_property
    def _none(self) -> dict[str, Any]:
        """Without λ."""
        return {"weight_decay": [0.0] * len(self.groups)} if self.decays else {}

    @functools.cached_property
    def _hidden_at_lr(self) -> list[float]:
        """At an lr of 0 or nearly so a decay of its own would not be seen."""
        return self._decay_seen(**self._lr, **self._none)

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
            self._walker(**settings).walk(1, guarded=1)
        except Exception:  # others' code
            return False
        return True

    def _walker(self, *, lr: Any = None, weight_decay: Any = None, **how: Any) -> Walker:
        twin = self.twins.make(self.dtype)
        settings = {"lr": lr, "weight_decay": weight_decay}
        twin.set(**{key: value for key, value in settings.items() if value is not None})
        return Walker(twin, **how)

    def _walk(self, steps: int = 0, *, guarded: int = 0, **how: Any) -> Walk:
        return self._walker(**how).walk(steps or self.steps, guarded=guarded)

    def reports(self) -> list[Seen]:
        """For each group what the experiments show."""
        lr, none = self._lr, self._none
        # A guard takes longer than a step, so it sees each kind of step once: without λ, and below with each λ.
        direction = self._walk(**lr, **none, guarded=self.steps)
        elsewhere = self._walk(**lr, **none, drawn_anew=True)
        at_other_lr = self._walk(3, lr=self.lrs[1], **none) if self.lrs else direction
        own, hidden, hidden_at_lr = self._decay_seen(), self._decay_seen(**none), self._hidden_at_lr
        enters = [self._enters(direction, hidden_at_lr, which) for which in range(len(self.decays))]

        reports = []
        for index in range(len(self.groups)):
            walk = direction.of_group(index)
            if not is_finite(walk):
                reports.append(Seen(index, opaque=self._not_finite(index)))
                continue
            # In low precision small steps may be lost.
            is_still = self.is_finest and not _moves(walk)
            if is_still and all(entry.changes_nothing(index) for entry in enters):
                still = f"none of its next {self.steps} steps moves its small tensors, whose gradients are not 0"
                reports.append(Seen(index, opaque=still))
                continue

            ways, first = (ways_of(enters, index) if enters else None), 1
            if ways is None and enters and self.is_finest and (first := self._later.first_change(index)):
                ways = frozenset({"at its own rate"} if self._later.fits_at_own_rate(index) else ())
            reads_weights = not has_same_updates(direction, elsewhere, index)
            if ways and self._is_lr_times_lambda(enters, index, reads_weights):
                ways |= {"lr·λ"}
            separable = bool(ways) or ways is None
            scale = _number(self.groups[index]["lr"]) / self.lrs[0][index] if self.lrs and self.lrs[0][index] else 1.0
            reports.append(
                Seen(
                    index,
                    ways=ways,
                    idle_steps=max(first - 1, 0),
                    decay_per_step=own[index],
                    hidden_decay=hidden[index] or hidden_at_lr[index] * (scale or 1.0),
                    reads_lr=not is_equal(walk[:4], at_other_lr.of_group(index)[:4]),
                    reads_weights=reads_weights,
                    branches=not separable and self._branches(direction, index),
                    moves_zeros=not separable and self._moves_zeros(index),
                    decays_apart=bool(enters)
                    and ways is not None
                    and decays_apart(self._decay_of_tensors[index], ways),
                    heeds_zeros=self.is_finest and bool(enters) and self._heeds_zeros(index, ways),
                )
            )
        return reports

    def _not_finite(self, index: int) -> str:
        dtypes = {self.dtype or p.dtype for p in self.groups[index]["params"]}
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"in {names} its small tensors become infinite or nan within a few steps of random gradients"

    def _is_lr_times_lambda(self, enters: Sequence[Entry], index: int, reads_weights: bool) -> bool:
        return (
            bool(self.lrs)
            and all(is_lr_times_lambda(some, index) for some in (enters, self._elsewhere))
            and not (reads_weights and self.is_finest and self._brings_weights_back(index))
        )

    def _branches(self, direction: Walk, index: int) -> bool:
        """Whether it is another optimizer as soon as there is a λ."""
        return not is_alike(self._vanishing.of_group(index), direction.first(_FEW).of_group(index))

    def _moves_zeros(self, index: int) -> bool:
        """Whether λ changes the steps of weights that are 0, of which no decay takes anything."""
        with_decay, without = self._of_zeros
        return not is_alike(with_decay.of_group(index), without.of_group(index))

    @functools.cached_property
    def _vanishing(self) -> Walk:
        return self._walk(_FEW, **self._lr, weight_decay=[_VANISHING] * len(self.groups))

    @functools.cached_property
    def _of_zeros(self) -> list[Walk]:
        """With λ and without, all weights set to 0 before each step."""
        every = [1.0] * len(self.groups)
        decays = (self.decays[0], [0.0] * len(self.groups))
        return [self._walk(_FEW, **self._lr, weight_decay=weight_decay, shrink=every) for weight_decay in decays]

    @functools.cached_property
    def _decaying(self) -> list[Walk]:
        """Long walks without gradient in which each step is to remove a hundredth, from weights and their opposite."""
        rate, count = 1e-4, len(self.groups)
        how: dict[str, Any] = {"lr": [rate] * count, "weight_decay": [_SLOW / rate] * count, "gradient": 0.0}
        walkers = [self._walker(**how, mirrored=mirrored) for mirrored in (False, True)]
        return [walker.walk(STEPS_WITHOUT_PHASE) for walker in walkers]

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

    def _enters(self, direction: Walk, hidden: Sequence[float], which: int, **gradients: Any) -> Entry:
        """How one λ enters the steps, at one lr."""
        lr = self._lr
        weight_decay, rates = self.decays[which], self.lrs[0] if self.lrs else [1.0] * len(self.groups)
        none: dict[str, Any] = {"weight_decay": [0.0] * len(self.groups), **lr}
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
        walks = {way: functools.partial(self._walk, _FEW, **none, **how, **gradients) for way, how in led.items()}
        own = self._walk(_FEW, **lr, weight_decay=weight_decay, guarded=_FEW, **gradients)
        return Entry(own, direction.first(_FEW), walks)

    @functools.cached_property
    def _later(self) -> Entry:
        """Where λ changes nothing in a few steps: an optimizer may begin with it later."""
        decays = (self.decays[0], [0.0] * len(self.groups))
        own, without = (self._walk(STEPS_WITHOUT_PHASE, **self._lr, weight_decay=decay) for decay in decays)
        return Entry(own, without, {})

    @functools.cached_property
    def _elsewhere(self) -> list[Entry]:
        """How lr·λ enters at another lr and λ, and at the groups' own."""
        own_lr = [_number(group["lr"]) for group in self.groups]
        own_decay = [_number(group["weight_decay"]) for group in self.groups]
        entries = []
        for lr, decay in ((self.lrs[1], self.decays[1]), (own_lr, self.decays[0]), (own_lr, own_decay)):
            named = [rate * value for rate, value in zip(lr, decay, strict=True)]
            led: dict[str, Any] = {"lr": lr, "weight_decay": [0.0] * len(lr), "shrink": named}
            walks = {
                "lr·λ before": functools.partial(self._walk, _FEW, **led),
                "lr·λ beside": functools.partial(self._walk, _FEW, **led, where="beside"),
            }
            entries.append(Entry(self._walk(_FEW, lr=lr, weight_decay=decay), None, walks))
        return entries

    def _decay_seen(self, **settings: Any) -> list[float]:
        return decay_seen(self._walk, len(self.groups), **settings)

    @functools.cached_property
    def _decay_of_tensors(self) -> list[list[tuple[float, float]]]:
        return decay_of_tensors(self._walk, len(self.groups), **self._lr, weight_decay=self.decays[0])

    def _heeds_zeros(self, index: int, ways: frozenset[str] | None) -> bool:
        if ways is not None and ways.isdisjoint(WAYS):
            walk = functools.partial(self._walk, **self._lr, weight_decay=self.decays[0])
            with contextlib.suppress(Exception):  # as below
                if spares_zeros(walk, index):
                    return True
        return any(heeds_zeros(entry, index, ways) for entry in self._with_zeros)

    @functools.cached_property
    def _with_zeros(self) -> list[Entry]:
        """How λ enters where some gradients are 0, and where all are now and then."""
        found = []
        for zeros in ("some", "all at times"):
            with contextlib.suppress(Exception):  # others' code, which may refuse such gradients
                direction = self._walk(_FEW, **self._lr, **self._none, zeros=zeros)
                found.append(self._enters(direction, self._hidden_at_lr, 0, zeros=zeros))
        return found


def _moves(walk: Sequence[Sequence[Tensor]]) -> bool:
    """Whether some step changes a weight, where there is any."""
    start = walk[0]
    changed = any(not torch.equal(w, was) for weights in walk for w, was in zip(weights, start, strict=True))
    return changed or not any(w.numel() for w in start)


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
