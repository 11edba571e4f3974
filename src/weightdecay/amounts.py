"""Whether a setting is a number, and which: whoever counts it, Python, NumPy or a tensor."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def number(value: Any) -> float | None:
    """A setting as a float; None where it is no single number."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        is_real = value.numel() == 1 and not value.dtype.is_complex and value.dtype != torch.bool
        return float(value.detach()) if is_real else None
    single = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiu"
    if isinstance(value, bool) or not (single or isinstance(value, Real | Decimal)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf  # of an int or a fraction beyond what floats hold


def amount(value: Any) -> float | None:
    """A setting as a float where it is a finite number of at least 0; None where it is not."""
    found = number(value)
    return found if found is not None and math.isfinite(found) and found >= 0 else None


def whole(value: Any) -> int | None:
    """A setting as an int; None where it is no whole number, or one that is written as another."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
