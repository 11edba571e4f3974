"""State that no run of an optimizer can have left, told before it is loaded.

Moments that a file, a cast or a merge has damaged are taken by every kernel: a second moment that became 0 in float16
makes the next step 1e8 times too large, a step that is lost undoes the bias correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.roundings import COUNTS

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


def impossible(name: str, state: Mapping[str, Any], group: Mapping[str, Any], kept: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one tensor's state, each with tensor and key.

    Args:
        group: the settings it goes on with.
        kept: the state that the optimizer keeps for such a tensor, for its dtypes.
    """
    for key in sorted(state, key=str):
        value = state[key]
        if key in COUNTS:
            if fault := _count_fault(value):
                yield f"{name}/{key}: {fault}"
            continue
        if not isinstance(value, Tensor) or not value.numel() or not (value.is_floating_point() or value.is_complex()):
            continue
        low, high = (torch.view_as_real(value) if value.is_complex() else value).aminmax()  # NaN comes through
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"{name}/{key}: it is not finite: a run that left it so has diverged, go back to an earlier state"
        elif key == _PRODUCT and not (float(low) >= 0 and float(high) <= 1):
            yield f"{name}/{key}: a product of numbers from 0 to 1, and {float(low):g}: it is damaged"
        elif key in _SQUARES and not value.is_complex() and float(low) < 0:
            yield f"{name}/{key}: a mean of squares, and down to {float(low):g}: it is damaged"
        elif (
            key in _DIVIDED
            and float(low) == 0
            and _has_lost_squares(value, state.get(_DIVIDED[key]), group, getattr(kept.get(key), "dtype", value.dtype))
        ):
            yield (
                f"{name}/{key}: 0 where {_DIVIDED[key]} is not, so the next step would be far too large: it is damaged "
                "(saved in float16?)"
            )

    if "step" in state and not _count_fault(state["step"]) and float(state["step"]) == 0:
        moments = [key for key in _LEFT_BY_STEPS if _is_nonzero(state.get(key))]
        if moments:
            yield f"{name}/step: 0 steps beside moments that are not 0 ({', '.join(moments)}): it is damaged"


def _count_fault(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a count of steps has one number, this has {value.numel()}"
    count = math.nan if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool else float(value)
    if not math.isfinite(count) or count < 0 or count != int(count):
        return f"{count:g} is no count of steps: it is damaged"
    return ""


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


def _is_nonzero(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.any())
