"""Means with intervals, differences in pairs, and Holm's correction over everything that a study compares.

    mean ± t_{n−1}·s/√n                         of a group's seeds
    d̄ ± t_{n−1}·s_d/√n,   t = d̄·√n/s_d          of differences between runs of one seed (the same weights at the start,
                                                the same batches in the same order)

An interval for all m differences together (`simultaneous`) takes 1 − 0.05/m for each of them; Holm's step-down over
their p-values decides what is called shown. Three seeds give an interval, but never a claim.

Reference: Holm 1979, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightdecay.errors import MissingExtraError

LEVEL = 0.95
FEWEST_SEEDS_FOR_A_CLAIM = 5

Interval = tuple[float, float]


@dataclass(frozen=True)
class Mean:
    """Of a group's seeds.

    Attributes:
        interval: at 95 %; None for one value alone.
    """

    n: int
    mean: float
    std: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Difference:
    """Of two arms, in pairs by seed.

    Attributes:
        mean: first minus second.
        interval: at 95 %, of this difference alone.
        p: of a mean difference of 0, two-sided; 1 where all pairs differ by exactly 0, None below two pairs.
        same_sign: whether every pair differs in the mean's direction.
    """

    n: int
    mean: float
    std: float | None
    interval: Interval | None
    p: float | None
    same_sign: bool

    def at_level(self, level: float) -> Interval | None:
        """The interval at another level."""
        return None if self.std is None else _interval(self.mean, self.std, self.n, level)


def check_statistics() -> None:
    """Raises MissingExtraError where scipy is not installed."""
    _student_t()


def mean_of(values: Sequence[float]) -> Mean:
    """Mean, standard deviation and interval of the seeds' values.

    Raises:
        ValueError: there are none.
    """
    n = len(values)
    if not n:
        raise ValueError("a mean of no values")
    mean = math.fsum(values) / n
    std = _std(values, mean)
    return Mean(n, mean, std, None if std is None else _interval(mean, std, n, LEVEL))


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """first − second over the seeds that both have; None where they share none.

    Args:
        first, second: values by seed.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None

    n = len(differences)
    mean = math.fsum(differences) / n
    std = _std(differences, mean)
    same_sign = all(d > 0 for d in differences) or all(d < 0 for d in differences)
    if std is None:
        return Difference(n, mean, None, None, None, same_sign)
    return Difference(n, mean, std, _interval(mean, std, n, LEVEL), _paired_p(differences, std), same_sign)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values in the order given; what has no p stays without one, and is counted none the less."""
    m = len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * m
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (m - rank) * p))
        adjusted[index] = highest
    return adjusted


def _std(values: Sequence[float], mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _interval(mean: float, std: float, n: int, level: float) -> Interval:
    half = _student_t().ppf(0.5 + level / 2, n - 1) * std / math.sqrt(n)
    return mean - float(half), mean + float(half)


def _paired_p(differences: Sequence[float], std: float) -> float:
    if std == 0.0:  # equal to the last bit in every pair, as where nothing decays: no t can be formed
        return 1.0 if differences[0] == 0.0 else 0.0
    mean = math.fsum(differences) / len(differences)
    t = mean / (std / math.sqrt(len(differences)))
    return float(2 * _student_t().sf(abs(t), len(differences) - 1))


def _student_t() -> Any:
    try:
        from scipy.stats import t
    except ImportError:
        raise MissingExtraError("the statistics of a study", "report") from None
    return t
