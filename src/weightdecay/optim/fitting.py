"""Whether a tensor's state is of the weights that it stands beside, and of an optimizer such as this one.

`model.to(...)` and `p.data = ...` change weights under an optimizer whose state stays as it was, and whoever loads,
prunes or offloads puts other state in its place. torch's loops then stop half way, with some tensors stepped; its fused
kernels go by place in memory and write behind a state that is too small.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, repeat
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.amounts import number
from weightdecay.optim.grouping import Group, called
from weightdecay.optim.roundings import COUNTS, LOW_PRECISION, ROUNDED, STREAM, Rounding, dtype_name
from weightdecay.optim.work import Work

Shape: TypeAlias = tuple[int, ...]
Dtypes: TypeAlias = tuple[torch.dtype, ...]
# (group, tensor) → name and shape of what the direction remembers of the tensor.
StateShapes: TypeAlias = Callable[[Group, Tensor], Mapping[str, Shape]]

# State that is kept with a setting alone, and stays where it is when somebody switches that off.
_WITH_A_SETTING = {
    "exp_avg": "beta1", "max_exp_avg_sq": "amsgrad", "momentum_buffer": "momentum", "grad_avg": "centered",
    "second_momentum_buffer": "neuron_beta2", "initial": "rule", "master": "rounding", "compensation": "rounding",
    ROUNDED: "rounding", STREAM: "rounding",
}  # fmt: skip

_kind = operator.attrgetter("dtype", "device", "shape")
_gradients_dtype = operator.attrgetter("grad.dtype")


def kinds_of(weights: Sequence[Tensor]) -> list[Any]:
    """What weights and gradients are, and which they are; equal before two steps if nothing was moved between them."""
    return [*map(id, weights), *map(_kind, weights), *map(_gradients_dtype, weights)]


def places_of(state: Mapping[Any, Any]) -> list[int | None]:
    """Which tensors all state is, and how many bytes: equal before two steps if none was put in another's place."""
    try:
        kept = list(chain.from_iterable(map(operator.methodcaller("values"), state.values())))
    except AttributeError:  # others keep numbers of their own beside it
        kept = [value for one in state.values() if isinstance(one, Mapping) for value in one.values()]
    return [*map(id, kept), *map(getattr, kept, repeat("nbytes"), repeat(None))]


def is_left_over(key: str, group: Mapping[str, Any]) -> bool:
    """Whether state that nothing reads may be what a setting of the group left when it was switched off."""
    return _WITH_A_SETTING.get(key) in group


def count_fault(value: Any) -> str:
    """Why this is no count of steps; empty if it is one."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a count of steps has one number, this has {value.numel()}"
    count = number(value)
    if count is None or not math.isfinite(count) or count < 0 or count != int(count):
        return f"{value if count is None else f'{count:g}'} is no count of steps: it is damaged"
    return ""


def misfits(
    one: Work, state_of: Mapping[Any, Mapping[str, Any]], state_shapes: StateShapes, wide: AbstractSet[str]
) -> Iterator[str]:
    """Tensors of a group whose gradient or state is of other weights, each named, with what to do."""
    for position, p in enumerate(one.group["params"]):
        if p.grad is None:
            continue
        name = called(one.group, position)
        shapes = state_shapes(one.group, p)
        wanted = _wanted(p, one.rounding, shapes, wide)
        if p.grad.dtype not in wanted["gradient"][1]:
            widened = " (with a `rounding`, low-precision weights take float32 gradients)"
            yield (
                f"{name} is {dtype_name(p.dtype)} and its gradient {dtype_name(p.grad.dtype)}, in which the direction "
                "would lose digits or stop half way: leave `grad_dtype` of the tensor alone, or cast the gradient "
                f"before the step{widened if p.dtype in LOW_PRECISION else ''}"
            )
            continue

        beside = {"gradient": p.grad, **state_of.get(p, {})}
        lacking = [key for key in shapes if beside.get(key, p) is None]  # which is told, or begins with this step
        unfit = [key for key in beside if key in wanted and not _fits(beside[key], p, *wanted[key])]
        unfit += [key for key in COUNTS if key in beside and not _counts(beside[key])]
        for key in [key for key in unfit if key not in lacking][:1]:
            left = " or ".join(f"/{key}" for key, (_, dtypes) in wanted.items() if not dtypes)
            yield (
                f"{name} is {_shown(p)} and its {key} {_shown(beside[key])}: the weights were moved or replaced after "
                "it was made, or another was put in its place, or the rounding changed. Move them back; or, if they "
                "are to stay so, make a new optimizer of them and give it this one's state: "
                "load_state_by_name(new, state_by_name(this), on_change='override')"
                + (f"; leave out what ends in {left}, which only low precision needs" if left else "")
            )


def _wanted(
    p: Tensor, rounding: Rounding, shapes: Mapping[str, Shape], wide: AbstractSet[str]
) -> dict[str, tuple[Shape, Dtypes]]:
    """The shape and the dtypes in which a step can take the gradient, and each state that it reads."""
    widened = rounding.acts_on(p.dtype)
    dtypes = (torch.float32, *LOW_PRECISION) if widened else (p.dtype,)
    wanted = {key: (shape, dtypes) for key, shape in {"gradient": p.shape, "initial": p.shape, **shapes}.items()}
    wanted |= {key: (shapes[key], (torch.promote_types(p.dtype, torch.float32),)) for key in wide & shapes.keys()}
    # What a rounding remembers of low-precision weights is in no dtype of use to those that are none any more.
    memory = rounding.memory(p.dtype if widened else torch.bfloat16)
    return {**wanted, **{key: (p.shape, (dtype,) if widened else ()) for key, dtype in memory.items()}}


def _fits(kept: Any, p: Tensor, shape: Shape, dtypes: Dtypes) -> bool:
    fits = isinstance(kept, Tensor) and kept.shape == shape and kept.device == p.device
    return fits and kept.dtype in dtypes


def _counts(kept: Any) -> bool:
    """Whether a step can count on in this: in low precision it would stop at 256, or at 2048."""
    return isinstance(kept, Tensor) and kept.numel() == 1 and kept.dtype not in LOW_PRECISION


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}, {value!r:.40}"
    return f"{dtype_name(value.dtype)} {tuple(value.shape)} on {value.device}"
