"""Learning rate and weight decay as pure functions of the step.

A schedule is a frozen value that maps a step, counted from 0, to a number. It holds no state, so there is nothing to
save with a checkpoint and nothing that a resumed run could get wrong. The same schedules drive η and λ, up or down.

    from weightdecay.schedules import Cosine, Warmup

    lr = Warmup(2_000, then=Cosine(6e-4, 6e-5, steps=598_000))
    lr(0), lr(1_999), lr(600_000)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, TypeGuard, get_args

from weightdecay.errors import ScheduleError, did_you_mean


class Schedule(Protocol):
    """A number for every step, counted from 0; past its last step it stays where it ended."""

    def __call__(self, step: int) -> float: ...


def _raise_if_any(faults: list[str]) -> None:
    if faults:
        raise ScheduleError(faults)


def _shown(value: Any) -> str:
    """As a message shows it: a string in quotes, for 1e-3 and "1e-3" are to be told apart."""
    return str(value) if _is_number(value) else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _value_faults(**values: Any) -> list[str]:
    return [
        f"{name} must be a finite number of at least 0, got {_shown(value)}"
        for name, value in values.items()
        if not (_is_number(value) and math.isfinite(value) and value >= 0)
    ]


def _length_faults(shape: str, name: str, steps: Any) -> list[str]:
    if _is_number(steps) and steps >= 1:
        return []
    return [f"{shape} needs at least 1 step, got {name}={_shown(steps)}: give its length in steps"]


def is_schedule(value: Any) -> TypeGuard[Schedule]:
    """Whether it can be asked for a step; a class of schedules can not."""
    return callable(value) and not isinstance(value, type)


def _schedule_faults(name: str, value: Any) -> list[str]:
    if is_schedule(value):
        return []
    return [f"{name} must be a schedule, such as Cosine(6e-4, 6e-5, steps=9_000), got {_shown(value)}"]


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __post_init__(self) -> None:
        _raise_if_any(_value_faults(value=self.value))

    def __call__(self, step: int) -> float:  # noqa: ARG002  # every schedule takes the step
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end`, up or down.

        value(t) = end + ½ (start − end) (1 + cos(π · min(t / steps, 1)))

    Args:
        start: value at step 0.
        end: value at `steps` and after.
        steps: length of the way, at least 1.

    Raises:
        ScheduleError: a value is negative or not finite, or `steps` is not positive.

    Reference: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _raise_if_any(_value_faults(start=self.start, end=self.end) + _length_faults("a cosine", "steps", self.steps))

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.end + 0.5 * (self.start - self.end) * (1.0 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` to `end`, up or down.

        value(t) = start + (end − start) · min(t / steps, 1)

    Raises:
        ScheduleError: a value is negative or not finite, or `steps` is not positive.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _raise_if_any(
            _value_faults(start=self.start, end=self.end) + _length_faults("a straight line", "steps", self.steps)
        )

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps)


@dataclass(frozen=True)
class Warmup:
    """A straight rise to the first value of `then`, which takes over after `steps`.

        value(t) = then(0) · (t + 1) / steps   for t < steps,   then(t − steps)   afterwards

    The rise starts above zero: a first step at lr 0 would train nothing and, under a rule that ignores lr,
    would still decay.
    """

    steps: int
    then: Schedule

    def __post_init__(self) -> None:
        fits = _is_number(self.steps) and self.steps >= 0
        faults = [] if fits else [f"a warm-up cannot have steps={_shown(self.steps)}: give 0 or more"]
        _raise_if_any(faults + _schedule_faults("then", self.then))

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.then(0) * ((step + 1) / self.steps)
        return self.then(step - self.steps)


@dataclass(frozen=True)
class InverseSqrt:
    """A fall with the square root of time that starts at `start` and has fallen by √2 after `timescale` steps.

        value(t) = start · √(timescale / (timescale + t))

    After a warm-up of `timescale` steps it continues as start · √(timescale / t), the Transformer's own schedule:
    `Warmup(4_000, then=InverseSqrt(peak, timescale=4_000))`.

    Reference: Vaswani et al. 2017, arXiv:1706.03762, §5.3.
    """

    start: float
    timescale: int

    def __post_init__(self) -> None:
        _raise_if_any(_value_faults(start=self.start) + _length_faults("the timescale", "timescale", self.timescale))

    def __call__(self, step: int) -> float:
        return self.start * math.sqrt(self.timescale / (self.timescale + step))


@dataclass(frozen=True)
class OneOverT:
    """ω/t, with t the number of the step counted from 1, shifted by `offset` if the first steps would be too large.

        value(t) = omega / (t + 1 + offset)

    As the λ of the `independent` rule the value is the decay per step, which may not pass 1: with ω = 4 give an
    offset of 3 or more.

    Reference: λ(t) = ω/t with ω ≈ 4 under independent decay: Ferbach et al. 2026 (ADana), arXiv:2602.05298.
    """

    omega: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        _raise_if_any(_value_faults(omega=self.omega, offset=self.offset))

    def __call__(self, step: int) -> float:
        return self.omega / (step + 1 + self.offset)


CooldownShape = Literal["linear", "cosine", "sqrt"]


@dataclass(frozen=True)
class WarmupStableDecay:
    """A rise, a plateau at `peak`, and a cooldown to `final`.

    With x the part of the cooldown that is done, the value falls from `peak` to `final` as

        linear: 1 − x      cosine: ½ (1 + cos πx)      sqrt: 1 − √x

    Args:
        warmup_steps, stable_steps, decay_steps: lengths of the three parts in steps; any may be 0.

    Reference: Hu et al. 2024, arXiv:2404.06395, §4; the 1 − √x shape: Hägele et al. 2024, arXiv:2405.18392, §3.
    """

    peak: float
    warmup_steps: int
    stable_steps: int
    decay_steps: int
    final: float = 0.0
    shape: CooldownShape = "linear"

    def __post_init__(self) -> None:
        lengths = {
            "warmup_steps": self.warmup_steps,
            "stable_steps": self.stable_steps,
            "decay_steps": self.decay_steps,
        }
        faults = _value_faults(peak=self.peak, final=self.final, **lengths)
        shape: Any = self.shape  # whatever the caller gave, be its type what it may
        if not (isinstance(shape, str) and shape in get_args(CooldownShape)):
            near = did_you_mean(str(shape), get_args(CooldownShape))
            faults.append(f"unknown cooldown shape '{self.shape}': {near}")
        _raise_if_any(faults)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * ((step + 1) / self.warmup_steps)
        into_decay = step - self.warmup_steps - self.stable_steps
        if into_decay < 0:
            return self.peak
        if into_decay >= self.decay_steps:
            return self.final
        done = into_decay / self.decay_steps
        left = {
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
            "sqrt": 1.0 - math.sqrt(done),
        }[self.shape]
        return self.final + (self.peak - self.final) * left


@dataclass(frozen=True)
class Piecewise:
    """Schedules one after the other; each counts its own steps from 0.

    PaLM's lr, constant for 10,000 steps and 1/√t after (Chowdhery et al. 2022, arXiv:2204.02311, §5):

        from weightdecay.schedules import Constant, InverseSqrt, Piecewise

        Piecewise(((0, Constant(1e-2)), (10_000, InverseSqrt(1e-2, timescale=10_000))))

    Args:
        pieces: (first step, schedule) in rising order; the first begins at step 0.

    Raises:
        ScheduleError: there is no piece, the first does not begin at 0, or the steps do not rise.
    """

    pieces: tuple[tuple[int, Schedule], ...]

    def __post_init__(self) -> None:
        _raise_if_any(_piece_faults(self.pieces))
        firsts = [first for first, _ in self.pieces]
        faults = [] if firsts and firsts[0] == 0 else ["the first piece of a piecewise schedule must begin at step 0"]
        if any(late <= early for early, late in itertools.pairwise(firsts)):
            faults.append(f"the pieces of a schedule must begin at rising steps, got {firsts}")
        _raise_if_any(faults)

    def __call__(self, step: int) -> float:
        first, current = next(piece for piece in reversed(self.pieces) if step >= piece[0])
        return current(step - first)


def _piece_faults(pieces: Any) -> list[str]:
    if not isinstance(pieces, tuple | list):
        return [f"pieces must be pairs of a first step and a schedule, got {_shown(pieces)}"]
    faults = []
    for place, piece in enumerate(pieces):
        if not (isinstance(piece, tuple | list) and len(piece) == 2 and _is_number(piece[0])):
            faults.append(f"pieces[{place}] must be a pair of a first step and a schedule, got {_shown(piece)}")
        else:
            faults += _schedule_faults(f"pieces[{place}][1]", piece[1])
    return faults


def _stable_decay(peak: float, steps: int, warmup_steps: int, final: float, decay_fraction: float) -> Schedule:
    decay_steps = min(round(decay_fraction * steps), steps - warmup_steps)
    return WarmupStableDecay(peak, warmup_steps, steps - warmup_steps - decay_steps, decay_steps, final)


# name -> (peak, steps of the whole run, warm-up steps, final value, part of the run that cools down) -> schedule
_BY_NAME: dict[str, Callable[[float, int, int, float, float], Schedule]] = {
    "constant": lambda peak, _steps, warmup, _final, _part: Warmup(warmup, Constant(peak)),
    "cosine": lambda peak, steps, warmup, final, _part: Warmup(warmup, Cosine(peak, final, max(steps - warmup, 1))),
    "linear": lambda peak, steps, warmup, final, _part: Warmup(warmup, Linear(peak, final, max(steps - warmup, 1))),
    "inverse_sqrt": lambda peak, _steps, warmup, _final, _part: Warmup(warmup, InverseSqrt(peak, max(warmup, 1))),
    "warmup_stable_decay": _stable_decay,
    "one_over_t": lambda peak, _steps, warmup, _final, _part: Warmup(warmup, OneOverT(peak)),
}

SCHEDULE_NAMES: tuple[str, ...] = tuple(_BY_NAME)


def schedule(
    name: str,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    decay_fraction: float = 0.2,
) -> Schedule:
    """The schedule that a configuration names, for η or λ.

    Args:
        name: one of `SCHEDULE_NAMES`.
        peak: the highest value; the first one where the schedule rises (`final_fraction` > 1), ω for `one_over_t`.
        steps: length of the whole run in steps, warm-up included.
        warmup_steps: steps of the rise from 0 to `peak`.
        final_fraction: value at the end as a fraction of `peak`; over 1 it rises. Of no effect where nothing ends:
            `constant`, `inverse_sqrt`, `one_over_t`.
        decay_fraction: part of the run that `warmup_stable_decay` cools down.

    Raises:
        ScheduleError: with every fault: an unknown name (and the nearest one), a run without steps, a warm-up
            longer than the run, a negative or non-finite value.
    """
    faults = _value_faults(peak=peak, final_fraction=final_fraction) + _length_faults("a run", "steps", steps)
    if name not in SCHEDULE_NAMES:
        faults.insert(0, f"unknown schedule '{name}': {did_you_mean(str(name), _BY_NAME)}")
    longest = max(steps, 1) if _is_number(steps) else math.inf
    if not (_is_number(warmup_steps) and 0 <= warmup_steps <= longest):
        faults.append(f"warmup_steps must lie between 0 and the run's {steps} steps, got {_shown(warmup_steps)}")
    if not (_is_number(decay_fraction) and 0 <= decay_fraction <= 1):
        faults.append(f"decay_fraction must lie between 0 and 1, got {_shown(decay_fraction)}")
    _raise_if_any(faults)
    return _BY_NAME[name](peak, steps, warmup_steps, peak * final_fraction, decay_fraction)
