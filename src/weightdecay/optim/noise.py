"""Noise that is a function of what is rounded: of the tensor's stream, the step and the element's place in it.

Nothing is drawn, so a resumed run rounds as it would have, and tensors may be stepped one by one, in pieces, together
or in a compiled loop: each element gets the noise that it would have got otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOW_BITS = 0xFFFF  # what bfloat16 cuts off a float32
_MIX = 0x9E3779B97F4A7C15
_SAMPLE = 1 << 12  # elements that tell tensors apart


def noise_stream(label: str, *tensors: Tensor) -> Tensor:
    """The number of a tensor's own noise, int64: of its label, and of what it and its gradient are when it begins.

    The label alone would not do: each of many optimizers of one tensor has a first one. Of distributed tensors no rank
    sees the whole, and all must find one number, so those go by their label.
    """
    digest = hashlib.blake2b(label.encode(), digest_size=8)
    for tensor in tensors:
        if not hasattr(tensor, "__tensor_flatten__") and not tensor.is_meta:
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(flat.numel() // _SAMPLE, 1)].contiguous().cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return torch.tensor(int.from_bytes(digest.digest(), "little") >> 1)


def noise_keys(streams: Sequence[int], steps: Sequence[int], shard: int = 0, begin: int = 0) -> Tensor:
    """What decides the noise of some tensors' elements from `begin` on, int32 [tensors, 3].

    Args:
        streams: the number of each tensor's noise.
        steps: how often each tensor has been rounded.
        shard: the rank's part of a distributed tensor.
        begin: the first element's place in its tensor.
    """
    mixed = np.zeros(len(steps), dtype=np.uint64)
    for numbers in (steps, streams, shard, begin >> 31):
        mixed = _mixed(mixed, np.asarray(numbers, dtype=np.uint64))
    keys = np.stack(
        [
            (mixed >> np.uint64(1)).astype(np.uint32),
            (mixed >> np.uint64(32)).astype(np.uint32),
            np.full(len(steps), begin & 0x7FFFFFFF, dtype=np.uint32),
        ],
        axis=1,
    )
    return torch.from_numpy(keys.view(np.int32))


def _mixed(before: NDArray[np.uint64], number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Well-mixed bits of what was mixed before and one more integer (the finaliser of splitmix64)."""
    mixed = (before + number + np.uint64(1)) * np.uint64(_MIX)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


def noise_(places: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """Make of int32 places 0, 1, 2 … their noise, uniform in [0, 65536), in place.

    A finaliser of multiplications and shifts, which differs between tensors and steps by a key before it and one
    within it. Reference: Wellons 2018, https://nullprogram.com/blog/2018/07/31/ (lowbias32).

    Args:
        keys: three, of `noise_keys`: one number for all places, or one for each.
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
