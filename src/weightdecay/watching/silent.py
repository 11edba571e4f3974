"""Optimizers whose steps no hook sees: classes that are none of torch's, and compiled steps.

How far they have come shows in their weights, of which a few numbers are looked at after each backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightdecay.auditing.measuring import local

_TENSORS, _NUMBERS = 4, 8


class Sample:
    """A few numbers of a few tensors."""

    def __init__(self, tensors: list[Tensor]) -> None:
        by_size = sorted((p for p in tensors if p.numel() and p.device.type != "meta"), key=lambda p: p.numel())
        # Of all sizes: some may have no gradient, or rest at 0.
        places = {round(place * (len(by_size) - 1) / max(_TENSORS - 1, 1)) for place in range(_TENSORS)}
        self._tensors = [by_size[place] for place in sorted(places)] if by_size else []
        self._numbers = self._read()

    def has_moved(self) -> bool:
        """Whether any of the numbers is another than when this was last asked."""
        before, self._numbers = self._numbers, self._read()
        return any(not _alike(one, other) for one, other in zip(before, self._numbers, strict=True))

    @torch.no_grad()
    def _read(self) -> list[Tensor]:
        return [_some(p).clone() for p in self._tensors]


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal, where a NaN that stays one is equal, too: weights that diverged would seem to step for ever."""
    if torch.equal(one, other):
        return True
    if one.shape != other.shape or not (one.isnan().any() and other.isnan().any()):
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _some(p: Tensor) -> Tensor:
    here = local(p)
    if here.layout != torch.strided or not here.untyped_storage().size():
        return torch.empty(0)
    flat = here.reshape(-1) if here.is_contiguous() else here.flatten()[: here.numel()]
    step = max(flat.numel() // _NUMBERS, 1)
    return flat[::step][:_NUMBERS]
