"""How λ enters the steps of a group: which twin without λ, led in which way, goes where the one with λ goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from weightdecay.probing.walks import Walk, is_alike

# In which λ is said by one number for each group.
WAYS = ("coupled", "before", "after", "beside")


class Entry:
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

    def is_finite(self, index: int) -> bool:
        return all(bool(torch.isfinite(w).all()) for weights in self._own.of_group(index) for w in weights)

    def changes_nothing(self, index: int) -> bool:
        assert self._without is not None
        return is_equal(self._own.of_group(index), self._without.of_group(index))

    def first_change(self, index: int) -> int:
        """The step in which λ first changes something, counted from 1; 0 where it never does."""
        assert self._without is not None
        places = zip(self._own.of_group(index), self._without.of_group(index), strict=True)
        return next((step for step, (one, other) in enumerate(places) if not is_equal([one], [other])), 0)


def ways_of(enters: Sequence[Entry], index: int) -> frozenset[str] | None:
    """The ways in which λ enters at each λ that was tried; None where it changes nothing."""
    if all(entry.changes_nothing(index) for entry in enters):
        return None
    ways = {way for way in WAYS if all(entry.fits(way, index) for entry in enters)}
    if all(entry.fits_at_own_rate(index) for entry in enters):
        ways.add("at its own rate")
    return frozenset(ways)


def is_lr_times_lambda(entries: Sequence[Entry], index: int) -> bool:
    """Whether lr·λ of a weight goes before the step, or beside it."""
    return any(all(entry.fits(f"lr·λ {place}", index) for entry in entries) for place in ("before", "beside"))


def _is_fraction(weights: Tensor, removed: Tensor) -> bool:
    """Whether `removed` is one number times the weights."""
    squared = float((weights.conj() * weights).sum().real)
    c = float((weights.conj() * removed).sum().real) / squared if squared else 0.0
    return is_alike([[weights], [weights - removed]], [[weights], [(1 - c) * weights]])


def is_equal(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    return all(torch.equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))
