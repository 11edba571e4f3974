"""Decay that survives low precision.

bfloat16 has 8 bits of mantissa. A decay of η·λ below 2⁻⁹ moves no weight to the next one, so rounding to nearest
returns every weight unchanged, at every step, for ever. Three ways to keep what a step does, all of which do the
step's whole arithmetic, decay *and* update, in float32 and round once:

    stochastic   round up or down with the probability that makes the mean exact; no memory
    kahan        keep in a second bfloat16 tensor what rounding lost, and add it before the next step; 2 bytes a weight
    master       keep float32 weights and give the model their rounding; 4 bytes a weight

Applying the decay on its own, in bfloat16 or outside the compensated sum, loses it again: it must share the rounding.

Reference: Collange et al. 2015 and Zamirai et al. 2020, arXiv:2010.06192 (stochastic rounding and Kahan summation
for bfloat16 weights).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

Rounding = Literal["nearest", "stochastic", "kahan", "master"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
LOW_PRECISION = (torch.bfloat16, torch.float16)

LOW_BITS = 0xFFFF  # what bfloat16 cuts off a float32
_MIX = 0x9E3779B97F4A7C15


def noise_keys(seed: int, step: int, tensor: int, shard: int = 0, begin: int = 0) -> Tensor:
    """What decides the noise of a tensor's elements from `begin` on, int32 [3]: a resumed run rounds as it would have.

    Args:
        shard: the rank's part of a distributed tensor.
    """
    mixed = _mixed(seed, step, tensor, shard, begin >> 31)
    numbers = [mixed & 0xFFFFFFFF, mixed >> 31 & 0xFFFFFFFF, begin & 0x7FFFFFFF]
    return torch.tensor(numbers, dtype=torch.int64).to(torch.int32)  # wraps


def noise_(places: Tensor, keys: Tensor) -> Tensor:
    """Make of int32 places 0, 1, 2 … their noise, uniform in [0, 65536), in place.

    A finaliser of multiplications and shifts, which differs between tensors and steps by a key before it and one
    within it. Reference: Wellons 2018, https://nullprogram.com/blog/2018/07/31/ (lowbias32).
    """
    places += keys[2]
    places ^= keys[0]
    places ^= places >> 16 & 0xFFFF  # shifts of int32 bring the sign in
    places *= 0x7FEB352D
    places ^= keys[1]
    places ^= places >> 15 & 0x1FFFF
    places *= 0x846CA68B - (1 << 32)
    places >>= 16
    places &= LOW_BITS
    return places


def _mixed(*numbers: int) -> int:
    """63 well-mixed bits of a few integers (the finaliser of splitmix64)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 1) * _MIX & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
        mixed ^= mixed >> 31
    return mixed >> 1


def round_stochastically_(into: Tensor, wide: Tensor, noise: Tensor) -> None:
    """Write float32 `wide` into bfloat16 `into`, up or down with the probability that makes the mean exact.

    Adding uniform noise to the 16 bits that are cut off carries into the 17th with exactly the probability of their
    weight. `wide` is overwritten. Infinities and the canonical NaN have no low bits and stay what they are.
    """
    bits = wide.view(torch.int32)
    bits.add_(noise).bitwise_and_(~LOW_BITS)
    into.copy_(wide)


def start_rounding(weights: Tensor, rounding: str, state: dict[str, Any]) -> None:
    """Put what a rounding remembers between steps into a tensor's state, where it is not there yet."""
    if rounding == "kahan" and "compensation" not in state:
        state["compensation"] = torch.zeros_like(weights, memory_format=torch.contiguous_format)
    elif rounding == "master" and "master" not in state:
        state["master"] = weights.to(torch.float32, memory_format=torch.contiguous_format)
    elif rounding == "stochastic" and "rounded_steps" not in state:
        state["rounded_steps"] = torch.zeros((), dtype=torch.int64)


def realised_decay(weights: Tensor, decay: float) -> float:
    """The part of a decay that rounding to nearest leaves: ⟨w, w − round((1 − a)·w)⟩ / (a·‖w‖²); 1 is all of it.

    Args:
        weights: any shape and dtype; about a million elements at most are looked at.
        decay: a, the decay per step.
    """
    sample = weights.detach().reshape(-1)
    sample = sample[:: max(sample.numel() // (1 << 20), 1)]
    exact = sample.double()
    squared = exact.square().sum().item()
    if decay == 0.0 or squared == 0.0:
        return 1.0
    # Computed as torch's kernels do: the factor is formed in double and used in float32, then rounded to the dtype.
    kept = (sample * (1 - decay)).double()
    return (exact * (exact - kept)).sum().item() / (decay * squared)
