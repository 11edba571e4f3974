"""A whole elementwise step in one compiled loop: decay, direction and rounding, each weight met once.

torch's operations go through memory one by one; `torch.compile` makes one loop of them. What it computes is what the
pieces of `pieces` compute, up to rounding: a compiler orders float32 operations as written here, torch's fused
kernels as written there.
"""

from __future__ import annotations

import functools
import re
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.decay import decay_
from weightdecay.optim.noise import noise_, noise_keys
from weightdecay.optim.roundings import Rounding, fresh
from weightdecay.rules import Rule

# From so many weights on a processor, compiling (some ten seconds, about three when torch has it on disk) is worth it
# unasked.
ENOUGH = 1 << 26

# Where half a vector of bfloat16 is read and written in one place, each read waits for the store before it: a large
# tensor then goes in two parts at once, each working while the other waits. See docs/log.md.
_LARGE = 1 << 16

# (for each part weights, gradient and state by name, flat; numbers; keys of each part's noise): changes them in place.
# The numbers are the sign of the gradient, where −1 ascends, a and 1 − a (λ under a coupled rule), the direction's rate
# and its own.
Loop: TypeAlias = Callable[[Sequence[Mapping[str, Tensor]], Tensor, Tensor | None], None]


class CompileWarning(UserWarning):
    """A step could not be compiled and goes operation by operation."""


@dataclass(frozen=True)
class Direction:
    """u of w ← (decay of w) − rate·u, in terms that compile.

    Attributes:
        function: (gradient, state by name, own numbers) → u; moves the state, in place.
        numbers: (group, state by name) → the rate and the own numbers of a tensor's step.
        own: how many those are.
    """

    name: str
    function: Callable[[Tensor, Mapping[str, Tensor], Sequence[Tensor]], Tensor]
    numbers: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[float, Sequence[float]]]
    own: int


@dataclass(frozen=True)
class LoopKind:
    """What one compiled loop is for.

    Attributes:
        state: name and dtype of each tensor of the state that the loop meets.
    """

    direction: Direction
    rule: Rule
    rounding: Rounding
    weights: torch.dtype
    gradient: torch.dtype
    state: tuple[tuple[str, torch.dtype], ...]
    device: str
    parts: int

    def __str__(self) -> str:
        name = f"{self.direction.name}_{self.rule.name}_{self.weights}_{self.rounding.name}_{self.parts}"
        return re.sub(r"\W", "_", name.replace("torch.", ""))


def parts_of(size: int, rounding: Rounding, dtype: torch.dtype) -> int:
    """In how many parts a tensor of so many elements goes through a loop."""
    in_low_precision_alone = rounding.acts_on(dtype) and torch.float32 not in rounding.memory(dtype).values()
    return 2 if in_low_precision_alone and size >= _LARGE and size % 2 == 0 else 1


@functools.cache
def usable_loop(kind: LoopKind, asked: bool) -> Loop | None:
    """The compiled loop. Where it cannot be had that is an error if somebody asked for it, else None, said once."""
    try:
        return _compiled(kind)
    except Exception as error:  # a compiler fails in its own ways: none installed, no room on disk …
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if asked:
        raise OptimizerError(
            f"compiled=True: torch.compile failed ({reason}): install a C++ compiler and Python's headers, or leave "
            "`compiled` out"
        )
    warnings.warn(
        f"torch.compile failed ({reason}): steps go operation by operation, about half as fast; install a C++ compiler "
        "and Python's headers, or give compiled=False",
        CompileWarning,
        stacklevel=2,
    )
    return None


def _compiled(kind: LoopKind) -> Loop:
    step = _loop_of(kind)
    # torch counts and looks up compilations by code object, so each kind has its own.
    code = step.__code__.replace(co_name=str(kind))
    own = types.FunctionType(code, step.__globals__, str(kind), step.__defaults__, step.__closure__)

    def zeros(dtype: torch.dtype) -> Tensor:
        return torch.zeros(1 << 20, dtype=dtype, device=kind.device)  # large: the loop is to be shared out to threads

    dtypes = {"weights": kind.weights, "gradient": kind.gradient, **dict(kind.state)}
    parts = [{name: zeros(dtype) for name, dtype in dtypes.items()} for _ in range(kind.parts)]
    numbers = torch.ones(4 + kind.direction.own, dtype=torch.float32, device=kind.device)
    keys = noise_keys([0] * kind.parts, [0] * kind.parts).to(kind.device) if kind.rounding.needs_noise else None
    # Else the compiler takes float32 → bfloat16 → float32 for nothing, and the remainder of Kahan's sum for zero.
    loop: Loop = torch.compile(own, dynamic=True, fullgraph=True, options={"emulate_precision_casts": True})
    with torch.no_grad():  # as a step is
        loop(parts, numbers, keys)  # which compiles it
    return loop


def _loop_of(kind: LoopKind) -> Loop:
    rule, rounding = kind.rule, kind.rounding
    widened = rounding.acts_on(kind.weights)

    def step(parts: Sequence[Mapping[str, Tensor]], numbers: Tensor, keys: Tensor | None) -> None:
        for number, part in enumerate(parts):
            sign, decay, kept, rate, *own = numbers.unbind()
            weights = part["weights"]
            wide = weights
            if widened:
                rounding.renew_(weights, part)
                wide = rounding.widen(weights, part, fresh)

            slope = part["gradient"].float() * sign
            if rule.coupled:
                slope = slope + decay * wide
            update = kind.direction.function(slope, part, own)
            if not rule.coupled:
                decay_(wide, rule, decay, kept, update.clone() if rule.is_masked else None, part.get("initial"))
            wide.sub_(rate * update)

            if widened:
                noise = None
                if keys is not None:
                    places = torch.arange(wide.numel(), dtype=torch.int32, device=wide.device)
                    noise = noise_(places, keys[number].unbind())
                rounding.write(wide, weights, part, fresh, noise)

    return step
