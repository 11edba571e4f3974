"""What a step removes of the weights, and what it spares: some of the tensors, or weights whose gradient is 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.probing.entering import WAYS, Entry
from weightdecay.probing.twin import zeroed
from weightdecay.probing.walks import Walk, longest

Walks: TypeAlias = Callable[..., Walk]

# Of two fractions, of which one may be a rounding more.
_APART = 1e-3
# What a step that removes nothing seems to remove of weights near 1.
_ROUNDING = 1e-9


def decay_seen(walk: Walks, count: int, **settings: Any) -> list[float]:
    """The fraction that a step without gradient removes of each of `count` groups.

    It is the part of the step that turns with the weights, c of c·w + u, so that what moments still move is left out.
    Where a direction is not defined without gradient (it is normalised), a step with one shows the same.
    """
    sums = [[sum(part) for part in zip(*tensors, strict=True)] for tensors in decay_of_tensors(walk, count, **settings)]
    return [total[0] / total[1] if total and total[1] else 0.0 for total in sums]


def decay_of_tensors(walk: Walks, count: int, **settings: Any) -> list[list[tuple[float, float]]]:
    """For each tensor of each group ⟨w, what a step without gradient removes⟩ and ⟨w, w⟩."""
    walks: list[Walk] = []
    for scale in (0.0, 1e-3, 1.0):
        try:
            walks = [walk(1, **settings, gradient=scale, mirrored=mirrored) for mirrored in (False, True)]
        except Exception:  # others' code, which may refuse gradients of 0
            if scale == 1.0:
                raise
            continue
        if all(is_finite(one.of_group(index)) for one in walks for index in range(count)):
            break
    return [
        [(_inner(w, removed), _inner(w, w)) for w, removed in zip(walks[0].of_group(index)[0], turning, strict=True)]
        for index, turning in ((index, _turning(walks, index)) for index in range(count))
    ]


def decays_apart(tensors: Sequence[tuple[float, float]], ways: frozenset[str]) -> bool:
    """Whether λ takes another fraction off some tensors of a group than off others.

    Through the gradient it has none. Where no form fits it may be any, and only a tensor that is left out tells.
    """
    if not ways.isdisjoint(WAYS):
        return False
    fractions = [abs(removed / squared) for removed, squared in tensors if squared]
    least, most = min(fractions, default=0.0), max(fractions, default=0.0)
    return most > _ROUNDING and least < (1 - _APART if ways else _APART) * most


def heeds_zeros(entry: Entry, index: int, ways: frozenset[str] | None) -> bool:
    """Whether λ enters otherwise as soon as some gradients are 0, as where rows without one are left out.

    Args:
        entry: of walks with such gradients.
        ways: how λ enters where no gradient is 0.
    """
    if not entry.is_finite(index):  # as the real weights would be
        return False
    if ways is None:
        return not entry.changes_nothing(index)
    is_led = any(entry.fits(way, index) for way in WAYS if way in ways)
    return bool(ways) and not is_led and not ("at its own rate" in ways and entry.fits_at_own_rate(index))


def spares_zeros(walk: Walks, index: int) -> bool:
    """Whether λ takes nothing of weights whose gradient is 0, and something of others.

    For where λ has no one number, which would lead another walk.

    Args:
        walk: makes walks with one λ.
    """
    turning = []
    for how in ({"zeros": "some"}, {"gradient": 0.0}):
        walks = [walk(1, **how, mirrored=mirrored) for mirrored in (False, True)]
        turning.append(_turning(walks, index))
    for removed, idle in zip(*turning, strict=True):
        without = zeroed(tuple(removed.shape), 0)
        most = longest(removed[~without])
        if most > _ROUNDING and min(longest(removed[without]), longest(idle)) < _APART * most:
            return True
    return False


def _turning(walks: Sequence[Walk], index: int) -> list[Tensor]:
    """What one step removes of a group's tensors, as far as it turns with them; the second walk is mirrored."""
    (start, after), (_, mirrored) = (walk.of_group(index) for walk in walks)
    return [(2 * w - one + other) / 2 for w, one, other in zip(start, after, mirrored, strict=True)]


def is_finite(walk: Sequence[Sequence[Tensor]]) -> bool:
    return all(bool(torch.isfinite(w).all()) for weights in walk for w in weights)


def _inner(x: Tensor, y: Tensor) -> float:
    return float((x.conj() * y).sum().real)
