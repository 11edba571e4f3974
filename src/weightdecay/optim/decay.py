"""What a decay does to tensors, where it does not go through an optimizer's own kernel. All in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightdecay.optim.rules import Reach


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a distributed tensor, or the tensor itself: elementwise work needs no more."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A distributed tensor with its parts where another's are; any other tensor as it is."""
    if not hasattr(like, "placements") or tensor.placements == like.placements:  # type: ignore[attr-defined]
        return tensor
    moved: Tensor = tensor.redistribute(placements=like.placements)  # type: ignore[attr-defined]
    return moved


def shrink_(tensors: Sequence[Tensor], decay: float) -> None:
    """w ← (1 − a)·w, with the factor formed as torch's AdamW forms it."""
    if decay and tensors and all(tensor.is_cuda for tensor in tensors):
        torch._foreach_mul_(list(tensors), 1 - decay)
    elif decay:  # on a processor foreach is a loop, too, and rounds the factor itself to bfloat16
        for tensor in tensors:
            tensor.mul_(1 - decay)


def decay_(
    weights: Tensor, reach: Reach, decay: float | None, direction: Tensor | None = None, initial: Tensor | None = None
) -> None:
    """The whole decay of one tensor before its update, whatever a rule reaches.

    Args:
        direction: the update that is going to be subtracted, or anything of its sign, for `agreeing`; overwritten.
        initial: w_0, for `towards_initial`.
    """
    if not decay or reach == "gradient":
        return
    if reach == "agreeing":
        assert direction is not None
        shrink_where_agreeing_(weights, direction, decay)
        return
    weights.mul_(1 - decay)
    if reach == "towards_one":
        weights.add_(decay)
    elif reach == "towards_initial":
        assert initial is not None
        weights.add_(initial, alpha=decay)


def shrink_where_agreeing_(weights: Tensor, direction: Tensor, decay: float) -> None:
    """w ← (1 − a)·w where the update that is subtracted has the sign of w or either is zero, as it is elsewhere.

    Everywhere agreeing it equals `shrink_` bit for bit: the factor is 1 + mask·(kept − 1), which is exact for decays up
    to ½. (`torch.where` would say it better and takes forty times as long.)

    Args:
        direction: overwritten where it has the weights' dtype.
    """
    kept = float(torch.tensor(1 - decay, dtype=weights.dtype))
    same = direction.dtype == weights.dtype
    factor = direction.mul_(weights) if same else direction * weights
    whole = torch.ones((), dtype=factor.dtype, device=factor.device)
    spare = None if torch.is_grad_enabled() else factor  # a differentiable step keeps what it needs for its gradient
    weights.mul_(torch.add(whole, factor.ge_(0), alpha=kept - 1, out=spare))


def mixed(momentum: Tensor | None, gradient: Tensor, mix: tuple[float, float], out: Tensor | None = None) -> Tensor:
    """Something of the sign of x·momentum + y·gradient, with mix = (x, y), both at least 0 but for y's sign."""
    of_momentum, of_gradient = mix
    if momentum is None or of_momentum == 0:
        return torch.mul(gradient, of_gradient, out=out)
    return torch.add(momentum, gradient, alpha=of_gradient / of_momentum, out=out)


def pull_(tensors: Sequence[Tensor], targets: Sequence[Tensor] | float, decay: float) -> None:
    """Complete (1 − a)·w to w − a·(w − target): w ← w + a·target. Linear, so it may come after the update."""
    if not tensors or not decay:
        return
    if isinstance(targets, float):
        torch._foreach_add_(list(tensors), decay * targets)
    else:
        torch._foreach_add_(list(tensors), list(targets), alpha=decay)
