"""Whether a tensor's state is of the weights that it stands beside.

`model.to(...)` and `p.data = ...` change weights under an optimizer whose state stays as it was. torch's loops then
stop half way, with some tensors stepped; its fused kernels go by place in memory and write behind a state that is too
small.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.roundings import COUNTS, LOW_PRECISION, Rounding, dtype_name
from weightdecay.optim.work import Work

# Means over an axis, in an order of axes that is their direction's matter: only as far as they lie elsewhere do they
# not fit; what has a number for each weight stands beside them where shapes can differ.
_NEURONS = "second_momentum_buffer"
_FACTORS = {"row_var": -1, "col_var": -2}
_NAMES = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "variance", "initial", _NEURONS, *_FACTORS}

_kind = operator.attrgetter("dtype", "device", "shape")
_gradients_dtype = operator.attrgetter("grad.dtype")


def kinds_of(weights: Sequence[Tensor]) -> list[Any]:
    """What weights and gradients are, and which they are; equal before two steps if nothing was moved between them."""
    return [*map(id, weights), *map(_kind, weights), *map(_gradients_dtype, weights)]


def misfits(one: Work, state_of: Mapping[Any, Mapping[str, Any]]) -> Iterator[str]:
    """Tensors of a group whose gradient or state is of other weights, each named, with what to do."""
    names = one.group.get("param_names")
    for position, p in enumerate(one.group["params"]):
        if p.grad is None:
            continue
        name = f"'{names[position]}'" if names else f"tensor {position}"
        if p.grad.dtype not in _dtypes("gradient", p, one.rounding):
            widened = " (with a `rounding`, low-precision weights take float32 gradients)"
            yield (
                f"{name} is {dtype_name(p.dtype)} and its gradient {dtype_name(p.grad.dtype)}, in which the direction "
                "would lose digits or stop half way: leave `grad_dtype` of the tensor alone, or cast the gradient "
                f"before the step{widened if p.dtype in LOW_PRECISION else ''}"
            )
            continue
        state = state_of.get(p, {})
        beside = [("gradient", p.grad)] if p.grad.shape != p.shape or p.grad.device != p.device else []
        beside += [(key, kept) for key, kept in state.items() if not _fits(key, kept, p, one.rounding)]
        if beside:
            key, kept = beside[0]
            # What a rounding remembers is of no use to weights that it does not act on.
            idle = () if one.rounding.acts_on(p.dtype) else one.rounding.memory(torch.bfloat16)
            left = " or ".join(f"/{key}" for key in idle)
            yield (
                f"{name} is {_shown(p)} and its {key} {_shown(kept)}: the weights were moved or replaced after it was "
                "made. Move them back; or, if they are to stay so, make a new optimizer of them and give it this one's "
                "state: load_state_by_name(new, state_by_name(this), on_change='override')"
                + (f"; leave out what ends in {left}, which only low precision needs" if left else "")
            )


def _fits(key: str, kept: Any, p: Tensor, rounding: Rounding) -> bool:
    if not isinstance(kept, Tensor) or key in COUNTS:
        return True
    memory = rounding.memory(p.dtype) if rounding.acts_on(p.dtype) else {}
    if key not in memory and key in rounding.memory(torch.bfloat16):
        return False  # what it remembers of low-precision weights, which these are no more
    if key not in memory and key not in _NAMES:
        return True  # no step of this optimizer reads it

    shape = list(p.shape)
    if key in _FACTORS and len(shape) > 1:
        shape[_FACTORS[key]] = 1
    if key != _NEURONS and list(kept.shape) != shape:
        return False
    return kept.device == p.device and kept.dtype in _dtypes(key, p, rounding)


def _dtypes(key: str, p: Tensor, rounding: Rounding) -> tuple[torch.dtype, ...]:
    """The dtypes in which a step can take this state, or the gradient."""
    if rounding.acts_on(p.dtype):
        remembered = rounding.memory(p.dtype).get(key)
        return (torch.float32, *LOW_PRECISION) if remembered is None else (remembered,)  # widened where it is to be
    return (p.dtype, torch.promote_types(p.dtype, torch.float32)) if key == _NEURONS else (p.dtype,)


def _shown(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} on {tensor.device}"
