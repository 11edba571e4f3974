"""The state that an optimizer keeps, seen on a small twin, and what of a saved state does not fit it, or any run.

Moments that a file, a cast or a merge has damaged are taken by every kernel: a second moment that became 0 in float16
makes the next step 1e8 times too large, a step that is lost undoes the bias correction.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.fitting import count_fault
from weightdecay.optim.roundings import COUNTS, STREAM, dtype_name
from weightdecay.optim.state.settings import Change
from weightdecay.probing.kinds import options
from weightdecay.probing.progress import stepped_state

State = Mapping[str, Any]

_AXES = 7  # of a small tensor at most: more would make it a large one

# Means of squares that an optimizer divides by, as torch's optimizers and ours name them, and the mean of gradients
# that each divides.
_DIVIDED = {
    "exp_avg_sq": "exp_avg",
    "max_exp_avg_sq": "exp_avg",
    "exp_inf": "exp_avg",
    "variance": "exp_avg",
    "row_var": "exp_avg",
    "col_var": "exp_avg",
    "second_momentum_buffer": "momentum_buffer",
}
_SQUARES = {*_DIVIDED, "square_avg", "acc_delta", "sum"}
_PRODUCT = "mu_product"  # NAdam's, of all momenta so far; after many steps float32 has none but 0 for it
# What only steps leave; Adagrad's `sum` begins at a value of the user's.
_LEFT_BY_STEPS = (*_DIVIDED, *dict.fromkeys(_DIVIDED.values()), "square_avg", "acc_delta", "grad_avg")


@dataclass
class Expected:
    """One of an optimizer's tensors, and the state that the optimizer keeps of it.

    Attributes:
        group: the settings with which it goes on.
        kept: the state that one step leaves for a small tensor of its kind.
        is_known: whether that can be: not of optimizers that are neither torch's nor ours, or that make no step.
    """

    name: str
    p: Tensor
    group: Mapping[str, Any]
    kept: State
    is_known: bool


def expected_states(
    optimizer: torch.optim.Optimizer, named: Mapping[Tensor, str], settings: Sequence[Mapping[str, Any]]
) -> list[Expected]:
    """Each of the tensors that are named, with the state that is kept of it.

    Args:
        settings: for each group what it has instead of its own.
    """
    # torch's and ours depend on nothing but the tensor's shape, dtype and group; all of LBFGS's lies with the first.
    step = inspect.unwrap(type(optimizer).step)  # torch wraps it, for hooks
    ours = step.__module__.partition(".")[0] in ("torch", "weightdecay")
    known = ours and not isinstance(optimizer, torch.optim.LBFGS)
    expected: list[Expected] = []
    of_kind: dict[Any, State | None] = {}
    for own, other in zip(optimizer.param_groups, settings, strict=True):
        group = {**own, **other}
        deciding = _deciding(group)
        for p in group["params"]:
            shape = _small_shape(group, p)
            kind = (deciding, shape, p.dtype, p.device)
            if kind not in of_kind:
                seen = known and len(shape) == p.ndim
                of_kind[kind] = stepped_state(optimizer, group, shape, p.dtype, p.device) if seen else None
            kept = of_kind[kind]
            expected.append(Expected(named[p], p, group, kept or {}, is_known=kept is not None))
    return expected


def _deciding(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a group decides which state its tensors have; of λ and lr only whether there is any."""
    rates = {"lr", "weight_decay", "peak_lr", "initial_lr", "lr_multiplier", "decay_multiplier"}
    return options({key: bool(value) if key in rates else value for key, value in group.items() if key != "name"})


def fitting_faults(optimizer: str, one: Expected, state: State) -> list[str]:
    """Keys and shapes that are not the optimizer's."""
    name, kept = one.name, one.kept
    present = {key for key, value in state.items() if value is not None}
    if not present:
        return []
    faults = [f"{name}/{key}: {optimizer} has no such state; it is another optimizer's" for key in present - {*kept}]
    missing = kept.keys() - present - {STREAM}  # a tensor without one, as of older files, begins another
    faults += [f"{name}/{key}: {optimizer} needs it and it is missing" for key in missing]
    for key in present & kept.keys():
        shape, wanted = tuple(getattr(state[key], "shape", ())), _scaled_shape(kept[key], one)
        if wanted is not None and shape != wanted:
            faults.append(f"{name}/{key}: saved with shape {shape}, this model needs {wanted}")
    return sorted(faults)


def dtype_changes(one: Expected, state: State) -> tuple[list[Change], list[str]]:
    """State that was saved in another dtype than the optimizer keeps, and what cannot be had in its dtype at all.

    Counts are no matter of choice: they are converted where no digit is lost.
    """
    found, faults = [], []
    for key, kept in one.kept.items():
        value = state.get(key)
        if not isinstance(value, Tensor) or not isinstance(kept, Tensor) or value.dtype == kept.dtype:
            continue
        numbers = all(one.is_floating_point() or one.is_complex() for one in (value, kept))
        alike = numbers and value.is_complex() == kept.is_complex()
        if key not in COUNTS and alike:
            found.append(Change(one.name, f"dtype of {key}", dtype_name(value.dtype), dtype_name(kept.dtype)))
        elif (
            value.ndim > 0
            or value.is_complex()
            or not bool(((back := value.to(kept.dtype).to(value.dtype)) == value) | (back != back))
        ):
            saved, wanted = dtype_name(value.dtype), dtype_name(kept.dtype)
            faults.append(f"{one.name}/{key}: saved as {saved}, which {wanted} cannot hold")
    return found, faults


def _small_shape(group: Mapping[str, Any], p: Tensor) -> tuple[int, ...]:
    """A small shape of p's kind, with a prime for each axis: as wide or tall as p, and of as many stacked matrices.

    As no two are equal, the axes of a state tell which of the tensor's they are, and so what they are for the real one.
    """
    stacked = group.get("stacked", 1)
    primes = (n for n in count(stacked + 1) if n > 1 and all(n % below for below in range(2, math.isqrt(n) + 1)))
    shape = list(islice(primes, min(p.ndim, _AXES)))
    if p.ndim > 1 and p.shape[-2] >= stacked * p.shape[-1]:
        shape[-2:] = shape[:-3:-1]
    if stacked > 1:
        shape[-2] *= stacked
    return tuple(shape)


def _scaled_shape(kept: Any, one: Expected) -> tuple[int, ...] | None:
    """The small shape with the tensor's sizes in the place of the primes; None where an axis is neither its nor 1."""
    p, stacked, small = one.p, one.group.get("stacked", 1), _small_shape(one.group, one.p)
    sizes = {1: 1, stacked: stacked, **dict(zip(small, p.shape, strict=False))}
    if stacked > 1:
        sizes[small[-2] // stacked] = p.shape[-2] // stacked
    shape = tuple(getattr(kept, "shape", ()))
    return tuple(sizes[n] for n in shape) if all(n in sizes for n in shape) else None


# --- damage


def impossible(one: Expected, state: State) -> Iterator[str]:
    """What is wrong with one tensor's state, each with tensor and key."""
    name = one.name
    for key in sorted(state, key=str):
        value = state[key]
        if key in COUNTS:
            if fault := count_fault(value):
                yield f"{name}/{key}: {fault}"
            continue
        if not isinstance(value, Tensor) or not value.numel() or not (value.is_floating_point() or value.is_complex()):
            continue
        value = torch.view_as_real(value) if value.is_complex() else value
        value = value.float() if value.dtype.itemsize == 1 else value  # of float8 torch compares nothing
        low, high = value.aminmax()  # NaN comes through
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"{name}/{key}: it is not finite: a run that left it so has diverged, go back to an earlier state"
        elif key == _PRODUCT and not (float(low) >= 0 and float(high) <= 1):
            yield f"{name}/{key}: a product of numbers from 0 to 1, and {float(low):g}: it is damaged"
        elif key in _SQUARES and not state[key].is_complex() and float(low) < 0:
            yield f"{name}/{key}: a mean of squares, and down to {float(low):g}: it is damaged"
        elif (
            key in _DIVIDED
            and float(low) == 0
            and _has_lost_squares(
                value, state.get(_DIVIDED[key]), one.group, getattr(one.kept.get(key), "dtype", value.dtype)
            )
        ):
            yield (
                f"{name}/{key}: 0 where {_DIVIDED[key]} is not, so the next step would be far too large: it is damaged "
                "(saved in float16?)"
            )

    if "step" in state and not count_fault(state["step"]) and float(state["step"]) == 0:
        moments = [key for key in _LEFT_BY_STEPS if isinstance(state.get(key), Tensor) and bool(state[key].any())]
        if moments:
            yield f"{name}/step: 0 steps beside moments that are not 0 ({', '.join(moments)}): it is damaged"


def _has_lost_squares(squares: Tensor, mean: Any, group: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Whether a mean of squares is 0 where the mean of what was squared is not, and no underflow explains it."""
    if not isinstance(mean, Tensor) or mean.numel() == 0 or mean.ndim != squares.ndim:
        return False
    if any(n not in (1, m) for n, m in zip(squares.shape, mean.shape, strict=True)):
        return False

    beta1, beta2 = group.get("betas", (0.9, 0.999))
    if float(beta2) < float(beta1) ** 2:
        return False  # the squares die away before the mean does, as rows that are not seen for long do

    # (1 − β2)·g² of a gradient that small is 0 already; in float32 that is under 1e-17, in float16 under 0.25.
    smallest = max(1e-15, math.sqrt(torch.finfo(dtype).tiny / max(1 - float(beta2), 1e-9)))
    magnitudes = mean.abs()
    return bool(((squares == 0) & (magnitudes > smallest * max(1.0, float(magnitudes.max())))).any())
