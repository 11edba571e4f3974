"""What a decay amounts to over a run: how much goes, how long an update is remembered, where the weights are from.

AdamW's weights are an exponential moving average of its updates (Wang & Aitchison 2024, arXiv:2405.13698), so decay
is a memory: with a_t the decay per step, the update of step i enters the final weights with c_i = a_i·Π_{j>i}(1 − a_j)
in units of update over decay, and the start with Π(1 − a_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightdecay.errors import ConfigError
from weightdecay.laws import NEGLIGIBLE_TOTAL
from weightdecay.schedules import Schedule

# Up to here every step of a run is looked at; a longer one in as many blocks, each at the rate of its middle.
_BLOCKS = 20_000


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


def decay_over_run(decay_at: Callable[[int], float], steps: int, batch_tokens: int) -> DecayOverRun:
    """Sum up a run's decay.

    Args:
        decay_at: a_t of step t, counted from 0.
        steps: T; of a long run, blocks of steps are looked at.
        batch_tokens: tokens a step.

    Raises:
        ConfigError: a decay per step outside [0, 1].
    """
    a_B, lengths = _in_blocks(decay_at, steps)
    _, shrink = memory_coefficients(_removed_by(a_B, lengths))
    peak = a_B.max(initial=0.0)
    half_life = math.log(2) / peak * batch_tokens if peak else math.inf
    return DecayOverRun(total=math.fsum(lengths * a_B), shrink=shrink, half_life_tokens=half_life)


def _in_blocks(decay_at: Callable[[int], float], steps: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The decay per step at the middle of each block, and the blocks' lengths: the same work however long a run is."""
    edges = np.linspace(0, steps, min(steps, _BLOCKS) + 1).round().astype(np.int64)
    lengths = np.diff(edges)
    middles = edges[:-1] + (lengths - 1) // 2
    a_B = np.fromiter((decay_at(int(step)) for step in middles), dtype=np.float64, count=len(middles))
    if a_B.max(initial=0.0) > 1.0:
        raise ConfigError(f"a step would remove {a_B.max():g} of a weight, more than all of it: lower lr·λ")
    return a_B, lengths


def _removed_by(a_B: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """What a block of m steps at one rate takes away: 1 − (1 − a)^m."""
    return np.where(lengths == 1, a_B, -np.expm1(lengths * np.log1p(-np.minimum(a_B, 1 - 1e-16))))


@dataclass(frozen=True)
class Origins:
    """Where the final weights are from.

    Attributes:
        coefficients: c_i, of a step or of a block of steps.
        start: Π(1 − a_t), what is left of the initial weights.
        total: Σ a_t.
    """

    coefficients: NDArray[np.float64]
    start: float
    total: float

    def last_part(self, share: float = 0.95) -> float | None:
        """The part of the run, counted from its end, whose updates make `share` of the final weights.

        Returns:
            None where they never do, for too much of the start is left.
        """
        from_end = np.cumsum(self.coefficients[::-1])
        enough = np.searchsorted(from_end, share - 1e-12)
        return None if enough == from_end.size else float(enough + 1) / from_end.size


def origins(lr: Schedule, weight_decay: float, steps: int) -> Origins:
    """Where the final weights of a run under a_t = η_t·λ are from.

    Args:
        lr: η_t, for steps counted from 0.
        weight_decay: λ, decoupled and constant.
        steps: T.

    Raises:
        ConfigError: a step would remove more than the whole weight.
    """
    a_B, lengths = _in_blocks(lambda step: lr(step) * weight_decay, steps)
    coefficients, start = memory_coefficients(_removed_by(a_B, lengths))
    return Origins(coefficients, start, float(np.dot(lengths, a_B)))
