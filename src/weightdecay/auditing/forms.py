"""How the decay of each group follows its numbers: a = factor · lr^p · λ, seen on a few of its real tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weightdecay.amounts import number
from weightdecay.auditing.carriers import LOW_PRECISION
from weightdecay.auditing.measuring import FINE, Removed, local
from weightdecay.auditing.probed import Order
from weightdecay.auditing.settings import peak_of
from weightdecay.auditing.sharding import added_over_shards
from weightdecay.auditing.sighting import Known, Sighting, is_along
from weightdecay.auditing.stepping import Bench, Place, Settings

LARGE = 0.25
"""What a large λ is to remove: more than any rounding hides, and less than any rule refuses."""

_WORKABLE = (0.05, 0.6)
# Relative lengths, and squares of them: what rounding leaves, in sums of float32 and of float64.
_NOTHING, _NOTHING_FINE = 1e-5, 1e-11
# cos² of what is removed and the weights; of their signs it is 2/π, and of an update that λ happens to scale 0.
_HAS_TO_DO_WITH = 0.05
# By how much one order fits better than the other, in sin² of what is removed and what it should be along.
_FITS_BETTER = 16
_TRIES = 8
_USUAL_LR = 1e-3
_SMALL = 0.04
_POWERS = (0.0, 0.5, 1.0, 2.0, 3.0)
# Of tensors of one group, in low precision too.
_UNEVEN = 0.05
# By how much of itself a decay may be another than in proportion to λ.
_BENT = 0.02
# How much larger weights are made, and of how much less a fraction is another.
_LARGER, _FOLLOWS = 2.0, 0.2
# Steps in which the way through the moments parts from the one beside them.
_FEW = 3
# By how much what goes through the gradient may change the form of what is taken off beside it.
_BLURRED = 0.2


@dataclass
class Form:
    """How one group's λ removes.

    Attributes:
        lr, weight_decay: as they stand in the group.
        peak_lr, peak_key: the largest lr that the group knows of.
        large: the numbers of a step in which about a quarter is removed, if any remove so much.
        factor, lr_power: None where no such form fits.
        late: λ is read, and the first step does not show it.
        beside: λ goes through the gradient, and something else reads it and decays beside the step, too.
    What cannot be looked at, as a group of zeros, is taken to be read.
    """

    lr: float | None
    weight_decay: float | None
    peak_lr: float | None = None
    peak_key: str = ""
    large: dict[str, float] = field(default_factory=dict)
    factor: float | None = None
    lr_power: float | None = None
    reads_weight_decay: bool = True
    reads_lr: bool = True
    coupled: bool = False
    order: Order | None = None
    late: bool = False
    beside: bool = False

    def removes(self) -> float | None:
        """What the group's own numbers ask for."""
        if self.factor is None or self.lr_power is None or self.weight_decay is None:
            return None
        lr = 1.0 if self.lr is None else self.lr
        return float(self.factor * lr**self.lr_power * self.weight_decay)


def form_of(group: Mapping[str, Any]) -> Form:
    """What stands in a group; how it removes is not known yet."""
    peak_lr, peak_key = peak_of(group)
    return Form(number(group.get("lr")), number(group.get("weight_decay")), peak_lr, peak_key)


class FormFinding:
    """Finds the form of each group by steps of one of its tensors.

    Args:
        forms: of all groups; those of which a tensor is looked at are filled in.
        places: of the tensors that are looked at.
        known: what they show is added.
    """

    def __init__(self, bench: Bench, forms: Sequence[Form], places: Sequence[Place], known: Known) -> None:
        self.bench, self.forms, self.places, self.known = bench, forms, places, known
        self.groups = sorted({place.group for place in places if forms[place.group].weight_decay is not None})
        self._is_coarse = any(local(place.tensor).dtype in LOW_PRECISION for place in places)
        self._lrs = {group: _usable_lr(forms[group]) for group in self.groups}

    def find(self) -> None:
        if not self.groups:
            return
        tries, seen = self._tried()
        for group in self.groups:
            form = self.forms[group]
            form.large = {"weight_decay": tries[group]}
            if form.lr == 0.0:  # at which nothing might be seen
                form.large |= self._lrs[group]
            form.reads_weight_decay = group in seen and seen[group].dd > 0

        # A decay made of several is a sum of theirs only where they are small; low precision hides small ones.
        small = tries if self._is_coarse else {group: value * _SMALL for group, value in tries.items()}
        uneven = self._choose(self._removed_each(self._with(small)))
        self._find_powers(small, self._removed(self._with(small)) or {})
        seen = self._removed(self._with(tries)) or seen
        self._find_coupled(tries, seen)
        for group in uneven | self._following_the_weights(
            small
        ):  # each tensor has a rate of its own, by its norm or its update's
            self.forms[group].factor = self.forms[group].lr_power = None
        if not all(self.forms[group].reads_weight_decay for group in self.groups):
            self._find_late(tries)

    def _tried(self) -> tuple[dict[int, float], dict[int, Removed]]:
        """For each group a λ that removes about a quarter, and what it removes."""
        tries = {group: LARGE / self._lrs[group].get("lr", 1.0) for group in self.groups}
        seen: dict[int, Removed] = {}
        for _ in range(_TRIES):
            now = self._removed(self._with(tries))
            if now is None:  # a rule that knows its bounds refuses more
                tries = {group: value / 16 for group, value in tries.items()}
                continue
            seen = now
            unfit = [group for group in self.groups if not _WORKABLE[0] <= _fraction(seen[group]) <= _WORKABLE[1]]
            if not unfit:
                break
            before, tries = tries, dict(tries)
            for group in unfit:
                a = _fraction(seen[group])
                tries[group] *= LARGE / a if a > 1e-6 else 100.0 if not seen[group].dd else 1.0
            if self._removed(self._with(tries)) is None:
                tries = before
                break
        return tries, seen

    def _choose(self, each: list[Removed] | None) -> set[int]:
        """Go on with one tensor of each group, of which as much is removed as of most.

        Returns:
            The groups without such a tensor.
        """
        uneven, chosen = set(), []
        for group in self.groups:
            own = [index for index, place in enumerate(self.places) if place.group == group]
            if each is not None:
                # Where some do not decay at all, the form is that of the others.
                own = [index for index in own if each[index].dd > 0] or own
                own.sort(key=lambda index: _fraction(each[index]))
                middle = _fraction(each[own[len(own) // 2]])
                alike = sum(abs(_fraction(each[index]) - middle) <= _UNEVEN * abs(middle) for index in own)
                if len(own) > 2 and 2 * alike <= len(own):
                    uneven.add(group)
            chosen.append(self.places[own[len(own) // 2]])
        self.places = chosen
        return uneven

    def _following_the_weights(self, tries: Mapping[int, float]) -> set[int]:
        """The groups of which a step takes another fraction of larger weights, as their norm is in its rate."""
        sighting = Sighting(self.bench, self._with(tries), places=self.places, known=self.known)
        try:
            pairs = zip(sighting.seen_large(), sighting.seen_scaled(_LARGER), self.places, strict=True)
            seen = [[Removed.of(added_over_shards(one, p.tensor)) for one in pair] for *pair, p in pairs]
        except Exception:  # others' code
            return set()
        return {
            place.group
            for (plain, larger), place in zip(seen, self.places, strict=True)
            if place.group not in self.known.targets
            and abs(_fraction(larger) - _fraction(plain)) > _FOLLOWS * abs(_fraction(plain))
        }

    def _find_powers(self, tries: Mapping[int, float], seen: Mapping[int, Removed]) -> None:
        at_half = self._removed(self._with({group: value / 2 for group, value in tries.items()}))
        at_half_lr = self._removed(self._with(tries, lr=0.5))
        if at_half is None or at_half_lr is None:
            return
        bent = []
        for group in (group for group in self.groups if group in seen):
            form, whole = self.forms[group], seen[group]
            form.reads_lr = bool(self._lrs[group]) and at_half_lr[group] != whole
            a, less, half = (_fraction(one) for one in (whole, at_half_lr[group], at_half[group]))
            if not is_along(whole):
                continue
            if a > 0 and less > 0 and abs(half / a - 0.5) <= _BENT:
                # Of a decay made of several, what it is where it is small.
                self._settle(group, a if self._is_coarse else 4 * half - a, a / less, tries[group])
            elif a != half:
                bent.append(group)
        if bent:
            self._find_slopes(bent, tries, {"whole": seen, "half": at_half, "slower": at_half_lr})

    def _find_slopes(
        self, groups: Sequence[int], tries: Mapping[int, float], seen: Mapping[str, Mapping[int, Removed]]
    ) -> None:
        """Of groups from which something else is taken as well as soon as there is a λ, what λ itself takes."""
        quarter = self._removed(self._with({group: value / 4 for group, value in tries.items()}))
        slower = self._removed(self._with({group: value / 2 for group, value in tries.items()}, lr=0.5))
        if quarter is None or slower is None:
            return
        for group in groups:
            a, half, fast = (_fraction(one[group]) for one in seen.values())
            slope, before = 2 * (a - half), 4 * (half - _fraction(quarter[group]))
            at_half_lr = 2 * (fast - _fraction(slower[group]))
            if slope > 0 and at_half_lr > 0 and abs(before / slope - 1) <= _BENT:
                self._settle(group, slope, slope / at_half_lr, tries[group])

    def _settle(self, group: int, slope: float, by_lr: float, weight_decay: float) -> None:
        """a = factor · lr^p · λ, where half of lr makes it 1/`by_lr` as large."""
        power = math.log2(by_lr)
        nearest = min(_POWERS, key=lambda known: abs(known - power))
        power = nearest if abs(nearest - power) < 0.05 else power
        form = self.forms[group]
        form.lr_power, form.factor = power, slope / (self._lrs[group].get("lr", 1.0) ** power * weight_decay)

    def _find_coupled(self, tries: Mapping[int, float], seen: Mapping[int, Removed]) -> None:
        """Whether some steps with λ go the way of those with λ·w in the gradient, and not of shrinking weights."""
        large = self._with(tries)
        none = {group: {**values, "weight_decay": 0.0} for group, values in large.items()}
        shrunk = {group: _fraction(seen[group]) if group in seen else 0.0 for group in self.groups}
        clean = {group: self._taken_beside(group, tries[group]) for group in self.groups}

        def into_gradient() -> None:
            self._into_gradient(tries)

        def shrink_and_into_gradient() -> None:
            self._shrink(clean)
            self._into_gradient(tries)

        shrinking = [partial(self._shrink, fractions) for fractions in (shrunk, clean)]
        # What is done before each step, and after it.
        ways: dict[str, list[tuple[Callable[[], None] | None, Callable[[], None] | None]]] = {
            "through": [(into_gradient, None)],
            "beside": [*((shrink, None) for shrink in shrinking), *((None, shrink) for shrink in shrinking)],
            "both": [(shrink_and_into_gradient, None), (into_gradient, shrinking[-1])],
        }
        try:
            with_decay, without = self._walked(large), self._walked(none)
            walked = {name: [self._walked(none, *each) for each in how] for name, how in ways.items()}
        except Exception:  # others' code, at this λ
            return
        for group in self.groups:
            apart = self._apart(group, with_decay, without)
            off = {name: min(self._apart(group, with_decay, way) for way in how) for name, how in walked.items()}
            form, removed = self.forms[group], seen.get(group)
            if removed is None or not does_something(removed):
                form.coupled = form.beside = False
            else:
                goes_through = off["through"] < 0.01 * apart and off["through"] * 10 < off["beside"]
                form.beside = off["both"] < 0.01 * apart and off["both"] * 10 < min(off["through"], off["beside"])
                form.coupled = form.beside or goes_through or is_beside(removed)
            if form.coupled:
                form.factor = form.lr_power = None
                self.known.targets.pop(group, None)  # what goes through a sign or a root pulls to nothing
            elif form.reads_weight_decay:
                place = next(place for place in self.places if place.group == group)
                form.order = order_of(seen[group], place) if group in seen else None

    def _taken_beside(self, group: int, weight_decay: float) -> float:
        """What a hook or wrapper takes off at this λ: by the form that was seen, or as they mostly do."""
        form = self.forms[group]
        factor, power = form.factor, form.lr_power
        if factor is None or power is None or (power == 1.0 and abs(factor - 1.0) < _BLURRED):
            factor, power = 1.0, 1.0  # as those mostly do who read an optimizer's groups
        return float(factor * self._lrs[group].get("lr", 1.0) ** power * weight_decay)

    def _find_late(self, tries: Mapping[int, float]) -> None:
        """Weights that are pulled to where they began have nothing to lose in their first step."""
        later = self._removed(self._with(tries), steps=_FEW)
        for group in self.groups if later is not None else ():
            form = self.forms[group]
            if not form.reads_weight_decay and later[group].dd > 0:  # type: ignore[index]
                form.reads_weight_decay = form.late = True

    # --- steps

    def _with(self, weight_decay: Mapping[int, float], lr: float = 1.0) -> dict[int, dict[str, float]]:
        return {
            group: {**{key: lr * value for key, value in self._lrs[group].items()}, "weight_decay": value}
            for group, value in weight_decay.items()
        }

    def _removed(self, settings: Settings, steps: int = 1) -> dict[int, Removed] | None:
        """What is removed from each group's tensors at these numbers; None where a step refuses them."""
        moments = self._moments(settings, steps)
        if moments is None:
            return None
        found: dict[int, Removed] = {}
        for group in self.groups:
            own = [one for one, place in zip(moments, self.places, strict=True) if place.group == group]
            found[group] = Removed.of(sum(own[1:], own[0]))
        return found

    def _removed_each(self, settings: Settings) -> list[Removed] | None:
        moments = self._moments(settings)
        return None if moments is None else [Removed.of(one) for one in moments]

    def _moments(self, settings: Settings, steps: int = 1) -> list[Tensor] | None:
        sighting = Sighting(self.bench, settings, steps=steps, places=self.places, known=self.known)
        try:
            seen = sighting.seen_large()
        except Exception:  # others' code
            return None
        return [added_over_shards(one, place.tensor) for one, place in zip(seen, self.places, strict=True)]

    def _walked(
        self, settings: Settings, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None
    ) -> list[Tensor]:
        with self.bench.stepped(settings, steps=_FEW, before_each=before, after_each=after):
            return [local(place.tensor).double() for place in self.places]

    def _into_gradient(self, weight_decay: Mapping[int, float]) -> None:
        for place in self.bench.places:
            gradient = place.tensor.grad
            if gradient is None or gradient.layout != torch.strided or place.group not in weight_decay:
                continue
            here = local(gradient)
            here.copy_(self.bench.written.original(here) + weight_decay[place.group] * local(place.tensor))

    def _shrink(self, fractions: Mapping[int, float]) -> None:
        for place in self.bench.places:
            local(place.tensor).mul_(1 - fractions.get(place.group, 0.0))

    def _apart(self, group: int, one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
        squares = [
            added_over_shards((x - y).square().sum().reshape(1), place.tensor)
            for x, y, place in zip(one, other, self.places, strict=True)
            if place.group == group
        ]
        return float(sum(squares[1:], squares[0]))


def order_of(large: Removed, place: Place) -> Order | None:
    """Whether a decay goes along the weights before the update or after it; None where the update is too small."""
    before, after = 1 - large.along_before, 1 - large.along_after
    if max(before, after) < (_NOTHING_FINE if place.tensor.numel() <= FINE else _NOTHING):
        return None
    if after * _FITS_BETTER < before:
        return "after"
    return "before" if before * _FITS_BETTER < after else None


def does_something(seen: Removed) -> bool:
    """Whether what is removed is more than the rounding of a decay that somebody undoes."""
    return seen.dd > _NOTHING**2 * seen.ww


def is_beside(seen: Removed) -> bool:
    """Whether what is removed has to do with the weights, and does not go along them: a sign or a root is between."""
    return not is_along(seen) and seen.along_before > _HAS_TO_DO_WITH


def _usable_lr(form: Form) -> dict[str, float]:
    if form.lr is None:
        return {}
    return {"lr": form.lr or form.peak_lr or _USUAL_LR}


def _fraction(seen: Removed) -> float:
    """Of the elements on which it acts."""
    return seen.wd / seen.acted if seen.acted > 0 else 0.0
