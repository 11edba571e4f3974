"""What a decay amounts to over a run: how much is removed, how long an update is remembered, which λ would matter.

AdamW's weights are an exponential moving average of its updates (Wang & Aitchison 2024, arXiv:2405.13698), so decay
is a memory: with a_t the decay per step, the update of step i enters the final weights with c_i = a_i·Π_{j>i}(1 − a_j)
in units of update over decay, and the start with Π(1 − a_t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightdecay.errors import ConfigError

# Bergsma et al. 2025, "Power Lines", arXiv:2505.13738: τ_opt = 1.084·TPP^−0.527, fitted for 20 to 1,280 tokens per
# parameter with µP and a linear descent to zero. Evidence grade V2: a summary was read, not the paper's code.
POWER_LAW = (1.084, -0.527)
POWER_LAW_RANGE = (20.0, 1_280.0)

# Below this much decay in a whole run, λ might as well be 0.
NEGLIGIBLE_TOTAL = 0.5


def memory_coefficients(decay_per_step: Sequence[float] | NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """c_i = a_i·Π_{j>i}(1 − a_j) for every step, and what is left of the start, Π(1 − a_t).

    They sum to 1.

    Raises:
        ConfigError: a decay per step outside [0, 1]: it would turn a weight's sign.
    """
    a_T = np.asarray(decay_per_step, dtype=np.float64)
    if a_T.size and not (a_T.min() >= 0.0 and a_T.max() <= 1.0):
        raise ConfigError(f"a decay per step must lie in [0, 1], got {a_T.min():g} to {a_T.max():g}: lower lr·λ")
    left_T = np.cumprod((1.0 - a_T)[::-1])[::-1]  # Π_{j≥i}(1 − a_j)
    after_T = np.append(left_T[1:], 1.0) if a_T.size else left_T
    return a_T * after_T, float(left_T[0]) if a_T.size else 1.0


def optimal_timescale(tokens_per_parameter: float) -> float:
    """τ_opt = 1.084·TPP^−0.527, as a fraction of the run; held at the edge outside the range that was fitted.

    Reference: Bergsma et al. 2025, arXiv:2505.13738.
    """
    low, high = POWER_LAW_RANGE
    scale, exponent = POWER_LAW
    return float(scale * min(max(tokens_per_parameter, low), high) ** exponent)


def optimal_weight_decay(*, lr: float, steps: int, tokens_per_parameter: float) -> float:
    """λ = 1/(η·T·τ_opt), the λ whose memory lasts the fraction τ_opt of the run.

    Args:
        lr: peak learning rate η.
        steps: optimizer steps T.
        tokens_per_parameter: D/N; which parameters N counts is not settled in the literature.

    Raises:
        ConfigError: the learning rate or the number of steps is not positive.
    """
    if lr <= 0 or steps < 1:
        raise ConfigError(f"λ = 1/(η·T·τ) needs a positive lr and at least 1 step, got lr {lr:g} and {steps} steps")
    return 1.0 / (lr * steps * optimal_timescale(tokens_per_parameter))


@dataclass(frozen=True)
class DecayOverRun:
    """A run's decay in words and numbers.

    Attributes:
        total: Σ a_t.
        shrink: Π(1 − a_t), what would be left of a weight without gradients.
        half_life_tokens: ln2/a at the largest decay per step, in tokens; infinite without decay.
    """

    total: float
    shrink: float
    half_life_tokens: float

    @property
    def matters(self) -> bool:
        return self.total >= NEGLIGIBLE_TOTAL


def decay_over_run(decay_per_step: Sequence[float], batch_tokens: int) -> DecayOverRun:
    """Sum up a run's decay from the decay per step at every step.

    Args:
        decay_per_step: a_t for t = 0 … T−1.
        batch_tokens: tokens a step.
    """
    _, shrink = memory_coefficients(decay_per_step)
    peak = max(decay_per_step, default=0.0)
    half_life = math.log(2) / peak * batch_tokens if peak else math.inf
    return DecayOverRun(total=math.fsum(decay_per_step), shrink=shrink, half_life_tokens=half_life)
