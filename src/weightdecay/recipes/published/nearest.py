"""The published runs that are nearest to one that is planned, and the range of λ that they had."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from weightdecay.recipes.published.runs import PublishedRun, published_runs

# So many systems make a range; of each system its nearest size alone, or a family of twelve sizes would outvote them.
SYSTEMS = 7
# A run whose parameters, tokens or lr are this many times the planned ones, or this small a part, says little of it.
FAR = 30.0


@dataclass(frozen=True)
class Planned:
    """What a run that is planned is compared by.

    Attributes:
        parameters: all that a token passes through, tables included.
        tokens: D.
        lr: peak η.
        optimizer: of the matrices: `adamw`, `muon`.
    """

    parameters: float
    tokens: float
    lr: float
    optimizer: str = "adamw"


@dataclass(frozen=True)
class Neighbours:
    """The nearest runs of a kind, nearest first, and what they decayed: decoupled λ, a/η.

    Attributes:
        runs: one of each system.
        far: how many times apart the planned run and the nearest are, in parameters, tokens or lr, whichever is most.
    """

    runs: tuple[PublishedRun, ...]
    far: float

    @property
    def low(self) -> float:
        return min(run.decoupled for run in self.runs)

    @property
    def high(self) -> float:
        return max(run.decoupled for run in self.runs)

    @property
    def median(self) -> float:
        """Of the nearest `SYSTEMS`; the lower of the two in the middle, so that it is a λ that somebody used."""
        return statistics.median_low(run.decoupled for run in self.runs[:SYSTEMS])

    @property
    def is_far(self) -> bool:
        """Whether even the nearest run is another kind of run."""
        return self.far > FAR


def distance(run: PublishedRun, planned: Planned) -> float:
    """|ln N/N'| + |ln D/D'| + |ln η/η'|"""
    return sum(_logs(run, planned))


def _logs(run: PublishedRun, planned: Planned) -> tuple[float, float, float]:
    return (
        abs(math.log(run.used / planned.parameters)),
        abs(math.log(run.tokens / planned.tokens)),
        abs(math.log(run.lr / planned.lr)),
    )


def neighbours(planned: Planned, among: Iterable[PublishedRun] | None = None) -> Neighbours:
    """The nearest size of each of the nearest systems: `SYSTEMS` of them, and more until two differ in λ.

    A convention that all neighbours share would make a range of one number, which says less than it seems to.

    Args:
        among: the runs to choose from; the whole database if not given.
    """
    pool = published_runs() if among is None else among
    alike = sorted((run for run in pool if run.optimizer == planned.optimizer), key=lambda run: distance(run, planned))
    nearest: dict[str, PublishedRun] = {}
    for run in alike:
        nearest.setdefault(run.system, run)

    chosen: list[PublishedRun] = []
    for run in nearest.values():
        if len(chosen) >= SYSTEMS and len({one.decoupled for one in chosen}) > 1:
            break
        chosen.append(run)
    return Neighbours(tuple(chosen), math.exp(max(_logs(alike[0], planned))))
