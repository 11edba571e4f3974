"""What a decay does to tensors, where it does not go through an optimizer's own kernel. All in place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weightdecay.optim.rounding import pieces
from weightdecay.optim.rules import Reach


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a distributed tensor, or the tensor itself: elementwise work needs no more."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shrink_(tensors: Sequence[Tensor], decay: float) -> None:
    """w ← (1 − a)·w, with the factor formed as torch's AdamW forms it."""
    if tensors and decay:
        torch._foreach_mul_(list(tensors), 1 - decay)


def decay_(
    weights: Tensor, reach: Reach, decay: float | None, direction: Tensor | None = None, initial: Tensor | None = None
) -> None:
    """The whole decay of one tensor before its update, whatever a rule reaches.

    Args:
        direction: the update that is going to be subtracted, or anything of its sign, for `agreeing`.
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
    """
    kept = torch.tensor(1 - decay, dtype=weights.dtype)
    whole = torch.ones((), dtype=weights.dtype, device=weights.device)
    mask = torch.mul(direction, weights).ge_(0)
    weights.mul_(torch.add(whole, mask, alpha=float(kept) - 1))


def shrink_where_next_agrees_(
    weights: Tensor, momentum: Tensor | None, gradient: Tensor, mix: tuple[float, float], decay: float
) -> None:
    """`shrink_where_agreeing_` before the step, with the direction that the step is going to take, piece by piece.

    Args:
        weights, momentum, gradient: of one shape; momentum is None before the first step.
        mix: (x, y) such that the update has the sign of x·momentum + y·gradient.
    """
    strided = not all(t.is_contiguous() for t in (weights, gradient, *([] if momentum is None else [momentum])))
    if strided or torch.is_grad_enabled():  # autograd knows no changes of many views of one tensor
        shrink_where_agreeing_(weights, mixed(momentum, gradient, mix), decay)
        return
    begun: Iterable[Tensor | None] = itertools.repeat(None) if momentum is None else pieces(momentum)
    for piece, of_momentum, of_gradient in zip(pieces(weights), begun, pieces(gradient), strict=False):
        shrink_where_agreeing_(piece, mixed(of_momentum, of_gradient, mix), decay)


def mixed(momentum: Tensor | None, gradient: Tensor, mix: tuple[float, float]) -> Tensor:
    """x·momentum + y·gradient."""
    of_momentum, of_gradient = mix
    direction = gradient * of_gradient
    return direction if momentum is None else direction.add_(momentum, alpha=of_momentum)


def pull_(tensors: Sequence[Tensor], targets: Sequence[Tensor] | float, decay: float) -> None:
    """Complete (1 − a)·w to w − a·(w − target): w ← w + a·target. Linear, so it may come after the update."""
    if not tensors or not decay:
        return
    if isinstance(targets, float):
        torch._foreach_add_(list(tensors), decay * targets)
    else:
        torch._foreach_add_(list(tensors), list(targets), alpha=decay)
