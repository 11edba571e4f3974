"""How large the batch of every step is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class BatchSizes:
    """How many sequences each step takes: those of the ramp, then `full` for ever.

    Args:
        context: tokens a sequence.
        full: sequences of a step after the ramp.
        ramp: sequences of the first steps.
    """

    context: int
    full: int
    ramp: tuple[int, ...] = ()

    @cached_property
    def _before(self) -> tuple[int, ...]:
        return tuple(accumulate(self.ramp, initial=0))

    def sequences_at(self, step: int) -> int:
        """Sequences of a step, counted from 0."""
        return self.ramp[step] if step < len(self.ramp) else self.full

    def sequences_before(self, step: int) -> int:
        """Sequences of all steps before this one."""
        inside = min(step, len(self.ramp))
        return self._before[inside] + (step - inside) * self.full

    def tokens_at(self, step: int) -> int:
        """Tokens of a step."""
        return self.context * self.sequences_at(step)

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before this one."""
        return self.context * self.sequences_before(step)

    def steps_for(self, tokens: float) -> int:
        """The fewest steps that take at least so many tokens."""
        of_ramp = len(self.ramp)
        if tokens <= self.tokens_before(of_ramp):
            return next(step for step in range(of_ramp + 1) if self.tokens_before(step) >= tokens)
        left = tokens - self.tokens_before(of_ramp)
        return of_ramp + int(-(-left // (self.context * self.full)))
