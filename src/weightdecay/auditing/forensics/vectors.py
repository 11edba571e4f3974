"""Which gains and biases were exempt: where they stand, against where decay alone would have taken them.

A gain starts at 1. Exempt, it stands where its gradient has left it, about there; decayed, it is pulled to
exp(−Σηλ). Training itself moves gains, by about as much as their elements differ from each other: what lies within
twice that of both places cannot be told. Gains outside the blocks are moved as a whole (the last one sets the size of
all logits), so that their elements' spread does not say how far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weightdecay.auditing.forensics.answers import Answer, Untold, VectorVerdict, Verdict
from weightdecay.planning.patterns import INDEX

_CLEAR = 2.0  # spreads
_LEAST_SPREAD = 0.005  # of a gain whose elements are all alike, as a single step leaves them


@dataclass(frozen=True)
class Vector:
    """A gain, its elements' mean and standard deviation, and where it began."""

    name: str
    centre: float
    spread: float
    start: float


def judged_gains(vectors: Sequence[Vector], decay_sum: Answer) -> list[VectorVerdict]:
    """Each gain's verdict."""
    if not vectors:
        return []
    # Some gains have nearly equal elements that all moved together: the others say how far training moves them.
    usual = math.sqrt(sum(vector.spread**2 for vector in vectors) / len(vectors))
    return [_judged(vector, max(vector.spread, usual, _LEAST_SPREAD), decay_sum) for vector in vectors]


def judged_biases(vectors: Sequence[Vector]) -> list[VectorVerdict]:
    """A bias starts at 0, where decay pulls it: both look alike."""
    why = "a bias begins at 0, which is also where decay pulls it"
    return [
        VectorVerdict(one.name, "bias", one.centre, one.spread, one.start, None, "cannot be told", why)
        for one in vectors
    ]


def _judged(vector: Vector, spread: float, decay_sum: Answer) -> VectorVerdict:
    def verdict(said: Verdict, why: str, at: float | None = None) -> VectorVerdict:
        return VectorVerdict(vector.name, "gain", vector.centre, vector.spread, vector.start, at, said, why)

    if vector.start == 0.0:
        return verdict("cannot be told", "it acts as 1 + w and begins at w = 0, which is also where decay pulls it")
    if INDEX.search(vector.name) is None:
        return verdict("cannot be told", "it stands outside the blocks, where training moves a gain as a whole")
    if isinstance(decay_sum, Untold):
        return verdict("cannot be told", "Σηλ is not told, so where decay would have taken it is not known")

    at = vector.start * math.exp(-decay_sum.value)
    bounds = [vector.start * math.exp(-bound) for bound in (decay_sum.low, decay_sum.high)]
    from_start = abs(vector.centre - vector.start) / spread
    from_decayed = max(0.0, min(bounds) - vector.centre, vector.centre - max(bounds)) / spread
    where = (
        f"{vector.centre:.3f} ± {spread:.3f}, where it began at {vector.start:.3g} and decay would have left {at:.3f}"
    )
    if from_start < _CLEAR < from_decayed and vector.centre > at:
        return verdict("exempt", where, at)
    if from_decayed < _CLEAR < from_start and vector.centre < vector.start:
        return verdict("decayed", where, at)
    return verdict("cannot be told", where, at)


def counted(verdicts: Sequence[VectorVerdict]) -> dict[Verdict, int]:
    """How many of each."""
    found: dict[Verdict, int] = {}
    for one in verdicts:
        found[one.verdict] = found.get(one.verdict, 0) + 1
    return found
