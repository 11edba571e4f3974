"""What decay alone took off rows: Σ ln(1 − a_t), from the start or from the spread that the start had."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weightdecay.auditing.forensics.answers import Answer, Told, Untold
from weightdecay.auditing.forensics.apart import kurtosis_of
from weightdecay.auditing.forensics.idle_rows import Found
from weightdecay.auditing.forensics.initialisation import InitStd

_NORMAL_QUANTILE = 1.96
# Float32 forms 1 − ηλ to 2⁻²⁵, which at ηλ = 3e-3 is this part of the decay; what was realised is the smaller number's.
_FACTOR = 1e-5
_EPS = {"float64": 1e-12, "float32": 1.2e-7, "float16": 9.8e-4, "bfloat16": 7.8e-3}


def against_start(rows: Tensor, start: Tensor, found: Found, dtype: str) -> Told:
    """−ln(‖rows‖/‖rows at the start‖) over all idle rows together.

    The rows say the same, each by itself; how far they differ is rounding, and makes the interval.
    """
    index = torch.tensor(found.idle.rows)
    now, was = rows[index], start[index]
    value = -float((now.norm() / was.norm()).log())
    each = -(now.norm(dim=1) / was.norm(dim=1)).log()
    n, d = now.shape
    error = float(each.std()) / math.sqrt(n) if n > 1 else 0.0
    # What rows do not show: they may all be rounded alike.
    error = max(error, _EPS[dtype] / math.sqrt(12 * n * d))
    margin = 0.0 if torch.equal(now, was) else _NORMAL_QUANTILE * error + _FACTOR * abs(value)
    return Told(value, value - margin, value + margin, f"ln of {n} rows' norm over their norm at the start")


def against_spread(rows: Tensor, found: Found, init: InitStd | None) -> Answer:
    """ln σ − ln s, s the spread of the idle rows now and σ that of the start.

    ln s of N = n·d independent numbers has the error √((κ − 1)/4N).
    """
    log_spread, low, high = _log_spread(rows, found)
    n = len(found.idle.rows)
    if init is None:
        spread = math.exp(log_spread)
        return Untold(
            f"the standard deviation at the start is not known: {n} rows that never came have {spread:.4g} now "
            f"({math.exp(low):.4g} to {math.exp(high):.4g}), and Σηλ is the logarithm of what it was over that; say "
            "what it was (--init-std), or give the start (--against)"
        )
    middle = (math.log(init.low) + math.log(init.high)) / 2
    basis = f"the spread of {n} {found.idle.basis}, against {init.basis}"
    return Told(middle - log_spread, math.log(init.low) - high, math.log(init.high) - low, basis)


def _log_spread(rows: Tensor, found: Found) -> tuple[float, float, float]:
    if found.group is not None:
        group = found.group
        return group.log_square / 2, group.low / 2, group.high / 2
    chosen = rows[torch.tensor(found.idle.rows)]
    square = float(chosen.square().mean())
    kurtosis = kurtosis_of(chosen / math.sqrt(square))
    error = _NORMAL_QUANTILE * math.sqrt((kurtosis - 1) / (4 * chosen.numel()))
    return math.log(square) / 2, math.log(square) / 2 - error, math.log(square) / 2 + error
