"""When what happens: how the batch grows, and the learning rate and λ of every step, from a configuration.

A configuration counts in tokens, as the papers do, or in steps; here everything becomes steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from weightdecay.data.batches import BatchSizes
from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.optim.schedules import Constant, Cosine, InverseSqrt, Linear, Piecewise, Schedule, Warmup, schedule
from weightdecay.recipes.settings import RunSettings, TrainConfig


def batch_sizes(run: RunSettings, context: int, micro: int = 1) -> BatchSizes:
    """The ramp `TOKENS:BATCH_TOKENS, …` as sequences a step that the processes can share out into equal passes.

    Each entry says how large the batch is once so many tokens were seen: from there on (`steps`), or reached in a
    straight line over the tokens since the entry before (`linear`). The last is the run's full batch.

    Args:
        micro: sequences of a pass in one process.

    Raises:
        ConfigError: an entry that is no pair of numbers, entries that do not rise from 0, or that end elsewhere.
    """
    full = max(1, round(run.batch_tokens / context))
    if not run.batch_ramp:
        return BatchSizes(context, full)
    points = [_point(entry) for entry in run.batch_ramp]
    faults = [] if points[0][0] == 0 else [f"run.batch_ramp must begin at 0 tokens, not at {points[0][0]:g}"]
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        faults.append("run.batch_ramp must go on at rising numbers of tokens")
    if max(1, round(points[-1][1] / context)) != full:
        faults.append(f"run.batch_ramp ends at {points[-1][1]:g} tokens, run.batch_tokens is {run.batch_tokens}")
    if faults:
        raise ConfigError(faults)
    sizes: list[int] = []
    seen = 0
    while seen < points[-1][0]:
        wanted = _batch_at(points, seen, linear=run.batch_ramp_shape == "linear") / context
        multiple = run.nproc if wanted <= micro * run.nproc else micro * run.nproc
        sizes.append(min(full, multiple * max(1, round(wanted / multiple))))
        seen += sizes[-1] * context
    return BatchSizes(context, full, tuple(sizes))


def _point(entry: str) -> tuple[float, float]:
    tokens, _, batch = entry.partition(":")
    try:
        return float(tokens.replace("_", "")), float(batch.replace("_", ""))
    except ValueError:
        raise ConfigError(f"run.batch_ramp '{entry}': must be TOKENS:BATCH_TOKENS, like 4e9:500_000") from None


def _batch_at(points: list[tuple[float, float]], seen: float, *, linear: bool) -> float:
    index = max(index for index, (tokens, _) in enumerate(points) if tokens <= seen)
    (start, before), (end, after) = points[index], points[min(index + 1, len(points) - 1)]
    return before + (after - before) * (seen - start) / (end - start) if linear and end > start else before


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
