"""Which tensors are looked at in which step: all of them in turn, as many at a time as a budget of bytes allows.

Whose turn it is follows from the number of the step alone, so that a run that is resumed, and every rank of several,
looks at the same tensors in the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError, PlanError
from weightdecay.naming import names_by_parameter
from weightdecay.optim.grouping import HIDDEN_MATRICES, Group, is_matrix
from weightdecay.planning.plan import plan as make_plan
from weightdecay.planning.planned import Plan

_BYTES = 4
"""Of an element: weights are compared in float32."""
BUDGETS = (4 << 20, 64 << 20)
"""Bytes that are held of small and of large models where nobody says how many."""
_BLOCK = 1024
"""Elements that are next to each other, where not all of a tensor are looked at."""


@dataclass(frozen=True)
class Turned:
    """A tensor that takes its turn.

    Attributes:
        role: in words; `unknown` where nothing tells it.
        hidden: whether it is a hidden matrix, of which the theory of noise is expected to hold.
        group: the place of its group.
        elements: of all shards together.
        here: how many of its elements on this rank are looked at, at most.
    """

    name: str
    role: str
    hidden: bool
    tensor: Tensor
    group: int
    elements: int
    here: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def flat(self, tensor: Tensor) -> Tensor:
        """The elements that are looked at, of a tensor that is laid out like this one: all, or evenly spread blocks."""
        return some_of(local(tensor), self.here)


def local(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that lie here, real ones."""
    here = tensor.detach()
    here = here.to_local() if hasattr(here, "to_local") else here
    return torch.view_as_real(here) if here.is_complex() else here


def some_of(tensor: Tensor, count: int) -> Tensor:
    """A tensor flat; of one with more than `count` elements, evenly spread blocks of together no more than that."""
    flat = tensor.reshape(-1)
    if flat.numel() <= count:
        return flat
    blocks, wanted = flat.numel() // _BLOCK, max(count // _BLOCK, 1)
    if blocks <= wanted:
        return flat[:count]
    places = torch.arange(wanted, device=flat.device) * blocks // wanted
    return flat[: blocks * _BLOCK].view(blocks, _BLOCK).index_select(0, places).reshape(-1)


class Rotation:
    """The tensors of one optimizer, in parts that are looked at together.

    Args:
        plan: tells roles; without one, what modules and names tell of them.
        budget: bytes of weights that are held at once; None for an eighth of them, within `BUDGETS`.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], plan: Plan | None, budget: int | None) -> None:
        _refuse_flat(model)
        budget = default_budget(groups) if budget is None else budget
        self._model, self._plan, self._budget = model, plan, budget
        self.known = identities(groups)
        self.tensors = self._tensors(groups)
        self.parts = _packed(self.tensors, budget)

    def part(self, turn: int) -> list[Turned]:
        """Those whose turn it is."""
        return self.parts[turn % len(self.parts)] if self.parts else []

    def _tensors(self, groups: Sequence[Group]) -> list[Turned]:
        names = names_by_parameter(self._model)
        roles = self._roles()
        seen: set[int] = set()
        found = []
        for index, group in enumerate(groups):
            own = group.get("param_names")
            for place, p in enumerate(group["params"]):
                if id(p) in seen or not p.numel() or not p.requires_grad or not _is_weights(p):
                    continue
                seen.add(id(p))
                name = names.get(p) or (own[place] if own else f"group{index}.{place}")
                role = roles.get(name, ("unknown", False))
                size = p.numel() * (2 if p.is_complex() else 1)
                here = max(min(largest_shard(p), self._budget // _BYTES), 1)
                found.append(Turned(name, *role, tensor=p, group=index, elements=size, here=here))
        return found

    def _roles(self) -> dict[str, tuple[str, bool]]:
        """Role in words, and whether it is a hidden matrix."""
        plan = self._plan
        if plan is None:
            try:
                plan = make_plan(self._model, trace=False, unknown="exempt")
            except PlanError:  # a model that no plan can be made of has no roles
                return {}
        return {
            name: (str(tensor.role), HIDDEN_MATRICES.issuperset(tensor.roles) and is_matrix(tensor.shape))
            for tensor in plan
            for name in (tensor.name, *tensor.aliases)
        }


def default_budget(groups: Sequence[Group]) -> int:
    """An eighth of what a rank holds of the weights: what it costs goes with the size of the model, as a step does."""
    least, most = BUDGETS
    return min(max(sum(largest_shard(p) for group in groups for p in group["params"]) * _BYTES // 8, least), most)


def identities(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """What shows that tensors have come or gone."""
    return [tuple(id(p) for p in group["params"]) for group in groups]


def largest_shard(tensor: Any) -> int:
    """Elements of the largest part that a rank holds; every rank knows it alike."""
    sizes: list[int] = list(tensor.shape)
    for axis, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            sizes[placement.dim] = math.ceil(sizes[placement.dim] / tensor.device_mesh.size(axis))
    elements: int = math.prod(sizes) * (2 if tensor.is_complex() else 1)
    return elements


def _is_weights(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout == torch.strided


def _packed(tensors: Sequence[Turned], budget: int) -> list[list[Turned]]:
    """One after the other, a new part where the budget is full."""
    parts: list[list[Turned]] = []
    room = 0
    for tensor in tensors:
        size = tensor.here * _BYTES
        if size > room:
            parts.append([])
            room = budget
        parts[-1].append(tensor)
        room -= size
    return parts


def _refuse_flat(model: nn.Module) -> None:
    """FSDP1 shows flat pieces of each rank, of which neither norm nor angle of a matrix can be told."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise OptimizerError(
            "FullyShardedDataParallel keeps tensors as flat pieces, of which no rank sees a matrix: shard with "
            "torch.distributed.fsdp.fully_shard, or monitor before wrapping on one process"
        )
