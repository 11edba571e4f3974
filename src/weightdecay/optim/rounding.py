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

_LOW_BITS = 0xFFFF  # what bfloat16 cuts off a float32
_MIX = 0x9E3779B97F4A7C15


class Dither:
    """Uniform 16-bit noise that is a function of (seed, step, tensor, piece): a resumed run rounds as it would have.

    One tile of noise is drawn for each step; each piece of each tensor uses it under another exclusive-or. Every
    single value is exactly uniform and any two are independent, which is all that an unbiased mean and its variance
    need, at the price of one tile a step.
    """

    def __init__(self, seed: int = 0, size: int = 1 << 18) -> None:
        self.seed, self.size = seed, size
        self._drawn: tuple[int, torch.device] | None = None  # for this step, on this device
        self._tile = torch.empty(0, dtype=torch.int32)
        # The exclusive-or is done in place, which spares a buffer's way through the cache. A short piece leaves the
        # rest of the tile as it was, so a stack keeps (end, mask): its top holds for the tile's first elements.
        self._masks: list[tuple[int, int]] = []

    def __call__(self, size: int, device: torch.device, step: int, tensor: int, piece: int) -> Tensor:
        """int32 of `size` elements in [0, 65536), the noise of a piece; valid until the next call."""
        if self._drawn != (step, device):
            generator = torch.Generator(device=device).manual_seed(_mixed(self.seed, step))
            self._tile = torch.randint(
                0, _LOW_BITS + 1, (self.size,), dtype=torch.int32, device=device, generator=generator
            )
            self._drawn, self._masks = (step, device), [(self.size, 0)]
        wanted, begin = _mixed(self.seed, step, tensor, piece) & _LOW_BITS, 0
        while begin < size:
            end, present = self._masks[-1]
            self._tile[begin : min(end, size)].bitwise_xor_(present ^ wanted)
            if end <= size:
                self._masks.pop()
            begin = end
        self._masks.append((size, wanted))
        return self._tile[:size]


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
    bits.add_(noise).bitwise_and_(~_LOW_BITS)
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
