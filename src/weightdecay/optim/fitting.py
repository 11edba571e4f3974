"""Whether a tensor's state is of the weights that it stands beside.

`model.to(...)` and `p.data = ...` change weights under an optimizer whose state stays as it was. torch's loops then
stop half way, with some tensors stepped; its fused kernels go by place in memory and write behind a state that is too
small.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.optim.grouping import Group, names_in
from weightdecay.optim.roundings import LOW_PRECISION, Rounding, dtype_name
from weightdecay.optim.work import Work

Shape: TypeAlias = tuple[int, ...]
Dtypes: TypeAlias = tuple[torch.dtype, ...]
# (group, tensor) → name and shape of what the direction remembers of the tensor.
StateShapes: TypeAlias = Callable[[Group, Tensor], Mapping[str, Shape]]

_kind = operator.attrgetter("dtype", "device", "shape")
_gradients_dtype = operator.attrgetter("grad.dtype")


def kinds_of(weights: Sequence[Tensor]) -> list[Any]:
    """What weights and gradients are, and which they are; equal before two steps if nothing was moved between them."""
    return [*map(id, weights), *map(_kind, weights), *map(_gradients_dtype, weights)]


def misfits(one: Work, state_of: Mapping[Any, Mapping[str, Any]], state_shapes: StateShapes) -> Iterator[str]:
    """Tensors of a group whose gradient or state is of other weights, each named, with what to do."""
    names = names_in(one.group)
    for position, p in enumerate(one.group["params"]):
        if p.grad is None:
            continue
        name = f"'{names[position]}'" if names else f"tensor {position}"
        wanted = _wanted(p, one.rounding, state_shapes(one.group, p))
        if p.grad.dtype not in wanted["gradient"][1]:
            widened = " (with a `rounding`, low-precision weights take float32 gradients)"
            yield (
                f"{name} is {dtype_name(p.dtype)} and its gradient {dtype_name(p.grad.dtype)}, in which the direction "
                "would lose digits or stop half way: leave `grad_dtype` of the tensor alone, or cast the gradient "
                f"before the step{widened if p.dtype in LOW_PRECISION else ''}"
            )
            continue

        beside = {"gradient": p.grad, **state_of.get(p, {})}
        for key in [key for key in beside if key in wanted and not _fits(beside[key], p, *wanted[key])][:1]:
            left = " or ".join(f"/{key}" for key, (_, dtypes) in wanted.items() if not dtypes)
            yield (
                f"{name} is {_shown(p)} and its {key} {_shown(beside[key])}: the weights were moved or replaced after "
                "it was made. Move them back; or, if they are to stay so, make a new optimizer of them and give it "
                "this one's state: load_state_by_name(new, state_by_name(this), on_change='override')"
                + (f"; leave out what ends in {left}, which only low precision needs" if left else "")
            )


def _wanted(p: Tensor, rounding: Rounding, shapes: Mapping[str, Shape]) -> dict[str, tuple[Shape, Dtypes]]:
    """The shape and the dtypes in which a step can take the gradient, and each state that it reads."""
    widened = rounding.acts_on(p.dtype)
    dtypes = (torch.float32, *LOW_PRECISION) if widened else (p.dtype,)
    wanted = {key: (shape, dtypes) for key, shape in {"gradient": p.shape, "initial": p.shape, **shapes}.items()}
    # What a rounding remembers of low-precision weights is in no dtype of use to those that are none any more.
    memory = rounding.memory(p.dtype if widened else torch.bfloat16)
    return {**wanted, **{key: (p.shape, (dtype,) if widened else ()) for key, dtype in memory.items()}}


def _fits(kept: Any, p: Tensor, shape: Shape, dtypes: Dtypes) -> bool:
    is_tensor = isinstance(kept, Tensor)
    return not is_tensor or (kept.shape == shape and kept.device == p.device and kept.dtype in dtypes)


def _shown(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} on {tensor.device}"
