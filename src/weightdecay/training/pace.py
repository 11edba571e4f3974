"""How long a run takes, from steps that were timed.

time = seconds a token · (tokens of the steps + tokens of the evaluations / 3)

An evaluation goes forward only, a third of a step's arithmetic. Checkpoints are left out: they are few, and the disk's.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from weightdecay.training.progress import duration
from weightdecay.training.setup import Setup

# What is enough to tell by: so many steps of so long together; fewer where they are long or a large part of the run.
_STEPS, _SECONDS, _LONG_SECONDS, _PART_OF_RUN = 3, 1.0, 10.0, 0.1


def run_seconds(setup: Setup, seconds_a_token: float, done: int = 0) -> float:
    """What the steps after `done`, and the evaluations among them, take."""
    run, held_out = setup.config.run, len(setup.data.held_out.tokens)
    steps = setup.sizes.tokens_before(run.steps) - setup.sizes.tokens_before(done)
    evaluations = -(-run.steps // run.eval_every) - done // run.eval_every  # one of them at the end
    return seconds_a_token * (steps + evaluations * min(run.eval_tokens, held_out) / 3)


@dataclass
class Pace:
    """Times the first steps that a process makes anyway, and says once what the run will take.

    Args:
        done: steps that lie behind the run when the process begins.
    """

    setup: Setup
    done: int = 0
    _seconds: list[float] = field(default_factory=list)
    _told: bool = False

    def after_step(self, step_s: float) -> str | None:
        """To be called with the seconds of every step; a line for the briefing, once there is enough to tell by."""
        if self._told:
            return None
        self._seconds.append(step_s)
        timed = self._seconds[1:]  # the first finds memory and kernels, and compiles where that is asked for
        steps = self.setup.config.run.steps - self.done
        enough = len(timed) >= _STEPS and sum(timed) >= _SECONDS
        if not (enough or sum(timed) >= _LONG_SECONDS or (timed and len(timed) >= _PART_OF_RUN * steps)):
            return None

        self._told = True
        first = self.done + 1  # of the timed ones, counted from 0
        tokens = [self.setup.sizes.tokens_at(step) for step in range(first, first + len(timed))]
        seconds_a_token = statistics.median(seconds / of for seconds, of in zip(timed, tokens, strict=True))
        whole = duration(run_seconds(self.setup, seconds_a_token, self.done))
        which = f"the {steps:,} steps that are left" if self.done else f"{steps:,} steps"
        return (
            f"time: about {whole} for {which}, {statistics.median(timed):.2g} s each (timed over steps {first + 1} to "
            f"{first + len(timed)}), evaluations included"
        )
