"""Operations on tensors without memory: a recorder needs shapes only, so a model of any size can be run whole.

Parameters, and what is computed from them, stand on the meta device. What is known (small inputs, constants, masks,
positions) stays on the CPU and is computed there, so that a forward may ask for its values. Where both meet, the result
has a shape and no values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from weightdecay.planning.evidence.budget import tensors_in

_META = torch.device("meta")


def run_without_values(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation's result for a copy whose parameters stand on the meta device; with values if all it takes has."""
    tensors = tensors_in([*args, *kwargs.values()])
    if not any(tensor.is_meta for tensor in tensors):
        if not tensors and kwargs.get("device") == _META:
            kwargs = {**kwargs, "device": torch.device("cpu")}  # a constant: its values cost nothing
        return operation(*args, **kwargs)

    if _is_written(operation, args) and not args[0].is_meta:
        return args[0]  # values that are not known cannot be written into ones that are
    moved, named = [_moved(value) for value in args], {name: _moved(value) for name, value in kwargs.items()}
    try:
        return operation(*moved, **named)
    except RuntimeError:
        # Kernels for half precision alone (experts' grouped products) check it even where there are shapes only.
        if _is_written(operation, args) or not any(tensor.dtype is torch.float32 for tensor in tensors_in(moved)):
            raise
        halves = [_as(torch.bfloat16, value) for value in moved]
        return _as(torch.float32, operation(*halves, **named))


@contextlib.contextmanager
def autocast_as_on_the_cpu() -> Iterator[None]:
    """`torch.autocast(x.device.type)` stands in many a forward, and torch refuses it for the meta device."""
    original: Any = torch.autocast.__init__

    def begin(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    torch.autocast.__init__ = begin  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = original  # type: ignore[method-assign]


def _is_written(operation: Any, args: Sequence[Any]) -> bool:
    first = operation._schema.arguments[0] if operation._schema.arguments else None
    is_written = first is not None and first.alias_info is not None and first.alias_info.is_write
    return bool(is_written) and isinstance(args[0] if args else None, torch.Tensor)


def _as(dtype: torch.dtype, value: Any) -> Any:
    """The same in another precision, where it is a tensor of single or half."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.dtype in (torch.float32, torch.bfloat16) else value
    return type(value)(_as(dtype, item) for item in value) if type(value) in (list, tuple) else value


def _moved(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value if value.is_meta else value.to(_META)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item) for item in value)
    return _META if isinstance(value, torch.device) else value
