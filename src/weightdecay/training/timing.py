"""When what happens: how the batch grows, and the learning rate, λ and clipping of every step, from a configuration.

A configuration counts in tokens, as the papers do, or in steps; here everything becomes steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from weightdecay.data.batches import BatchSizes
from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.optim.schedules import Constant, Cosine, InverseSqrt, Linear, Piecewise, Schedule, Warmup, schedule
from weightdecay.recipes.settings import RunSettings, TrainConfig


def batch_sizes(run: RunSettings, context: int) -> BatchSizes:
    """The ramp `TOKENS:BATCH_TOKENS, …` as whole sequences a step, whatever the number of processes.

    Each entry says how large the batch is once so many tokens were seen: from there on (`steps`), or reached in a
    straight line over the tokens since the entry before (`linear`), which a `batch_ramp_increment` climbs in stairs
    of that height. The last is the run's full batch.

    Raises:
        ConfigError: an entry that is no pair of numbers, entries that do not rise from 0, or that end elsewhere.
    """
    full = max(1, round(run.batch_tokens / context))
    if not run.batch_ramp:
        return BatchSizes(context, full)
    points, faults = _points("run.batch_ramp", run.batch_ramp, "like 4e9:500_000")
    if faults:
        raise ConfigError(faults)
    if points[0][0] != 0:
        faults.append(f"run.batch_ramp must begin at 0 tokens, not at {points[0][0]:g}")
    if max(1, round(points[-1][1] / context)) != full:
        faults.append(f"run.batch_ramp ends at {points[-1][1]:g} tokens, run.batch_tokens is {run.batch_tokens}")
    if faults:
        raise ConfigError(faults)
    sizes: list[int] = []
    seen = 0
    stairs = max(1, run.batch_ramp_increment) if run.batch_ramp_shape == "linear" else 0
    while seen < points[-1][0]:
        sizes.append(max(1, round(_batch_at(points, seen, stairs) / context)))
        seen += sizes[-1] * context
    return BatchSizes(context, full, tuple(sizes))


def _batch_at(points: list[tuple[float, float]], seen: int, stairs: int) -> int:
    """Tokens of the batch after `seen` tokens. In whole numbers, so that a stair begins exactly where it should."""
    index = max(index for index, (tokens, _) in enumerate(points) if tokens <= seen)
    (start, before), (end, after) = (map(round, point) for point in points[index : index + 2])
    grown = (after - before) * (seen - start) // (end - start)
    return before + (grown // stairs * stairs if stairs else 0)


def grad_clip_schedule(config: TrainConfig, sizes: BatchSizes) -> Schedule:
    """The largest norm of the gradient at every step, 0 where it is not clipped.

    It is `optimizer.grad_clip` until the first of the changes `TOKENS:NORM, …`, each of which holds from the first step
    that has so many tokens behind it.

    Raises:
        ConfigError: a change that is no pair of numbers, or that does not come after the one before.
    """
    changes, faults = _points("schedule.grad_clip_changes", config.schedule.grad_clip_changes, "like 30e9:0.3")
    if changes and changes[0][0] <= 0:
        faults.append("schedule.grad_clip_changes must come after the start, whose norm is optimizer.grad_clip")
    if faults:
        raise ConfigError(faults)
    # Two changes within a step: the later one holds, as it is the one that the next step finds.
    norms = {0: config.optimizer.grad_clip, **{sizes.steps_for(tokens): norm for tokens, norm in changes}}
    return Piecewise(tuple((step, Constant(norm)) for step, norm in norms.items()))


def _points(key: str, entries: tuple[str, ...], example: str) -> tuple[list[tuple[float, float]], list[str]]:
    """`TOKENS:VALUE` pairs in rising order, and what is wrong with them."""
    points, faults = [], []
    for entry in entries:
        try:
            tokens, value = (float(number) for number in entry.split(":"))
        except ValueError:
            faults.append(f"{key} '{entry}': must be two numbers with a colon between them, {example}")
            continue
        if not (math.isfinite(tokens) and math.isfinite(value) and value >= 0):
            faults.append(f"{key} '{entry}': both numbers must be finite, and at least 0")
        points.append((tokens, value))
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        faults.append(f"{key} must go on at rising numbers of tokens")
    return points, faults


def lr_schedule(config: TrainConfig, sizes: BatchSizes) -> Schedule:
    """The learning rate of every step of a configuration whose warm-up and length are in steps.

    Raises:
        ConfigError: a stage that cannot be read.
    """
    timing, run, peak = config.schedule, config.run, config.optimizer.lr
    warmup = timing.warmup_steps
    if timing.shape == "stages":
        return Warmup(warmup, _stages(timing.stages, peak, lambda tokens: sizes.steps_for(tokens)))
    if timing.shape == "inverse_sqrt" and (hold := timing.hold_steps or round(timing.hold_fraction * run.steps)):
        return Warmup(warmup, Piecewise(((0, Constant(peak)), (hold, InverseSqrt(peak, timescale=hold)))))
    end = sizes.steps_for(timing.decay_tokens) if timing.decay_tokens else run.steps
    return schedule(
        timing.shape,
        peak=peak,
        steps=max(end, warmup + 1),
        warmup_steps=warmup,
        final_fraction=timing.final_fraction,
        decay_fraction=timing.decay_fraction,
    )


def weight_decay_schedule(config: TrainConfig) -> Schedule:
    """λ of every step."""
    timing = config.schedule
    return schedule(
        timing.weight_decay_shape,
        peak=config.optimizer.weight_decay,
        steps=config.run.steps,
        final_fraction=timing.weight_decay_final_fraction,
    )


_SHAPES: dict[str, Callable[[float, float, int], Schedule]] = {
    "constant": lambda _start, end, _steps: Constant(end),
    "cosine": Cosine,
    "linear": Linear,
}


def _stages(stages: tuple[str, ...], peak: float, steps_for: Callable[[float], int]) -> Schedule:
    """`SHAPE to FRACTION over TOKENS`, one after the other; each starts where the one before ended."""
    faults, pieces = [], []
    value, seen = peak, 0.0
    for stage in stages:
        words = stage.split()
        try:
            shape, _, fraction, _, tokens = words
            end, length = peak * float(fraction), float(tokens)
        except ValueError:
            faults.append(f"schedule.stages '{stage}': must be like 'cosine to 0.1 over 4e12'")
            continue
        if shape not in _SHAPES or words[1] != "to" or words[3] != "over":
            faults.append(f"schedule.stages '{stage}': {did_you_mean(shape, _SHAPES)}")
            continue
        first = steps_for(seen) if seen else 0
        pieces.append((first, _SHAPES[shape](value, end, max(1, steps_for(seen + length) - first))))
        value, seen = end, seen + length
    if faults or not pieces:
        raise ConfigError(faults or ["schedule.shape 'stages' needs schedule.stages"])
    return Piecewise(tuple(pieces))
