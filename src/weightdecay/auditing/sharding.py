"""What processes that hold parts of one tensor do together: sums over its shards, and decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weightdecay.errors import OptimizerError

_ALONE = ContextVar("alone", default=False)
_SPEAKING = ("c10d", "_c10d_functional", "_c10d_functional_autograd")


class CommunicatesError(OptimizerError):
    """A step speaks with other processes about tensors that are not distributed ones, whose parts could be told."""


class _Silence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to speak with other processes, which do not listen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "namespace", "") in _SPEAKING:
            raise CommunicatesError(
                f"it speaks with other processes ({func}), which take no part: audit it where all of them call"
            )
        if any(hasattr(kind, "_spec") or kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # a distributed tensor shows first what it says to others
        return func(*args, **(kwargs or {}))


@contextmanager
def alone() -> Iterator[None]:
    """In here no other process takes part: of distributed tensors the parts that lie here stand for all of them, and
    what speaks with others is refused before it does.
    """
    before = _ALONE.set(True)
    try:
        if dist.is_available() and dist.is_initialized():
            with _Silence():  # type: ignore[no-untyped-call]
                yield
        else:
            yield
    finally:
        _ALONE.reset(before)


def is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def added_over_shards(moments: Tensor, of: Tensor) -> Tensor:
    """Moments of the numbers that lie here, added over all processes that hold a part of the tensor."""
    if not is_distributed(of) or _ALONE.get():
        return moments
    distributed: Any = of
    mesh = distributed.device_mesh
    for dimension, placement in enumerate(distributed.placements):
        dist.all_reduce(moments, group=mesh.get_group(dimension))
        if placement.is_replicate():
            moments = moments / mesh.size(dimension)
    return moments


def agreed(decision: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether any process decides so; steps are collective, and all must make the same ones."""
    return agreed_each([decision], tensors)[0]


def agreed_each(decisions: Sequence[bool], tensors: Iterable[Tensor]) -> list[bool]:
    """The same of several decisions."""
    return [bool(most) for most in largest_each([float(decision) for decision in decisions], tensors)]


def largest_each(numbers: Sequence[float], tensors: Iterable[Tensor]) -> list[float]:
    """Of each number the largest that any process has; theirs are of the parts that lie with them."""
    distributed: Any = next((tensor for tensor in tensors if is_distributed(tensor)), None)
    if distributed is None or not numbers or _ALONE.get():
        return list(numbers)
    most = torch.tensor(numbers, dtype=torch.float64, device=distributed.to_local().device)
    for dimension in range(distributed.device_mesh.ndim):
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=distributed.device_mesh.get_group(dimension))
    return [float(number) for number in most]
