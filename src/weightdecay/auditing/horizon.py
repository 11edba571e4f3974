"""The planned run, as far as it was told: how much of the weights a decay takes away in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightdecay.auditing.arguments import Rate, Told
from weightdecay.auditing.asking import length_of
from weightdecay.auditing.scales import Scale, per_step

# Rates of a run that are looked at: more would be work, and tell the same.
_SAMPLES = 2_000


@dataclass(frozen=True)
class Horizon:
    """The steps of one optimizer's run.

    Attributes:
        steps: how many they are; None where nobody said.
        rates: the lr of evenly spaced steps; empty where only the present one is known.
    """

    steps: int | None
    rates: tuple[float, ...] = ()

    @property
    def peak(self) -> float | None:
        return max(self.rates, default=None)

    def decays(self, scale: Scale, weight_decay: float, lr: float | None, share_of_rate: float) -> list[float]:
        """The decay per step at each of the steps that are looked at."""
        peak = (self.peak * share_of_rate if self.peak else None) or scale.peak
        rates = [rate * share_of_rate for rate in self.rates] or ([] if lr is None else [lr])
        found = (per_step(scale.rule, weight_decay, rate, peak) for rate in rates)
        return [a for a in found if a is not None]

    def total(self, decays: Sequence[float]) -> tuple[float, float] | None:
        """(Σ a_t, the part of a weight that is taken away) over the whole run."""
        if not self.steps or not decays:
            return None
        each = self.steps / len(decays)
        log = math.fsum(math.log1p(-a) if a < 1 else -math.inf for a in decays) * each
        return math.fsum(decays) * each, 1.0 - math.exp(log)


def horizon_of(told: Told, optimizer: int) -> Horizon:
    """The run of one optimizer."""
    rate: Rate | None = told.lr[optimizer] if told.lr else None
    if rate is None:
        return Horizon(told.steps)
    if not callable(rate):
        return Horizon(told.steps, (rate,))
    steps = told.steps or length_of(rate)
    return Horizon(steps, _sampled(rate, steps) if steps else ())


def _sampled(rate: Callable[[int], float], steps: int) -> tuple[float, ...]:
    count = min(steps, _SAMPLES)
    return tuple(float(rate(int((place + 0.5) * steps / count))) for place in range(count))
