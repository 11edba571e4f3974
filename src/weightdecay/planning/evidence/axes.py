"""The axes of tensors: where they go when a form changes, and how one tensor lies in another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any, NamedTuple

_TURN = frozenset({"t", "transpose", "permute"})
_REGROUP = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"})

Axes = frozenset[int]
"""Counted from the end: -1 is the last."""


class Change(NamedTuple):
    """One change of form: torch's own name for it, the axes that it was told, and both shapes."""

    name: str
    told: Sequence[Any]
    before: tuple[int, ...]
    after: tuple[int, ...]


LOST = Change("", (), (), ())
"""After more changes than are followed nothing is known."""


def moved(axes: Axes, changes: Iterable[Change]) -> Axes:
    """Where these axes are after the changes; none if that is not known."""
    for change in changes:
        axes = frozenset() if change is LOST else _moved(axes, *change)
    return axes


def _moved(axes: Axes, name: str, told: Sequence[Any], before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    count = len(before)
    if name in _TURN:
        order = list(range(count))
        if name == "permute":
            order = [axis % count for axis in told[0]]
        else:
            first, second = (axis % count for axis in (told[:2] if name == "transpose" else (0, 1)))
            order[first], order[second] = second, first
        return frozenset(place - count for place, axis in enumerate(order) if axis - count in axes)
    if name in _REGROUP:
        return _regrouped(axes, before, after)
    return axes if len(after) >= count and after[-1:] == before[-1:] else frozenset()


def _regrouped(axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    """Axes that were joined or parted: those between the same two places of the elements' order belong together."""
    ends, other = (list(accumulate(reversed(shape), mul)) for shape in (before, after))
    cuts = sorted({1, *ends} & {1, *other})
    found = set()
    for low, high in pairwise(cuts):
        inside = {-1 - place for place, end in enumerate(ends) if low < end <= high and before[-1 - place] > 1}
        if inside and inside <= axes:
            found |= {-1 - place for place, end in enumerate(other) if low < end <= high and after[-1 - place] > 1}
    return frozenset(found)


def varying(form: Sequence[int]) -> Axes:
    """The axes along which a tensor of this form varies."""
    return frozenset([place - len(form) for place, size in enumerate(form) if size > 1])


def geometry(own: tuple[int, ...], result: tuple[int, ...], partner: tuple[int, ...]) -> str:
    """How a tensor lies in a result that it was broadcast to.

    number and vector: it varies over no axis, or one. Of those that vary over more, outer: its partner is itself
    repeated along one of them; patch: it is repeated within; repeated: it fills the last axes and is repeated over at
    least two before them; grid: the rest.
    """
    mine, whole, other = own[::-1], result[::-1], partner[::-1]
    varies = [axis for axis, size in enumerate(mine) if size > 1]
    if len(varies) < 2:
        return ("number", "vector")[len(varies)]
    if any(axis >= len(other) or other[axis] == 1 for axis in varies) and len(whole) == max(len(mine), len(other)):
        return "outer"
    last = varies[-1]
    if any(mine[axis] == 1 and whole[axis] > 1 for axis in range(min(last, len(whole)))):
        return "patch"
    return "repeated" if sum(size > 1 for size in whole[last + 1 :]) > 1 else "grid"
