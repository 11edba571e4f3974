"""What steps of some real tensors show of their decay.

Four steps from the same place, with the same gradients, state and random numbers:

    without    S(0, w)
    large      S(Λ, w)      what it removes beside the one without shows how λ enters, and what carries the weights
    own        S(λ, w)      what it removes beside the one without is what the group's λ really does
    mirrored   −S(0, −w)    the mean of the two is the part of a step that turns with the weights: w less what is
                            removed at a λ of 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightdecay.auditing.carriers import Carrier, Path, carrier_of, is_copy, read, tensors_beside
from weightdecay.auditing.measuring import MOMENTS, local, removed
from weightdecay.auditing.stepping import Bench, Place, Settings

_LOW = (torch.bfloat16, torch.float16)


@dataclass
class Sight:
    """What was seen of one tensor, as moments that may be added over its shards.

    Attributes:
        own: of what the group's own λ removes.
        large: of what a λ that no rounding hides removes.
        mirrored: of what is removed at a λ of 0.
        idle: how many rows of a table have a gradient of 0 and decay nevertheless.
        copied: the most bytes that were held for it and those stepped with it.
    """

    place: Place
    own: Tensor
    large: Tensor
    mirrored: Tensor
    has_gradient: bool
    idle: int = 0
    copied: int = 0


class Sighting:
    """The four steps of the tensors of a bench.

    Args:
        large: for each group with a λ its numbers in the step with a large one.
        steps: how many steps each of them is.
    """

    def __init__(self, bench: Bench, large: Settings, *, steps: int = 1) -> None:
        self.bench, self.large, self.steps = bench, large, steps
        self._carriers: list[Carrier | None] = [None] * len(bench.places)
        self._copies: list[list[Path]] = [[] for _ in bench.places]

    def seen(self) -> list[Sight]:
        """All four steps."""
        bench, places = self.bench, self.bench.places
        groups = {place.group for place in places}
        self.large = {group: values for group, values in self.large.items() if group in groups}
        none = {group: {"weight_decay": 0.0} for group in self.large}

        without = self._seen_without(none)
        large = self.seen_large(without) if none else self._nothing()
        own = self._seen_own(without) if any(self._own(group) for group in none) else self._nothing()
        mirrored = self._seen_mirrored(none, without)

        copied = bench.written.bytes + sum(t.element_size() * t.numel() for kept in without for t in kept.values())
        return [
            Sight(place, own[i], large[i], mirrored[i], bench.believed[i], copied=copied)
            for i, place in enumerate(places)
        ]

    def seen_large(self, without: list[dict[Path, Tensor]] | None = None) -> list[Tensor]:
        """What the large λ alone removes from each tensor.

        Args:
            without: the weights after the step without λ, if it has been made at the same lr.
        """
        if without is None or any("lr" in values for values in self.large.values()):
            without = self._seen_without(
                {group: {**values, "weight_decay": 0.0} for group, values in self.large.items()}
            )
        moments = []
        with self.bench.stepped(self.large, steps=self.steps):
            for index, place in enumerate(self.bench.places):
                w, kept = self._w(place), without[index]
                plain = removed(w, local(place.tensor), kept["weights",])
                now = {path: tensor for path, tensor in self._beside(place).items() if path in kept}
                copies = {path: now[path] for path in self._copies[index] if path in now}
                self._carriers[index] = carrier = carrier_of(place, w, plain, now, kept, copies)
                if carrier is not None:
                    plain = removed(w, read(self.bench, place, carrier), self._weights_without(index, kept))
                moments.append(plain)
        return moments

    def _seen_without(self, none: Settings) -> list[dict[Path, Tensor]]:
        with self.bench.stepped(none, steps=self.steps):
            self._copies = [
                [
                    path
                    for path, tensor in self._beside(place).items()
                    if is_copy(self.bench, path, tensor, self._w(place))
                ]
                for place in self.bench.places
            ]
            return [self._kept(index, place) for index, place in enumerate(self.bench.places)]

    # --- weights

    def _w(self, place: Place) -> Tensor:
        """Before the step."""
        return self.bench.written.original(local(place.tensor))

    def _beside(self, place: Place) -> dict[Path, Tensor]:
        return tensors_beside(self.bench, place)

    def _kept(self, index: int, place: Place) -> dict[Path, Tensor]:
        """The weights after the step without, and what may carry them."""
        kept: dict[Path, Tensor] = {("weights",): local(place.tensor).clone()}
        is_low = local(place.tensor).dtype in _LOW
        for path, tensor in self._beside(place).items():
            if is_low or path in self._copies[index]:
                kept[path] = tensor.clone()
        return kept

    def _weights_without(self, index: int, without: Mapping[Path, Tensor]) -> Tensor:
        carrier = self._carriers[index]
        if carrier is None:
            return without["weights",]
        beside = without[carrier.path]
        return without["weights",].float() + beside.float() if carrier.added else beside

    # --- steps

    def _own(self, group: int) -> float:
        return float(self.bench.optimizer.param_groups[group]["weight_decay"])

    def _nothing(self) -> list[Tensor]:
        return [torch.zeros(MOMENTS, dtype=torch.float64, device=self._w(place).device) for place in self.bench.places]

    def _seen_own(self, without: list[dict[Path, Tensor]]) -> list[Tensor]:
        with self.bench.stepped(steps=self.steps):
            return [
                removed(
                    self._w(place),
                    read(self.bench, place, self._carriers[index]),
                    self._weights_without(index, without[index]),
                )
                for index, place in enumerate(self.bench.places)
            ]

    def _seen_mirrored(self, none: Settings, without: list[dict[Path, Tensor]]) -> list[Tensor]:
        weights = [self._weights_without(index, kept) for index, kept in enumerate(without)]
        if any(self._copies):
            with self.bench.stepped(none, steps=self.steps, prepare=lambda: self._place(1)):
                weights = [
                    read(self.bench, place, self._carriers[index]).clone()
                    for index, place in enumerate(self.bench.places)
                ]
        moments = []
        with self.bench.stepped(none, steps=self.steps, prepare=lambda: self._place(-1)):
            for index, place in enumerate(self.bench.places):
                opposite = read(self.bench, place, self._carriers[index])
                left = (weights[index].float() - opposite.float()).mul_(0.5)
                w = self._w(place)
                moments.append(removed(w, left, w))
        return moments

    @torch.no_grad()
    def _place(self, sign: int) -> None:
        """Set the weights and all copies of them to w or −w."""
        for index, place in enumerate(self.bench.places):
            w = self._w(place)
            target = w if sign > 0 else -w
            beside = self._beside(place)
            self.bench.set_contents(local(place.tensor), target)
            for path in self._copies[index]:
                if path in beside:
                    self.bench.set_contents(beside[path], target.to(beside[path].dtype))
            carrier = self._carriers[index]
            if carrier is not None and carrier.added and sign < 0 and carrier.path in beside:
                self.bench.set_contents(beside[carrier.path], -beside[carrier.path])
