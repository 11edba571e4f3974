"""When what happens: how the batch grows, and the learning rate, λ and clipping of every step, from a configuration.

A configuration counts in tokens, as the papers do, or in steps; here everything becomes steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weightdecay.data.batches import BatchSizes
from weightdecay.errors import ConfigError
from weightdecay.recipes.rows import RampPoint, Stage
from weightdecay.recipes.settings import RunSettings, TrainConfig
from weightdecay.schedules import Constant, Cosine, InverseSqrt, Linear, OneOverT, Piecewise, Schedule, Warmup, schedule


def batch_sizes(run: RunSettings, context: int) -> BatchSizes:
    """The run's ramp as whole sequences a step, whatever the number of processes.

    Each row says how large the batch is once so many tokens were seen: from there on (`steps`), or reached in a
    straight line over the tokens since the row before (`linear`), which a `batch_ramp_increment` climbs in stairs
    of that height. The last is the run's full batch.

    Raises:
        ConfigError: the ramp ends elsewhere.
    """
    full = max(1, round(run.batch_tokens / context))
    ramp = run.batch_ramp
    if not ramp:
        return BatchSizes(context, full)
    if max(1, round(ramp[-1].batch_tokens / context)) != full:
        raise ConfigError(
            f"run.batch_ramp ends at {ramp[-1].batch_tokens:g} tokens, run.batch_tokens is {run.batch_tokens}"
        )
    sizes: list[int] = []
    seen = 0
    stairs = max(1, run.batch_ramp_increment) if run.batch_ramp_shape == "linear" else 0
    while seen < ramp[-1].tokens:
        sizes.append(max(1, round(_batch_at(ramp, seen, stairs) / context)))
        seen += sizes[-1] * context
    return BatchSizes(context, full, tuple(sizes))


def _batch_at(ramp: Sequence[RampPoint], seen: int, stairs: int) -> int:
    """Tokens of the batch after `seen` tokens. In whole numbers, so that a stair begins exactly where it should."""
    index = max(index for index, point in enumerate(ramp) if point.tokens <= seen)
    (start, before), (end, after) = ((round(point.tokens), point.batch_tokens) for point in ramp[index : index + 2])
    grown = (after - before) * (seen - start) // (end - start)
    return before + (grown // stairs * stairs if stairs else 0)


def grad_clip_schedule(config: TrainConfig, sizes: BatchSizes) -> Schedule:
    """The largest norm of the gradient at every step, 0 where it is not clipped.

    It is `optimizer.grad_clip` until the first of the changes, each of which holds from the first step that has so many
    tokens behind it.
    """
    changes = config.schedule.grad_clip_changes
    # Two changes within a step: the later one holds, as it is the one that the next step finds.
    norms = {0: config.optimizer.grad_clip, **{sizes.steps_for(change.tokens): change.grad_clip for change in changes}}
    return Piecewise(tuple((step, Constant(norm)) for step, norm in norms.items()))


def lr_schedule(config: TrainConfig, sizes: BatchSizes) -> Schedule:
    """The learning rate of every step of a configuration whose warm-up and length are in steps."""
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
    timing, peak = config.schedule, config.optimizer.peak_weight_decay
    if timing.weight_decay_shape == "one_over_t":
        half = timing.weight_decay_half_steps
        return OneOverT(peak * half, half - 1)
    return schedule(
        timing.weight_decay_shape,
        peak=peak,
        steps=config.run.steps,
        final_fraction=timing.weight_decay_final_fraction,
    )


def momentum_schedule(config: TrainConfig) -> Schedule:
    """Muon's momentum at every step: a rise, `optimizer.momentum`, and a straight way to where it ends."""
    timing, steps, peak = config.schedule, config.run.steps, config.optimizer.momentum
    rise = timing.momentum_rise_steps
    pieces: dict[int, Schedule] = {0: Linear(timing.momentum_start, peak, rise) if rise else Constant(peak)}
    first = max(rise, steps - round(timing.decay_fraction * steps))
    if timing.momentum_final and first < steps:
        pieces[first] = Linear(peak, timing.momentum_final, steps - first)
    return Piecewise(tuple(pieces.items()))


_SHAPES: dict[str, Callable[[float, float, int], Schedule]] = {
    "constant": lambda _start, end, _steps: Constant(end),
    "cosine": Cosine,
    "linear": Linear,
}


def _stages(stages: Sequence[Stage], peak: float, steps_for: Callable[[float], int]) -> Schedule:
    """One after the other; each starts where the one before ended."""
    pieces = []
    value, seen = peak, 0.0
    for stage in stages:
        first = steps_for(seen) if seen else 0
        end, until = peak * stage.to, seen + stage.over_tokens
        pieces.append((first, _SHAPES[stage.shape](value, end, max(1, steps_for(until) - first))))
        value, seen = end, until
    return Piecewise(tuple(pieces))
