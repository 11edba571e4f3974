"""Decay that survives low precision: a rounding as an object.

bfloat16 has 8 bits of mantissa. A decay of η·λ below 2⁻⁹ moves no weight to the next one, so rounding to nearest
returns every weight unchanged, at every step, for ever. Three ways to keep what a step does, all of which do the
step's whole arithmetic, decay *and* update, in float32 and round once:

    stochastic   round up or down with the probability that makes the mean exact; no memory but a count of steps
    kahan        keep in a second low-precision tensor what rounding lost, and add it before the next step; 2 bytes
    master       keep float32 weights and give the model their rounding; 4 bytes a weight

Applying the decay on its own, in bfloat16 or outside the compensated sum, loses it again: it must share the rounding.

An object says what it remembers (`memory`), which float32 weights the low ones stand for (`widen`), and how they are
written back (`write`). The same methods serve the eager pieces and the compiled loops, so they are written in
plain tensor operations on flat tensors, in place, and take the memory for what is passing from outside.

Reference: Collange et al. 2015 and Zamirai et al. 2020, arXiv:2010.06192 (stochastic rounding and Kahan summation
for bfloat16 weights).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.noise import LOW_BITS

RoundingName = Literal["nearest", "stochastic", "kahan", "master"]
LOW_PRECISION = (torch.bfloat16, torch.float16)


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it."""
    return str(dtype).removeprefix("torch.")


# State that is one whole number, and not one for each weight: how often, and which noise is the tensor's own.
ROUNDED, STREAM = "rounded_steps", "noise_stream"
COUNTS = ("step", ROUNDED, STREAM)

# What a rounding remembers of a tensor, by name.
Kept: TypeAlias = Mapping[str, Tensor]


class Scratch(Protocol):
    """Uninitialised memory of a tensor's size; the same name may get the same memory again."""

    def __call__(self, name: str, /, like: Tensor, dtype: torch.dtype) -> Tensor: ...


def fresh(_name: str, /, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Scratch that nobody else has."""
    return torch.empty_like(like, dtype=dtype)


class Rounding:
    """How low-precision weights are stepped in float32 and rounded back, to the nearest; stateless itself."""

    name: ClassVar[str]
    needs_noise: ClassVar[bool] = False
    """Whether `write` takes noise, uniform in [0, 2¹⁶) as int32."""
    dtypes: ClassVar[tuple[torch.dtype, ...]] = LOW_PRECISION
    """Weights that it is made for."""

    def acts_on(self, dtype: torch.dtype) -> bool:
        """Whether weights of this dtype are stepped in float32; all others step in their own."""
        return dtype in LOW_PRECISION

    def memory(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Name and dtype of what it remembers for each weight between steps."""
        return {}

    def begin(self, weights: Tensor) -> dict[str, Tensor]:
        """The same at the start, by name."""
        return {
            name: torch.zeros_like(weights, dtype=dtype, memory_format=torch.contiguous_format)
            for name, dtype in self.memory(weights.dtype).items()
        }

    def widen(self, low: Tensor, state: Kept, scratch: Scratch) -> Tensor:
        """The float32 weights that the low ones stand for, to be changed in place."""
        return scratch("wide", low, torch.float32).copy_(low)

    def write(self, wide: Tensor, low: Tensor, state: Kept, scratch: Scratch, noise: Tensor | None) -> None:
        """Round into the low weights, and remember what is to be remembered; `wide` and `noise` may be overwritten."""
        low.copy_(wide)

    def remembered(self, low: Tensor, state: Kept, scratch: Scratch) -> Tensor:
        """The low weights that what it remembers is of: these, unless somebody else has changed them since."""
        return low

    def is_disturbed(self, low: Tensor, state: Kept, scratch: Scratch) -> bool:
        """Whether somebody else has changed the weights since."""
        if not self.memory(low.dtype):
            return False
        known = self.remembered(low, state, scratch)
        if torch.equal(low.view(torch.int16), known.view(torch.int16)):  # most often; by their bits this is fastest
            return False
        return bool(((known != low) & ~(known.isnan() & low.isnan())).any())

    def renew_(self, low: Tensor, state: Kept) -> None:
        """Begin anew what it remembers of weights that somebody else has changed, and of those alone."""
        holds = self.remembered(low, state, fresh) == low
        for name, start in self.begin(low).items():
            state[name].copy_(torch.where(holds, state[name], start))


class Nearest(Rounding):
    """To the nearest, as torch does: weights step in their own dtype."""

    name = "nearest"

    def acts_on(self, dtype: torch.dtype) -> bool:
        return False


class Stochastic(Rounding):
    """Up or down, with the probability that makes the mean exact.

    Uniform noise on the 16 bits that bfloat16 cuts off a float32 carries into the 17th with exactly the probability of
    their weight. Infinities stay what they are, and so does NaN.
    """

    name = "stochastic"
    needs_noise = True
    dtypes = (torch.bfloat16,)

    def write(self, wide: Tensor, low: Tensor, state: Kept, scratch: Scratch, noise: Tensor | None) -> None:
        assert noise is not None
        bits = _with_one_nan(wide).view(torch.int32)
        bits.add_(noise).bitwise_and_(~LOW_BITS)
        low.copy_(bits.view(torch.float32))


# Two spellings of each for speed: of the one the compiler makes three choices, of the other the processor two passes.


def _with_one_nan(wide: Tensor) -> Tensor:
    """Every NaN as the one without low bits: CUDA's own, 0x7fffffff, noise would carry into −0."""
    if torch.compiler.is_compiling():
        return torch.where(wide == wide, wide, math.nan)
    return torch.nan_to_num_(wide, nan=math.nan, posinf=math.inf, neginf=-math.inf)


def _finite_or_zero(wide: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.where(wide.abs() < math.inf, wide, 0.0)
    return torch.nan_to_num_(wide, nan=0.0, posinf=0.0, neginf=0.0)


class Kahan(Rounding):
    """To the nearest, with what that lost added before the next step.

    It is at most half of what lies between a weight and the next one. Where it is more, somebody else has changed the
    weight since: the weight holds, and nothing is added. A change that leaves it less than that is within the rounding.
    """

    name = "kahan"

    def memory(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        return {"compensation": dtype}

    def widen(self, low: Tensor, state: Kept, scratch: Scratch) -> Tensor:
        wide = super().widen(low, state, scratch)
        return wide.add_(scratch("spare", low, torch.float32).copy_(state["compensation"]))

    def write(self, wide: Tensor, low: Tensor, state: Kept, scratch: Scratch, noise: Tensor | None) -> None:
        low.copy_(wide)
        lost = wide.sub_(scratch("spare", low, torch.float32).copy_(low))
        state["compensation"].copy_(_finite_or_zero(lost))  # inf − inf is NaN, and an infinity has lost nothing

    def remembered(self, low: Tensor, state: Kept, scratch: Scratch) -> Tensor:
        # A hair less than was lost, or half of the way to the next weight might round to that one.
        wide = scratch("spare", low, torch.float32).copy_(state["compensation"]).mul_(1 - 2**-8).add_(low)
        return scratch("rounded", low, low.dtype).copy_(wide)


class Master(Rounding):
    """Float32 weights beside the model's, which are their rounding.

    Where a weight is not the rounding of its master, somebody else has changed it since (a loaded checkpoint, a swap
    with averaged weights, pruning): the weight holds, and its master is taken anew from it.
    """

    name = "master"

    def begin(self, weights: Tensor) -> dict[str, Tensor]:
        return {"master": weights.to(torch.float32, memory_format=torch.contiguous_format)}

    def memory(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        return {"master": torch.float32}

    def widen(self, low: Tensor, state: Kept, scratch: Scratch) -> Tensor:
        return state["master"]  # which the step changes, and `write` rounds

    def remembered(self, low: Tensor, state: Kept, scratch: Scratch) -> Tensor:
        return scratch("rounded", low, low.dtype).copy_(state["master"])


NEAREST, STOCHASTIC, KAHAN, MASTER = Nearest(), Stochastic(), Kahan(), Master()

ROUNDINGS: Mapping[str, Rounding] = {rounding.name: rounding for rounding in (NEAREST, STOCHASTIC, KAHAN, MASTER)}

# What a user gives as `rounding`.
RoundingLike: TypeAlias = RoundingName | Rounding


def as_rounding(value: Any) -> Rounding:
    """The rounding of a name, or the value itself.

    Raises:
        OptimizerError: there is no such rounding; the message names the nearest.
    """
    if isinstance(value, str) and value in ROUNDINGS:
        return ROUNDINGS[value]
    if isinstance(value, Rounding):
        return value
    raise OptimizerError(f"unknown rounding '{value}': {did_you_mean(str(value), ROUNDINGS)}")


def spelt_rounding(rounding: Rounding) -> str | Rounding:
    """A rounding as a group holds it: by its name where that says it all, so that states stay plain."""
    return rounding.name if ROUNDINGS.get(rounding.name) is rounding else rounding


def group_rounding(group: Mapping[str, Any]) -> Rounding:
    """The rounding of an optimizer's group; `NEAREST` where it says none."""
    return as_rounding(group.get("rounding", NEAREST))
