"""How much of a tensor a step removes: inner products, chunk by chunk, without a second copy of the tensor."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from weightdecay.probing.isolation import on_one_thread

_CHUNK = 1 << 14  # elements; a few such pieces lie in a processor's cache
_CHUNK_ON_DEVICE = 1 << 24
FINE = 1 << 20
"""Elements up to which a processor multiplies and adds in float64, which takes three times as long."""
_SAMPLED = 1 << 12


def local(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that lie here, as real ones."""
    here = tensor.detach()
    here = here.to_local() if hasattr(here, "to_local") else here
    return torch.view_as_real(here) if here.is_complex() else here


@dataclass(frozen=True)
class Removed:
    """What d = without − with takes from w, by its moments, which may be added over shards.

        ww = Σw²   wd = Σw·d   dd = Σd²   w2d2 = Σw²d²   w3d = Σw³d   w4 = Σw⁴
        vd = Σv·d  vv = Σv²    vw = Σv·w  acted = Σw²·[d ≠ 0]

    where v are the weights after the step without.
    """

    ww: float = 0.0
    wd: float = 0.0
    dd: float = 0.0
    w2d2: float = 0.0
    w3d: float = 0.0
    w4: float = 0.0
    vd: float = 0.0
    vv: float = 0.0
    vw: float = 0.0
    acted: float = 0.0

    @classmethod
    def of(cls, moments: Tensor) -> Removed:
        return cls(*moments.tolist())

    @property
    def fraction(self) -> float:
        """⟨w, d⟩ / ‖w‖²."""
        return self.wd / self.ww if self.ww > 0 else 0.0

    @property
    def error(self) -> float:
        """The standard error of the fraction a: each element's d − a·w is as if drawn, with mean 0."""
        if self.ww <= 0:
            return 0.0
        a = self.fraction
        return math.sqrt(max(self.w2d2 - 2 * a * self.w3d + a * a * self.w4, 0.0)) / self.ww

    @property
    def along(self) -> float:
        """cos² of d and the weights before the step; 1 where nothing was removed."""
        return self.wd**2 / (self.ww * self.dd) if self.ww > 0 and self.dd > 0 else 1.0

    @property
    def share(self) -> float:
        """The part of ‖w‖² that lies in elements of which something was removed."""
        return self.acted / self.ww if self.ww > 0 else 0.0

    @property
    def along_before(self) -> float:
        """cos² of d and the weights before the step, where it acted."""
        return self.wd**2 / (self.acted * self.dd) if self.acted > 0 and self.dd > 0 else 1.0

    @property
    def along_after(self) -> float:
        """cos² of d and the weights after the update."""
        return self.vd**2 / (self.vv * self.dd) if self.vv > 0 and self.dd > 0 else 1.0

    @property
    def update(self) -> float:
        """‖v − w‖²."""
        return max(self.vv - 2 * self.vw + self.ww, 0.0)


MOMENTS = len(fields(Removed))


@torch.no_grad()
def removed(w: Tensor, with_decay: Tensor, without: Tensor, *, after: bool = True) -> Tensor:
    """The moments of what a decay removes, as `Removed` has them; float64, on the tensors' device.

    Differences of float32 weights are exact where they are small, and sums are of a chunk each.

    Args:
        w, with_decay, without: weights before a step, after it, and after the same step without the decay.
        after: also those with the weights after the step.
    """
    is_fine = w.numel() <= FINE or not w.is_cpu or w.dtype == torch.float64
    dtype = torch.float64 if is_fine else torch.float32
    chunk = _CHUNK if w.is_cpu else _CHUNK_ON_DEVICE
    zero = torch.zeros((), dtype=dtype, device=w.device)
    rows = []
    with on_one_thread() if w.is_cpu else nullcontext():
        parts = [torch.split(tensor.reshape(-1), chunk) for tensor in (w, with_decay, without)]
        for x, y, v in zip(*parts, strict=True):
            x, v = x.to(dtype), v.to(dtype)
            d = v - y
            xx, xd = x * x, x * d
            also = (v.dot(d), v.dot(v), v.dot(x), xx.dot((d != 0).to(dtype))) if after else (zero,) * 4
            rows.append(torch.stack(
                (x.dot(x), x.dot(d), d.dot(d), xd.dot(xd), xx.dot(xd), xx.dot(xx), *also)
            ))  # fmt: skip
        moments = torch.stack(rows).double().sum(0) if rows else None
    return torch.zeros(MOMENTS, dtype=torch.float64, device=w.device) if moments is None else moments


@torch.no_grad()
def difference(one: Tensor, other: Tensor) -> float:
    """‖one − other‖² / ‖other‖², from some of their elements."""
    stride = max(one.numel() // _SAMPLED, 1)
    x, y = (tensor.reshape(-1)[::stride].double() for tensor in (one, other))
    squared = float(y.dot(y))
    return float((x - y).square().sum()) / squared if squared > 0 else math.inf
