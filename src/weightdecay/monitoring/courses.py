"""Where the norm of a group's tensors is led to, step by step, while η and the decay move.

The recursion of `equilibrium.NormPath` is linear in the norm that a tensor begins with, so one path from zero and one
factor serve all tensors of a group, however many they are:

    N_t = N_0·Π α² + S_t,    S' = α²·S − 2αη·C + η²·U²,    C' = ρ·α·C − η·ρ₁·U²

and the same of Muon's bound on the spectral norm, of which no step goes beyond (1 − a)·b + η·s:

    b_t = b_0·Π α + s·R_t,    R' = α·R + η
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightdecay.equilibrium import NormPath

# Of a weight, that a step may leave: what is gone altogether has no logarithm.
_LEAST = 1e-30


@dataclass(frozen=True)
class Noise:
    """Updates as theory takes them: their size U², and their autocorrelation ρ₁·ρ^(k−1) at lag k."""

    square: float
    first: float
    ratio: float


@dataclass(frozen=True)
class Mark:
    """A place on a course: ln Π α, and what has come together since the beginning."""

    log_kept: float = 0.0
    norm: float = 0.0
    overlap: float = 0.0
    bound: float = 0.0


@dataclass
class Course:
    """The course of one group since the monitor began.

    Attributes:
        total: Σ of the decay per step.
        decay: of the last step.
    """

    now: Mark = Mark()
    before: Mark = Mark()
    total: float = 0.0
    decay: float = 0.0

    def step(self, lr: float, decay: float, noise: Noise | None) -> None:
        """One step."""
        here, α = self.now, max(1.0 - decay, _LEAST)
        norm = overlap = 0.0
        if noise is not None:
            path = NormPath(0.0, noise.ratio, size=math.sqrt(noise.square), first=noise.first)
            path.go_on(here.norm, here.overlap)
            path.step(lr, decay)
            norm, overlap = path.square, path.overlap
        kept = here.log_kept + math.log(α)
        self.before, self.now = here, Mark(kept, norm, overlap, α * here.bound + lr)
        self.total += decay
        self.decay = decay

    def rms(self, begun: float, at: Mark) -> float:
        """The rms before the step that was last, of a tensor that had `begun` at a mark of this course."""
        return math.sqrt(max(self._norm(begun, at, self.before), 0.0))

    def angle(self, begun: float, at: Mark, lr: float) -> float:
        """Radians that it turned in the last step, had it gone as expected."""
        last, now = self._norm(begun, at, self.before), self._norm(begun, at, self.now)
        α = math.exp(self.now.log_kept - self.before.log_kept)
        both = math.sqrt(max(last * now, 0.0))
        along = α * last - lr * self.before.overlap
        return math.acos(max(-1.0, min(1.0, along / both))) if both else 0.0

    def bound(self, begun: float, at: Mark, reach: float) -> float:
        """What the spectral norm cannot exceed before the step that was last, if it was `begun` at a mark.

        Args:
            reach: s, the spectral norm of one update without η.
        """
        kept = math.exp(self.before.log_kept - at.log_kept)
        return kept * (begun - reach * at.bound) + reach * self.before.bound

    def _norm(self, begun: float, at: Mark, there: Mark) -> float:
        kept = math.exp(2 * (there.log_kept - at.log_kept))
        return kept * (begun * begun - at.norm) + there.norm
