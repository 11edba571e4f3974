"""Which part of a decay low-precision weights really get, and the warning where it is not all."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightdecay.errors import group_title
from weightdecay.optim.decay import local
from weightdecay.optim.roundings import LOW_PRECISION, NEAREST, ROUNDINGS, dtype_name, group_rounding
from weightdecay.rules import group_decay_per_step


class PrecisionWarning(UserWarning):
    """Weights whose dtype rounds the decay away."""


def realised_decay(weights: Tensor, decay: float) -> float:
    """The part of a decay that rounding to nearest leaves: ⟨w, w − round((1 − a)·w)⟩ / (a·‖w‖²); 1 is all of it.

    Args:
        weights: any shape and dtype; about a million elements at most are looked at.
        decay: a, the decay per step.
    """
    sample = weights.detach().reshape(-1)
    sample = sample[:: max(sample.numel() // (1 << 20), 1)]
    exact = sample.double()
    squared = exact.square().sum().item()
    if decay == 0.0 or squared == 0.0:
        return 1.0
    # Computed as torch's kernels do: the factor is formed in double and used in float32, then rounded to the dtype.
    kept = (sample * (1 - decay)).double()
    return (exact * (exact - kept)).sum().item() / (decay * squared)


def warn_of_rounding(group: Mapping[str, Any], index: int) -> None:
    """Say which part of its decay a low-precision group will really get, where it is not all."""
    low = [p for p in group["params"] if p.dtype in LOW_PRECISION and not p.is_meta]
    decay = group_decay_per_step(group)
    if not low or not decay or group_rounding(group).acts_on(low[0].dtype):
        return

    shares = [realised_decay(local(p), decay) for p in low]
    realised = sum(shares) / len(shares)
    if abs(realised - 1) > 0.1:
        warnings.warn(
            f"{group_title(group, index)}: {len(low)} tensors in {dtype_name(low[0].dtype)} will get "
            f"{realised:.1%} of the decay per step of {decay:.3g} that was asked for, because rounding to nearest "
            f"undoes it: give a rounding ({', '.join(name for name in ROUNDINGS if name != NEAREST.name)}), or keep "
            "the weights in float32",
            PrecisionWarning,
            stacklevel=frames_to_the_user(),
        )


def frames_to_the_user() -> int:
    """How far up the caller stands who made the optimizer, for a warning that shows that line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("weightdecay", "torch"):
        level, frame = level + 1, frame.f_back
    return level
