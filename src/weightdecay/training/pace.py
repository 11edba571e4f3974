"""How long a run takes: passes are timed before its first step, and then the steps that it makes anyway.

    time of a step = passes of a step · time of a pass + time of an update
    time of a run  = seconds a token · (tokens of the steps + tokens of the evaluations / 3)

An evaluation goes forward only, a third of a step's arithmetic. Checkpoints are left out: they are few, and the disk's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from weightdecay.kernels.memory import give_back_freed_memory
from weightdecay.models.arithmetic import products_in, weights_in
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.training.building import Built
from weightdecay.training.distributed import Ranks
from weightdecay.training.optimizers import make_optimizer
from weightdecay.training.progress import duration
from weightdecay.training.setup import Setup

# Passes are timed for so long at the most where nothing else is asked for, and before a run, which is not to wait for
# them; what does not fit into it is timed on fewer sequences, of which a pass takes longer for each.
LONGEST_TIMED_S, _LONGEST_BEFORE_A_RUN_S = 6.0, 1.0

# Unless what they take is less of the run than this.
_PART_SPENT = 0.01

# What is enough to tell by: so many steps of so long together; fewer where they are long or a large part of the run.
_STEPS, _SECONDS, _LONG_SECONDS, _PART_OF_RUN = 3, 1.0, 10.0, 0.1

# What was told before the first step is told anew where the first steps differ by more than this.
_AS_TOLD = 0.15


def run_seconds(setup: Setup, seconds_a_token: float, done: int = 0) -> float:
    """What the steps after `done`, and the evaluations among them, take."""
    run, held_out = setup.config.run, len(setup.data.held_out.tokens)
    steps = setup.sizes.tokens_before(run.steps) - setup.sizes.tokens_before(done)
    evaluations = -(-run.steps // run.eval_every) - done // run.eval_every  # one of them at the end
    return seconds_a_token * (steps + evaluations * min(run.eval_tokens, held_out) / 3)


@dataclass
class Pace:
    """Says before the first step that a process makes what the run will take, and after some steps what they say.

    Args:
        done: steps that lie behind the run when the process begins.
    """

    setup: Setup
    done: int = 0
    _told: float | None = None
    _seconds: list[float] | None = field(default_factory=list)

    def before_first_step(self, built: Built, ranks: Ranks) -> str | None:
        """A line for the briefing, from passes that are timed now; None where they would have to be compiled first."""
        if self.setup.config.run.compile:
            return None
        seconds, rows = _seconds_a_sequence(built.model, self.setup, ranks.device, _LONGEST_BEFORE_A_RUN_S)
        whole_s = run_seconds(self.setup, seconds / self.setup.config.model.context, self.done) / ranks.world_size
        if rows < self.setup.micro_batch_rows and _PART_SPENT * whole_s > LONGEST_TIMED_S:  # a long run can wait for it
            seconds, rows = _seconds_a_sequence(built.model, self.setup, ranks.device, LONGEST_TIMED_S)
        built.optimizer.zero_grad(set_to_none=True)
        give_back_freed_memory()  # of smaller tensors than a step's, which would find no place between theirs
        step_s = self.setup.sizes.full * seconds / ranks.world_size
        self._told = step_s / self.setup.config.run.batch_tokens
        return self._line("about", self._told, step_s, f"timed now on {rows:,} sequence{'s' if rows > 1 else ''}")

    def after_step(self, step_s: float) -> str | None:
        """To be called with the seconds of every step; a line, once there is enough to tell by and it is news."""
        if self._seconds is None:
            return None
        self._seconds.append(step_s)
        timed = self._seconds[1:]  # the first finds memory and kernels, and compiles where that is asked for
        steps = self.setup.config.run.steps - self.done
        enough = len(timed) >= _STEPS and sum(timed) >= _SECONDS
        if not (enough or sum(timed) >= _LONG_SECONDS or (timed and len(timed) >= _PART_OF_RUN * steps)):
            return None

        self._seconds = None
        first = self.done + 1  # of the timed ones, counted from 0
        tokens = [self.setup.sizes.tokens_at(step) for step in range(first, first + len(timed))]
        seconds_a_token = statistics.median(seconds / of for seconds, of in zip(timed, tokens, strict=True))
        if self._told is not None and abs(seconds_a_token / self._told - 1) <= _AS_TOLD:
            return None
        how = "about" if self._told is None else "rather about"
        by = f"timed over steps {first + 1} to {first + len(timed)}"
        return self._line(how, seconds_a_token, statistics.median(timed), by)

    def _line(self, how: str, seconds_a_token: float, step_s: float, by: str) -> str:
        steps = self.setup.config.run.steps - self.done
        which = f"the {steps:,} steps that are left" if self.done else f"{steps:,} steps"
        whole = duration(run_seconds(self.setup, seconds_a_token, self.done))
        return f"time: {how} {whole} for {which}, {step_s:.2g} s each ({by}), evaluations included"


def seconds_a_step(setup: Setup) -> float:
    """How long a step of this run takes here and now: passes and an update of a model like its own, timed."""
    config, device = setup.config, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GPT(config.model).to(device)
    model.arithmetic, model.recomputes = config.run.arithmetic, config.run.activation_checkpointing
    optimizer = make_optimizer(config.optimizer, setup.plan.on(model))
    seconds, _ = _seconds_a_sequence(model, setup, device, LONGEST_TIMED_S)
    optimizer.step()
    update_s = _timed(optimizer.step, device)
    return setup.sizes.full * seconds / config.run.nproc + update_s


def _seconds_a_sequence(model: GPT, setup: Setup, device: torch.device, longest: float) -> tuple[float, int]:
    """Forward and back, as one of a micro-batch; and on how many that was timed. Gradients are left behind."""
    objective, dtype, last = Objective(model).train(), setup.dtype, setup.config.run.steps - 1
    tokens_BT, targets_BT = (t[: setup.micro_batch_rows].to(device) for t in setup.loader.batch(last))
    asked = []

    def run(n_rows: int) -> None:
        with weights_in(objective, dtype):
            with products_in(objective, dtype, device):
                loss = objective(tokens_BT[:n_rows], targets_BT[:n_rows]).total
            loss.backward()

    def timed(n_rows: int) -> float:
        asked.append(n_rows)
        return _timed(lambda: run(n_rows), device)

    rows = len(tokens_BT)
    return pass_seconds(timed, rows, longest) / rows, max(asked)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def pass_seconds(timed: Callable[[int], float], rows: int, longest: float = LONGEST_TIMED_S) -> float:
    """Seconds that a pass of `rows` sequences takes.

    Two such passes where they surely fit, of which the first finds memory. Else passes of one sequence, four, sixteen …
    as long as there is time, for a busy machine makes short passes longer than long ones; at least of two, unless one
    takes all of it. Where that is not all of them, a straight line goes on from the last two: a part of a pass takes
    the same for one sequence as for many.

    Args:
        timed: a pass of so many sequences, in seconds.
        rows: for which it is asked.
        longest: after so many seconds no more passes begin.
    """
    spent = timed(1)  # finds memory and kernels
    found = [(0, 0.0), (1, min(timed(1), timed(1)))]
    if rows > 1 and spent + 2 * _on_the_line(found, rows) <= longest:
        return min(timed(rows), timed(rows))
    while (last := found[-1][0]) < rows:
        more = min(rows, 4 * last)
        if spent + _on_the_line(found, more) > longest:
            if len(found) > 2 or found[-1][1] > longest:
                break
            more = 2
        found.append((more, timed(more)))
        spent += found[-1][1]
    return _on_the_line(found, rows)


def _on_the_line(found: Sequence[tuple[int, float]], rows: int) -> float:
    """Through the last two points, but neither falling nor steeper than one through the start."""
    (before, before_s), (last, last_s) = found[-2:]
    slope = min(last_s / last, max(0.0, (last_s - before_s) / (last - before)))
    return last_s + slope * (rows - last)
