"""What a decay does to tensors: the one place where a rule's arithmetic stands.

    w ← w − a · mask · (w − target)

Kernels that shrink by themselves are handed the λ that makes them do it (`kernel_weight_decay`); everything else, eager
or compiled, piece by piece or whole, calls `decay_`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.amounts import number
from weightdecay.rules import Rule

# Below this lr, λ = a/lr leaves the range of the float32 in which a kernel may hold it.
_SMALLEST_LR = 1e-30


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a distributed tensor, or the tensor itself: elementwise work needs no more."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A distributed tensor with its parts where another's are; any other tensor as it is."""
    if not hasattr(like, "placements") or tensor.placements == like.placements:  # type: ignore[attr-defined]
        return tensor
    moved: Tensor = tensor.redistribute(placements=like.placements)  # type: ignore[attr-defined]
    return moved


def laid_out_like(p: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with the strides of `p`; itself where it has them."""
    return tensor if tensor.stride() == p.stride() else torch.empty_like(p, dtype=tensor.dtype).copy_(tensor)


def kernel_weight_decay(rule: Rule, group: Mapping[str, Any], decay: float | None) -> Any:
    """The λ with which a kernel that shrinks by 1 − lr·λ decays by `decay`; None where none can make it."""
    if rule.is_torchs:
        return group["weight_decay"]  # so that it computes bit for bit what torch's optimizer does
    if not rule.is_scalar:
        return None
    lr = number(group["lr"]) or 0.0
    return (decay / lr if lr >= _SMALLEST_LR else None) if decay else 0.0


def decay_(
    weights: Tensor,
    rule: Rule,
    decay: float | Tensor,
    kept: float | Tensor,
    update: Tensor | None = None,
    initial: Tensor | None = None,
) -> None:
    """One tensor's whole decay, in place, before its update.

    Args:
        weights: local, of any shape.
        decay, kept: a_t and 1 − a_t, as floats or as scalars of the weights' device.
        update: what is going to be subtracted, or anything of its sign; for masked rules, overwritten.
        initial: w_0, for rules with that target.
    """
    mask = _mask(weights, rule, update) if rule.is_masked else None
    if rule.target == "initial":
        # As w + a·(w_0 − w), which is exactly w where a weight is still what it was.
        assert initial is not None
        start = initial.to(weights.dtype)
        if mask is None:
            weights.lerp_(start, decay)
        else:
            weights.add_(mask.mul_(start - weights).mul_(decay))
        return

    if mask is None:
        weights.mul_(kept)
    else:
        # 1 + mask·(kept − 1), which is exactly 1 or, for decays up to ½, `kept` as a plain product rounds it.
        # (`torch.where` would say it better and takes forty times as long.)
        rounded = kept if isinstance(kept, Tensor) else float(torch.tensor(kept, dtype=mask.dtype))
        factor = mask if rule.target == "zero" else mask.clone()
        weights.mul_(factor.mul_(rounded - 1).add_(1))
    if rule.target == "one":
        weights.add_(decay if mask is None else mask * decay)


def _mask(weights: Tensor, rule: Rule, update: Tensor | None) -> Tensor:
    """1 where a weight decays, 0 where not; at least in float32, whose product with 1 − a keeps its digits.

    It is a constant to a differentiable step, in which it jumps at single points.
    """
    assert update is not None
    wide = update.detach().to(torch.promote_types(weights.dtype, torch.float32))
    # The sign alone, because a product of two small numbers may be 0, which agrees with everything.
    products = wide.sign_().mul_(weights.detach())
    return products.ge_(0) if rule.mask == "agreeing" else products.gt_(0)


def mixed(momentum: Tensor | None, gradient: Tensor, mix: tuple[float, float], out: Tensor | None = None) -> Tensor:
    """Something of the sign of x·momentum + y·gradient, with mix = (x, y), both at least 0 but for y's sign."""
    of_momentum, of_gradient = mix
    if momentum is None or of_momentum == 0:
        return torch.mul(gradient, of_gradient, out=out)
    return torch.add(momentum, gradient, alpha=of_gradient / of_momentum, out=out)


def decay_all_(weights: Sequence[Tensor], rule: Rule, decay: float) -> None:
    """`decay_` of many tensors, local or distributed, by a rule that needs nothing else."""
    parts = [local(w) for w in weights]

    # On a processor foreach is a loop, too, and rounds the factor itself to bfloat16.
    if parts and rule.is_scalar and all(part.is_cuda for part in parts):
        torch._foreach_mul_(parts, 1 - decay)
        return
    for part in parts:
        decay_(part, rule, decay, 1 - decay)
