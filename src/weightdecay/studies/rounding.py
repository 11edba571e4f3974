"""A model's weights rounded to few bits, and how small they then compress.

    q = round(w/s),    s = max |w| of the row / (2^(bits − 1) − 1),    w ← s·q

one scale a row of each matrix, symmetric; vectors stay as they are. Nothing is calibrated: what is measured is the
weights, not a method of quantising them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def rounded(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(whole numbers, scales) of a matrix's rows."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(-1, keepdim=True) / most
    whole = torch.round(weight / torch.where(scale == 0, 1.0, scale)).clamp(-most, most)
    return whole, scale


@contextmanager
def with_rounded_weights(model: nn.Module, bits: int) -> Iterator[None]:
    """The model with every matrix rounded, and afterwards as it was."""
    kept = {parameter: parameter.detach().clone() for parameter in _matrices(model)}
    try:
        with torch.no_grad():
            for parameter, weight in kept.items():
                whole, scale = rounded(weight, bits)
                parameter.copy_(whole * scale)
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in kept.items():
                parameter.copy_(weight)


def compressed_bits(model: nn.Module, step: float) -> float:
    """Bits a weight of the matrices on one common grid of width `step`, clipped to 8 bits and packed by zlib.

    The grid is the same for all models that are compared: with a scale of its own each would be as wide as its largest
    weight, and a model with smaller weights would be no smaller.
    """
    packed, count = 0, 0
    for weight in _matrices(model):
        whole = torch.round(weight.detach() / step).clamp(-127, 127).to(torch.int8)
        packed += len(zlib.compress(whole.cpu().numpy().tobytes(), 9))
        count += weight.numel()
    return 8 * packed / count


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    """A tied one once."""
    return [parameter for parameter in model.parameters() if parameter.ndim >= 2]
