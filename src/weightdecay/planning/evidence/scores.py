"""Products of a parameter with the input, followed to where they are weighed against each other.

`softmax(q @ kᵀ)` over what the input gave tells a learned query from a matrix, which is multiplied in the same way.
Which axes of a product the input gave is followed through all that only changes its form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

from weightdecay.planning.evidence.origins import Argument
from weightdecay.planning.evidence.uses import FORM, PRODUCTS

SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
_LEFT, _RIGHT = frozenset({"self", "mat1", "batch1"}), frozenset({"mat2", "batch2"})
_KEEP = frozenset({"mul", "div", "add", "sub", "masked_fill", "where"})  # scaled, and with masks
_TURN = frozenset({"t", "transpose", "permute"})
_REGROUP = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"})

Axes = frozenset[int]
"""Counted from the end: -1 is the last."""


def scored(name: str, args: Sequence[Any], arguments: Sequence[Argument], shape: tuple[int, ...]) -> Mapping[str, Axes]:
    """For parameters that a result is a product of, its axes along which the input lies; none if that was lost."""
    if name in PRODUCTS:
        return _of_product(arguments)
    before = next((a for a in arguments if a.origin.scored), None)
    if before is None or not (name in FORM or name in _KEEP):
        return {}
    form = tuple(before.tensor.shape)
    return {parameter: _moved(name, args, axes, form, shape) for parameter, axes in before.origin.scored.items()}


def attended(args: Sequence[Any], argument: Argument) -> list[str]:
    """Of the parameters in a softmax those whose products it weighs as attention does, along its last axis."""
    axis = args[1] - argument.tensor.dim() if args[1] >= 0 else args[1]
    return [parameter for parameter, axes in argument.origin.scored.items() if axis == -1 and axis in axes]


def _of_product(arguments: Sequence[Argument]) -> dict[str, Axes]:
    factors = [a for a in arguments if a.slot in _LEFT | _RIGHT]
    # What mixes the scores of several heads is no query of theirs.
    if not any(a.origin.live and a.origin.trait != "scores" for a in factors):
        return {}
    return {
        parameter: frozenset({-1 if own.slot in _LEFT else -2})
        for own in factors
        if not own.origin.live
        for parameter, through in own.origin.parameters.items()
        if PRODUCTS.isdisjoint(through)  # what a layer made of tokens is told by how they met the layer
    }


def _moved(name: str, args: Sequence[Any], axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    """Where axes are afterwards; none if that is not known."""
    count = len(before)
    if name in _TURN:
        order = list(range(count))
        if name == "permute":
            order = [axis % count for axis in args[1]]
        else:
            first, second = (axis % count for axis in (args[1:3] if name == "transpose" else (0, 1)))
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
