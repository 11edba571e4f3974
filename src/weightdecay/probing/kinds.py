"""Which groups and tensors of an optimizer are tried for all: one of each kind.

A tensor's kind is what an optimizer may treat apart and a small tensor can show: its class and dtype, the number of
axes, which of them have length 1, and its marks, which are all that hangs on it or is kept for it. A group's kind is
its options and the kinds of its tensors. What is not seen: tensors that an optimizer treats apart by their number of
elements, by what their names mean or by their group's place.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightdecay.probing.marks import Marks, marks

Group = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One group of each kind, with the places of one tensor of each kind in it.

    Attributes:
        groups: those that are tried.
        tensors: for each of them the places of its tensors that are tried.
        places: for each of them its place among all groups.
        stands_for: for each of all groups, which of those that are tried has its kind.
        params: every parameter of the optimizer, tried or not, by its id.
        shapes, dtypes: theirs; a tensor of such a shape is cut like them.
        kept: of containers with an item for each tensor, by their id, the places of the items that are kept.
        functions: ids of functions whose closures keep something of single tensors.
    """

    groups: list[Group]
    tensors: list[list[int]]
    places: list[int]
    stands_for: list[int]
    params: dict[int, Tensor]
    shapes: set[torch.Size]
    dtypes: set[torch.dtype]
    kept: dict[int, list[int]]
    functions: set[int]


def sample(
    optimizer: torch.optim.Optimizer, groups: Sequence[Group] | None = None, *, numbers_apart: bool = True
) -> Sample:
    """One of each kind of an optimizer's groups.

    Args:
        groups: others in place of the optimizer's own.
        numbers_apart: whether groups that differ in numbers alone are of two kinds.
    """
    every = optimizer.param_groups if groups is None else groups
    params = {id(p): p for group in every for p in group["params"]}
    told = marks(optimizer, every)
    chosen = [_one_of_each_kind(group["params"], told) for group in every]
    if numbers_apart and _keeps_lists_beside(optimizer, len(every)):
        kinds: list[Any] = list(range(len(every)))
    else:
        kinds = [
            (options(group, numbers_apart=numbers_apart), frozenset(own), _begun(optimizer, group, own.values()))
            for group, own in zip(every, chosen, strict=True)
        ]

    # The largest of a kind: a small tensor may have as many elements as its own, and no more.
    places: dict[Any, int] = {}
    for index, kind in enumerate(kinds):
        if kind not in places or _size(every[places[kind]]) < _size(every[index]):
            places[kind] = index
    tried = sorted(places.values())
    order = {kind: tried.index(place) for kind, place in places.items()}
    tensors = [sorted(chosen[place].values()) for place in tried]
    return Sample(
        groups=[every[place] for place in tried],
        tensors=tensors,
        places=tried,
        stands_for=[order[kind] for kind in kinds],
        params=params,
        shapes={p.shape for p in params.values()},
        dtypes={p.dtype for p in params.values()},
        kept=_kept(told, [len(group["params"]) for group in every], dict(zip(tried, tensors, strict=True))),
        functions=told.functions,
    )


def _kept(told: Marks, sizes: Sequence[int], tensors: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """The places of the tensors that are tried, by group, within the lists that have an item for each."""
    starts = [0, *itertools.accumulate(sizes)]
    of_all = [starts[place] + index for place, own in tensors.items() for index in own]
    return {key: of_all if place is None else tensors.get(place, []) for key, place in told.cut.items()}


def options(group: Group, *, numbers_apart: bool = True) -> tuple[Any, ...]:
    """What a group says beside its tensors, to be compared and hashed."""
    beside = {"params", "param_names"} if numbers_apart else {"params", "param_names", "name"}
    return tuple((key, _comparable(value, numbers_apart)) for key, value in group.items() if key not in beside)


def _comparable(value: Any, numbers_apart: bool) -> Any:
    if isinstance(value, bool | str) or value is None:
        return value
    if not numbers_apart:
        return type(value)
    if isinstance(value, int | float):
        return type(value), value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.dtype, float(value.detach())
    if type(value) in (tuple, list):
        return type(value), tuple(_comparable(item, numbers_apart) for item in value)
    return id(value)  # of which nobody knows when two are equal


def _one_of_each_kind(params: Sequence[Tensor], told: Marks) -> dict[Any, int]:
    """The places of one tensor of each kind, the largest; which comes first in the group does not matter."""
    chosen: dict[Any, int] = {}
    sizes: dict[Any, int] = {}
    for index, p in enumerate(params):
        kind = (type(p), p.dtype, tuple([n == 1 for n in p.shape]), told.of.get(id(p)))
        if p.numel() > sizes.get(kind, -1):
            chosen[kind], sizes[kind] = index, p.numel()
    return chosen


def _begun(optimizer: torch.optim.Optimizer, group: Group, places: Any) -> tuple[Any, ...]:
    """How far the tensors of a group have come: groups that were added later stand at another step."""
    states = (optimizer.state.get(group["params"][place]) for place in sorted(places))
    return tuple(
        tuple((str(key), _comparable(value, True)) for key, value in state.items() if _is_scalar(value))
        if isinstance(state, Mapping)
        else None
        for state in states
    )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def _keeps_lists_beside(optimizer: torch.optim.Optimizer, count: int) -> bool:
    """Whether it holds something for each group in a list of its own, which would not fit fewer groups."""
    beside = (value for key, value in vars(optimizer).items() if key != "param_groups")
    return any(isinstance(value, list | tuple) and len(value) == count for value in beside)


def _size(group: Group) -> int:
    return sum(p.numel() for p in group["params"])
