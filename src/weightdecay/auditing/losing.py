"""What rounding leaves of a decay: where the weights' own dtype is too coarse for a step as small as lr·λ.

    share that is left at a:   ⟨w, w − round(w · (1 − a))⟩ / (a ‖w‖²)

In float32 1 − a itself is rounded first, as PyTorch does, so that nothing is left below a = 2⁻²⁵. One step near such a
floor says nothing of a run: what is lost is judged over the planned run, or at the peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightdecay.auditing.measuring import local
from weightdecay.auditing.probed import ProbedTensor

LOW_PRECISION = ("bfloat16", "float16")
_ENOUGH = 1 << 18  # elements of a tensor, of which the share is known to a thousandth
_MANTISSAS = 4096
_SIGMAS = 4.0
_NOTHING = 0.02


@torch.no_grad()
def share_left(weights: Tensor, decay_per_step: float) -> float:
    """What is left of a decay of these weights that is rounded on its own; 1 where nothing is to be decayed."""
    w = local(weights).detach().flatten()
    if not w.is_floating_point() or decay_per_step <= 0:
        return 1.0
    if hasattr(weights, "to_local"):
        # Each process has another shard, and all are to say the same: of mantissas of any size.
        w = torch.logspace(0, 1, _MANTISSAS, base=2.0, dtype=torch.float64).to(w.dtype)
    if w.numel() > _ENOUGH:
        w = w[:: w.numel() // _ENOUGH + 1]
    wide = w.double()
    square = float(wide.square().sum())
    if not 0 < square < math.inf:
        return 1.0
    computed = torch.promote_types(w.dtype, torch.float32)  # in which a kernel multiplies before it rounds
    kept = torch.tensor(1.0 - decay_per_step, dtype=computed, device=w.device)
    after = (w.to(computed) * kept).to(w.dtype).double()
    return float((wide * (wide - after)).sum()) / (decay_per_step * square)


@dataclass(frozen=True)
class Seen:
    """What steps have shown of one tensor's decay, beside what its numbers ask for."""

    tensor: ProbedTensor
    asked: float

    @property
    def share(self) -> float:
        return (self.tensor.from_weight_decay or 0.0) / self.asked

    @property
    def error(self) -> float:
        return self.tensor.uncertainty / self.asked


def pooled(seen: Sequence[Seen]) -> tuple[float, float]:
    """The share that is left over several tensors, and its standard error: few elements tell little by themselves."""
    exact = [one for one in seen if one.error == 0.0]
    if exact:
        return sum(one.share for one in exact) / len(exact), 0.0
    weights = [1.0 / one.error**2 for one in seen]
    total = math.fsum(weights)
    return math.fsum(one.share * weight for one, weight in zip(seen, weights, strict=True)) / total, total**-0.5


def is_lost(seen: Sequence[Seen]) -> bool:
    """Whether less than half is left, and that is no chance."""
    share, error = pooled(seen)
    # A mask that few bits turn over is no error that averages out over tensors.
    is_told = _is_plain(seen) or all(one.tensor.share == 1.0 for one in seen)
    return is_told and share < 0.5 and 1.0 - share > _SIGMAS * error


def is_undecided(seen: Sequence[Seen]) -> bool:
    """Whether more steps would tell what these cannot: what rounding takes away it takes whole, tensor by tensor."""
    return pooled(seen)[0] < 0.5 and not (_is_plain(seen) and is_lost(seen))


def _is_plain(seen: Sequence[Seen]) -> bool:
    return all(abs(one.share) < _NOTHING for one in seen)
