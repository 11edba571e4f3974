"""Readable float64 twins of the rules, and a whole step with any direction."""

from __future__ import annotations

from torch import Tensor

from tests.references.directions import Direction


def decay_per_step(rule: str, lr: float, weight_decay: float, peak_lr: float) -> float:
    return {
        "decoupled": lr * weight_decay,
        "independent": (lr / peak_lr) * weight_decay,
        "fixed": weight_decay,
        "lr_squared": lr**2 * weight_decay,
        "corrected": lr * weight_decay * (lr / peak_lr),
        "cautious": lr * weight_decay,
        "towards_one": lr * weight_decay,
        "towards_initial": lr * weight_decay,
    }[rule]


def step(
    direction: Direction,
    rule: str,
    w: Tensor,
    g: Tensor,
    *,
    lr: float,
    weight_decay: float,
    peak_lr: float = 1.0,
    initial: Tensor | None = None,
) -> Tensor:
    """w after one step: the direction sees the weights and the gradient of before, whatever decays."""
    if rule == "l2":
        return w - direction.update(g + weight_decay * w, w, lr)
    a = decay_per_step(rule, lr, weight_decay, peak_lr)
    u = direction.update(g, w, lr)
    if rule == "cautious":
        return w - a * ((u * w) >= 0).to(w.dtype) * w - u
    if rule == "towards_one":
        return w - a * (w - 1) - u
    if rule == "towards_initial":
        assert initial is not None
        return w - a * (w - initial) - u
    return (1 - a) * w - u
