"""A batch that the user gave: what it may be, how a copy of the model takes it, and what is said where it does not."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightdecay.planning.evidence.runnable_copy import copied, single

Batch = torch.Tensor | Mapping[str, Any] | Sequence[Any]

_HERE, _TORCH = Path(__file__).parent, Path(torch.__file__).parent


class BatchWarning(UserWarning):
    """A batch that was given does not go through the model: what tensors do was seen without it."""


def batch_faults(batch: object) -> list[str]:
    """What is wrong with it before anything is run."""
    takes = "a tensor, the forward's positional arguments as a tuple, or its keywords as a mapping"
    if isinstance(batch, Mapping):
        odd = [repr(key) for key in batch if not isinstance(key, str)]
        return [f"batch has the key {', '.join(odd[:3])}: a mapping holds the forward's keywords"] if odd else []
    if isinstance(batch, torch.Tensor) or (isinstance(batch, Sequence) and not isinstance(batch, str | bytes)):
        return []
    return [f"batch is {type(batch).__name__}: give {takes}; one object that the forward takes as (batch,)"]


def as_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments and keywords of the forward."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, list | tuple) else ((batch,), {})


def for_a_copy(batch: Any) -> Any:
    """The batch where and in the precision in which a copy runs; the user's own tensors stay as they are."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(batch):
        own = tensor.detach()
        moved = torch.zeros(own.shape, dtype=own.dtype) if own.is_meta else own.to("cpu", copy=True)
        memo[id(tensor)] = moved.to(single(moved.dtype))
    return copied(batch, memo)


def named_tensors(value: Any, depth: int = 6) -> list[tuple[str, torch.Tensor]]:
    """The tensors in a batch or in a forward's output, with the path to each; also in objects that hold some."""
    found: list[tuple[str, torch.Tensor]] = []
    waiting = [("", value, depth)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, torch.Tensor):
            found.append((name, value))
            continue
        if not depth or isinstance(value, str | type | nn.Module):
            continue

        inside: list[tuple[str, Any, int]] = []
        if isinstance(value, Mapping):
            for key, item in value.items():
                inside.append((f"{name}.{key}", item, depth - 1))
        elif isinstance(value, list | tuple | set):
            for index, item in enumerate(value):
                inside.append((f"{name}.{index}", item, depth - 1))
        elif hasattr(value, "__dict__") and not callable(value):
            inside.append((name, vars(value), depth - 1))
        waiting += reversed(inside)
    return found


def what_went_wrong(error: BaseException, copy: nn.Module) -> str:
    """The exception's type, its message and its place.

    The place is the innermost module of the copy that was running, and the innermost line that is not torch's or ours;
    where no such line ran, as with missing arguments, the line where the forward begins.
    """
    said = f"{type(error).__name__}: {' '.join(str(error).split()) or 'without a message'}"
    frames = list(traceback.walk_tb(error.__traceback__))
    names = {id(module): f"`{name}`, a {type(module).__name__}" for name, module in copy.named_modules() if name}
    running = [names[id(frame.f_locals.get("self"))] for frame, _ in frames if id(frame.f_locals.get("self")) in names]
    lines = [(frame.f_code, line) for frame, line in frames if _is_users(frame.f_code.co_filename)]
    forward = getattr(type(copy).forward, "__code__", None)
    if not lines and not running and forward is not None:
        lines = [(forward, forward.co_firstlineno)]

    where = [f"{code.co_filename}:{line}, in {code.co_name}" for code, line in lines[-1:]]
    place = "; ".join([*(f"in {module}" for module in running[-1:]), *where])
    return f"{said} ({place})" if place else said


def _is_users(file: str) -> bool:
    path = Path(file)
    return not (path.is_relative_to(_TORCH) or path.is_relative_to(_HERE) or file.startswith("<"))
