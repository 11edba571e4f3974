"""What steps of some real tensors show of their decay.

Four steps from the same place, with the same gradients, state and random numbers:

    without    S(0, w)
    large      S(Λ, w)      what it removes beside the one without shows how λ enters, and what carries the weights
    own        S(λ, w)      what it removes beside the one without is what the group's λ really does
    mirrored   −S(0, −w)    the mean of the two is the part of a step that turns with the weights: w less what is
                            removed at a λ of 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightdecay.auditing.carriers import (
    LOW_PRECISION,
    WEIGHTS,
    Carrier,
    Path,
    carrier_of,
    is_copy,
    read,
    tensors_beside,
    written_beside,
)
from weightdecay.auditing.measuring import MOMENTS, Removed, difference, local, removed
from weightdecay.auditing.probed import Target
from weightdecay.auditing.sharding import added_over_shards, agreed, largest_each
from weightdecay.auditing.stepping import Bench, Place, Settings

# cos² of what a decay removes and what it is to remove; where λ goes through a sign it is 2/π.
_ALONG = 0.98
_ONE: Path = ("one",)
_NOWHERE: Path = ("nowhere",)
# ‖S(0 for the copy) − S‖² / ‖S‖²: what follows a copy is lost with it.
_FOLLOWS = 0.1


def is_along(seen: Removed) -> bool:
    """Whether what is removed goes along the weights, before the update or after it."""
    return max(seen.along_before, seen.along_after) > _ALONG


@dataclass
class Known:
    """What one tensor of a group has shown, and others may not show by themselves.

    Attributes:
        lost: where the state keeps what rounding has lost, by group and dtype.
        targets: what the decay of a group pulls towards, where that is not 0.
        is_complete: all groups have been looked at; of the targets there are no more.
    """

    lost: dict[tuple[int, torch.dtype], Path] = field(default_factory=dict)
    targets: dict[int, Path] = field(default_factory=dict)
    is_complete: bool = False


@dataclass
class Sight:
    """What was seen of one tensor, as moments that may be added over its shards.

    Attributes:
        own: of what the group's own λ removes.
        large: of what a λ that no rounding hides removes.
        mirrored: of what is removed at a λ of 0.
        target: what the decay pulls towards.
        idle: how many rows of a table have a gradient of 0 and decay nevertheless.
        rounding: the relative size of a unit in the last place of what was read for its weights.
        copied: the most bytes that were held for it and those stepped with it.
        steps: in how many steps the own λ acted.
    """

    place: Place
    own: Tensor
    large: Tensor
    mirrored: Tensor
    has_gradient: bool
    target: Target = "zero"
    idle: int = 0
    rounding: float = 0.0
    copied: int = 0
    steps: int = 1
    carrier: Carrier | None = None


class Sighting:
    """The four steps of the tensors of a bench.

    Args:
        large: for each group with a λ its numbers in the step with a large one.
        steps: how many steps each of them is.
        places: of the tensors that are looked at; all of the bench, if not given.
        known: from sightings before; what this one shows is added.
    """

    def __init__(
        self,
        bench: Bench,
        large: Settings,
        *,
        steps: int = 1,
        places: Sequence[Place] | None = None,
        known: Known | None = None,
    ) -> None:
        self.bench, self.steps, self.known = bench, steps, known or Known()
        self.places = bench.places if places is None else places
        groups = {place.group for place in bench.places}
        self.large = {group: values for group, values in large.items() if group in groups}
        self._carriers: list[Carrier | None] = [None] * len(self.places)
        self._copies: list[list[Path]] = [[] for _ in self.places]
        self._targets: list[Path | None] = [None] * len(self.places)
        self._elsewhere: list[dict[Path, Tensor]] = [{} for _ in self.places]

    def seen(self) -> list[Sight]:
        """All four steps."""
        bench, places = self.bench, self.places
        none = {group: {"weight_decay": 0.0} for group in self.large}

        without = self._seen_without(none)
        large = self.seen_large(without) if none else self._nothing()
        own, idle = self._nothing(), [0] * len(places)
        if any(self._own(group) for group in none):
            own, idle = self._seen_own(without)
        mirrored = self._seen_mirrored(none, without)

        # It decides how many steps are made, and all processes make the same.
        roundings = largest_each([self._rounding(i) for i in range(len(places))], [place.tensor for place in places])
        copied = bench.written.bytes + sum(t.element_size() * t.numel() for kept in without for t in kept.values())
        return [
            Sight(
                place,
                own[i],
                large[i],
                mirrored[i],
                bench.has_gradient(place),
                self._target(i),
                idle[i],
                roundings[i],
                copied,
                self.steps,
                self._carriers[i],
            )
            for i, place in enumerate(places)
        ]

    def seen_again(self, sights: Sequence[Sight]) -> None:
        """Measure what the groups' own λ removes in more steps than one, which low precision shows better."""
        for index, sight in enumerate(sights):
            self._carriers[index] = sight.carrier
        without = self._seen_without({group: {"weight_decay": 0.0} for group in self.large})
        for sight, own in zip(sights, self._seen_own(without)[0], strict=True):
            sight.own, sight.steps = own, self.steps

    # --- weights

    def _w(self, place: Place) -> Tensor:
        """Before the step."""
        return self.bench.weights(place)

    def _pulled(self, index: int) -> Tensor:
        """How far the weights before the step are from what they are pulled towards."""
        w, target = self._w(self.places[index]), self._targets[index]
        if target is None:
            return w
        if target == _ONE:
            return w - 1
        beside = self._beside(index)
        return w - self.bench.written.original(beside[target]) if target in beside else w

    def _whole(self, index: int) -> Tensor:
        """The weights before the step, with what rounding had lost of them."""
        w, carrier = self._w(self.places[index]), self._carriers[index]
        beside = self._beside(index)
        if carrier is None or not carrier.added or carrier.path not in beside:
            return w
        return w.float() + self.bench.written.original(beside[carrier.path]).float()

    def _beside(self, index: int) -> dict[Path, Tensor]:
        return tensors_beside(self.bench, self.places[index], self._elsewhere[index])

    def _read(self, index: int) -> Tensor:
        return read(self.places[index], self._carriers[index], self._beside(index))

    def _rounding(self, index: int) -> float:
        carrier = self._carriers[index]
        if not self._w(self.places[index]).numel():
            return 0.0  # the part of another process shows it
        if carrier is not None and carrier.added:  # a rounded number of the size of a rounding
            return torch.finfo(self._w(self.places[index]).dtype).eps ** 2
        return torch.finfo(self._read(index).dtype).eps

    def _target(self, index: int) -> Target:
        target = self._targets[index]
        return "zero" if target is None else "one" if target == _ONE else "initial"

    def _kept(self, index: int) -> dict[Path, Tensor]:
        """The weights as they are now, and what may carry them."""
        place = self.places[index]
        kept: dict[Path, Tensor] = {WEIGHTS: local(place.tensor).clone()}
        is_low = local(place.tensor).dtype in LOW_PRECISION
        for path, tensor in self._beside(index).items():
            if is_low or path in self._copies[index]:
                kept[path] = tensor.clone()
        return kept

    def _carried(self, index: int, kept: Mapping[Path, Tensor]) -> Tensor:
        """The weights among what was kept."""
        carrier = self._carriers[index]
        if carrier is None:
            return kept[WEIGHTS]
        beside = kept[carrier.path]
        return kept[WEIGHTS].float() + beside.float() if carrier.added else beside

    # --- steps

    def _agreed(self, decision: bool) -> bool:
        return agreed(decision, (place.tensor for place in self.places))

    def _own(self, group: int) -> float:
        return float(self.bench.optimizer.param_groups[group]["weight_decay"])

    def _nothing(self) -> list[Tensor]:
        return [torch.zeros(MOMENTS, dtype=torch.float64, device=self._w(place).device) for place in self.places]

    def _seen_without(self, none: Settings) -> list[dict[Path, Tensor]]:
        with self.bench.stepped(none, steps=self.steps):
            kept = self._all_kept()
            found = written_beside(self.bench, [self._w(place) for place in self.places])
        # Steps may be collective, so that all processes make the same.
        if self._agreed(any(found)) and self._agreed(self._find_elsewhere(none, found, kept)):
            with self.bench.stepped(none, steps=self.steps):
                kept = self._all_kept()
        return kept

    def _all_kept(self) -> list[dict[Path, Tensor]]:
        for index, place in enumerate(self.places):
            w = self._w(place)
            beside = self._beside(index)
            self._copies[index] = [path for path, tensor in beside.items() if is_copy(self.bench, path, tensor, w)]
        return [self._kept(index) for index in range(len(self.places))]

    def _find_elsewhere(
        self, none: Settings, found: Sequence[dict[Path, Tensor]], kept: Sequence[Mapping[Path, Tensor]]
    ) -> bool:
        """Whether there are masters that nobody keeps in the state: what a step makes of the weights follows them."""

        def clear() -> None:
            for tensor in (tensor for own in found for tensor in own.values()):
                tensor.zero_()

        with self.bench.stepped(none, steps=self.steps, prepare=clear):
            for index, place in enumerate(self.places):
                if found[index] and difference(local(place.tensor), kept[index][WEIGHTS]) > _FOLLOWS:
                    self._elsewhere[index] = found[index]
        return any(self._elsewhere)

    def seen_large(self, without: list[dict[Path, Tensor]] | None = None) -> list[Tensor]:
        """What the large λ alone removes from each tensor.

        Args:
            without: the weights after the step without λ, if it has been made at the groups' own lr.
        """
        if without is None or any("lr" in values for values in self.large.values()):
            without = self._seen_without({g: {**values, "weight_decay": 0.0} for g, values in self.large.items()})
        with self.bench.stepped(self.large, steps=self.steps):
            return [self._large(index, kept) for index, kept in enumerate(without)]

    def _large(self, index: int, kept: Mapping[Path, Tensor]) -> Tensor:
        place = self.places[index]
        w = self._w(place)
        plain = removed(w, local(place.tensor), kept[WEIGHTS])
        now = {path: tensor for path, tensor in self._beside(index).items() if path in kept}
        # What λ·w is added to, as it is to moments, may come to look like w; a copy of weights loses some, or nothing.
        copies = [
            path
            for path in self._copies[index]
            if path in now and Removed.of(removed(w, now[path], kept[path], after=False)).wd >= 0
        ]
        self._copies[index] = copies
        kind = (place.group, w.dtype)
        lost = self.known.lost.get(kind)
        carrier = carrier_of(local(place.tensor), w, plain, now, kept, copies)
        if carrier is None and lost in now:
            carrier = Carrier(lost, added=True)
        elif carrier is not None and carrier.added:
            self.known.lost[kind] = carrier.path
        self._carriers[index] = carrier
        after = self._read(index)
        moments = plain if carrier is None else removed(w, after, self._carried(index, kept))

        target = self.known.targets.get(place.group)
        if target is None and not self.known.is_complete:
            target = self._found_target(index, moments, after, kept)
        if target is None:
            return moments
        self.known.targets[place.group] = self._targets[index] = target
        return removed(self._pulled(index), after, self._carried(index, kept))

    def _found_target(self, index: int, moments: Tensor, after: Tensor, kept: Mapping[Path, Tensor]) -> Path | None:
        """What the decay pulls towards; None for 0. Processes that hold parts of the tensor find the same."""
        place, copies = self.places[index], self._copies[index]

        def pulled(target: Path) -> Tensor:
            self._targets[index] = target
            found = removed(self._pulled(index), after, self._carried(index, kept))
            self._targets[index] = None
            return found

        def is_towards(seen: Removed) -> bool:
            return is_along(seen) and seen.wd > 0

        if is_along(Removed.of(added_over_shards(moments.clone(), place.tensor))):
            return None
        if is_towards(Removed.of(added_over_shards(pulled(_ONE), place.tensor))):
            return _ONE
        initial = next((path for path in copies if is_towards(Removed.of(pulled(path)))), None)
        if not agreed(initial is not None, [place.tensor]):
            return None
        return initial or next(iter(copies), _NOWHERE)  # this process's part may be empty, or look like nothing

    def _seen_own(self, without: list[dict[Path, Tensor]]) -> tuple[list[Tensor], list[int]]:
        moments, idle = [], []
        with self.bench.stepped(steps=self.steps):
            for index, place in enumerate(self.places):
                after, other = self._read(index), self._carried(index, without[index])
                moments.append(removed(self._pulled(index), after, other, after=False))
                idle.append(idle_rows(self.bench.gradient(place), after, other))
        return moments, idle

    def _seen_mirrored(self, none: Settings, without: list[dict[Path, Tensor]]) -> list[Tensor]:
        weights = [self._carried(index, kept) for index, kept in enumerate(without)]
        if self._agreed(any(self._copies)):
            with self.bench.stepped(none, steps=self.steps, prepare=lambda: self._place(1)):
                weights = [self._read(index).clone() for index in range(len(self.places))]
        moments = []
        with self.bench.stepped(none, steps=self.steps, prepare=lambda: self._place(-1)):
            for index, place in enumerate(self.places):
                opposite = self._read(index)
                left = (weights[index].float() - opposite.float()).mul_(0.5)
                moments.append(removed(self._w(place), left, self._whole(index), after=False))
        return moments

    def seen_scaled(self, scale: float) -> list[Tensor]:
        """What the large λ removes from weights that are so many times as large."""
        none = {group: {**values, "weight_decay": 0.0} for group, values in self.large.items()}
        with self.bench.stepped(none, steps=self.steps, prepare=lambda: self._place(scale)):
            without = [self._read(index).clone() for index in range(len(self.places))]
        with self.bench.stepped(self.large, steps=self.steps, prepare=lambda: self._place(scale)):
            return [
                removed(scale * self._w(place), self._read(index), without[index])
                for index, place in enumerate(self.places)
            ]

    def _place(self, scale: float) -> None:
        """Set the weights and all copies of them to so many times w; what rounding has lost of it turns with it."""
        for index, place in enumerate(self.places):
            w, beside = self._w(place), self._beside(index)
            target = scale * w
            local(place.tensor).copy_(target)
            for path in self._copies[index]:
                if path in beside:
                    beside[path].copy_(target)
            carrier = self._carriers[index]
            if carrier is not None and carrier.added and scale < 0 and carrier.path in beside:
                beside[carrier.path].neg_()


@torch.no_grad()
def idle_rows(gradient: Tensor | None, with_decay: Tensor, without: Tensor) -> int:
    """How many rows of a table, or experts of a stack, have a gradient of 0 and shrink by the decay."""
    if gradient is None or gradient.ndim < 2 or gradient.shape != with_decay.shape:
        return 0
    idle = ~gradient.reshape(gradient.shape[0], -1).any(dim=1)
    if not idle.any():
        return 0
    return int((with_decay[idle] != without[idle]).reshape(int(idle.sum()), -1).any(dim=1).sum())


def decaying(bench: Bench, places: Sequence[Place]) -> list[Place]:
    """The tensors from which the groups' own λ takes something in a step."""
    groups = bench.optimizer.param_groups
    none = {place.group: {"weight_decay": 0.0} for place in places if "weight_decay" in groups[place.group]}
    with bench.stepped(none):
        without = [local(place.tensor).clone() for place in places]
    with bench.stepped():
        return [
            place
            for place, other in zip(places, without, strict=True)
            if agreed(not torch.equal(local(place.tensor), other), [place.tensor])
        ]
