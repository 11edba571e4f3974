"""Adafactor: torch's own, and the unfactored form with momentum that PaLM used.

    v ← β2_t·v + (1 − β2_t)·g²  (its row and column means where factored),   β2_t = 1 − t^beta2_decay
    u ← g/√v,   u ← u / max(1, RMS(u)/d),   u ← ρ_t·max(ε2, RMS(w))·u,   ρ_t = min(η_t, 1/√t)
    m ← β1·m + (1 − β1)·u  (of the scaled update; without β1 the update is u)
    w ← (decay of w) − m

The update scales with the weight, so norms have no equilibrium here: they drift by factors.

Reference: Shazeer & Stern 2018, arXiv:1804.04235; google-research/t5x `t5x/adafactor.py` for momentum and unfactored
moments; Chowdhery et al. 2022, arXiv:2204.02311, §5 for PaLM's use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.clipping import total_norm
from weightdecay.optim.grouping import Group, Params, Rules
from weightdecay.optim.roundings import NEAREST, RoundingLike, fresh
from weightdecay.optim.work import Work
from weightdecay.rules import DECOUPLED


class Adafactor(DecayingOptimizer, torch.optim.Adafactor):
    """Adafactor with a decay rule; equals `torch.optim.Adafactor` where only torch's settings are used.

    PaLM: `Adafactor(plan, lr=1e-2, factored=False, beta1=0.9, rule=LR_SQUARED, weight_decay=1.0)`.

    Args:
        params, weight_decay, rule, peak_lr, rounding: as in `weightdecay.AdamW`.
        lr: η, an upper bound while `relative_step` is on.
        beta2_decay, eps, d, foreach, maximize: as in torch.
        factored: keep row and column means of g² instead of g² itself, for tensors of two axes and more.
        beta1: momentum of the scaled update; None keeps none.
        relative_step: cap η_t at 1/√t.
        scale_parameter: scale the update with the weights' RMS.

    Raises:
        OptimizerError: with every fault of every group.
    """

    counts_steps = True
    takes_complex = False
    own_settings = ("factored", "beta1", "relative_step", "scale_parameter")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        factored: bool = True,
        beta1: float | None = None,
        relative_step: bool = True,
        scale_parameter: bool = True,
        rule: Rules = DECOUPLED,
        peak_lr: float | None = None,
        rounding: RoundingLike = NEAREST,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        self._construct(locals())

    def _step_groups(self, work: list[Work]) -> None:
        """Groups that torch's Adafactor knows go through it, the others tensor by tensor.

        torch's can only decay by itself: of weights that had decayed before, it would take another RMS.
        """
        plain = {one.place: one for one in work if one.kernels is not None and _is_torchs(one)}
        if plain:
            super()._step_groups(list(plain.values()))
        for one in work:
            if one.place not in plain:
                self._descend(one, self._update_and_scale)

    def _update_and_scale(self, p: Tensor, one: Work) -> tuple[Tensor, float]:
        """g/√v and the scale with which it is subtracted, in the order of torch's for-loop; with momentum, m and 1."""
        assert p.grad is not None
        group, weights = one.group, self._weights_meant(p, one)
        gradient = (-p.grad if group["maximize"] else p.grad).to(weights.dtype)
        state = self.state[p]
        count = state.setdefault("step", torch.zeros((), dtype=torch.float32))  # in low precision it would stop at 256
        step, lr, eps1 = float(count.add_(1)), float(group["lr"]), group["eps"][0]
        eps1 = torch.finfo(weights.dtype).eps if eps1 is None else eps1

        rate = min(lr, 1 / step**0.5) if group["relative_step"] else lr
        if group["scale_parameter"]:
            rate *= max(group["eps"][1], _rms(weights))
        update = _second_moment(gradient, state, step ** group["beta2_decay"], eps1)
        update.clamp_(min=eps1 * eps1).rsqrt_().mul_(gradient)
        scale = rate / max(1.0, _rms(update) / group["d"])
        if group["beta1"] is None:
            return update, scale
        momentum: Tensor = state["exp_avg"]
        return momentum.lerp_(update.mul_(scale), 1 - group["beta1"]), 1.0

    def _weights_meant(self, p: Tensor, one: Work) -> Tensor:
        """The weights that the step works on: what low-precision ones stand for under their rounding, or `p`."""
        rounding = one.rounding
        if not rounding.acts_on(p.dtype):
            return p
        self._workspace.renew(rounding, p, self.state[p])
        return rounding.widen(p, self.state[p], fresh)

    def state_shapes(self, group: Group, p: Tensor) -> Mapping[str, tuple[int, ...]]:
        factors = {"row_var": (*p.shape[:-1], 1), "col_var": (*p.shape[:-2], 1, *p.shape[-1:])}
        squares = factors if group["factored"] and p.ndim > 1 else {"variance": p.shape}
        return {**squares, **({} if group["beta1"] is None else {"exp_avg": p.shape})}


def _is_torchs(one: Work) -> bool:
    """Whether torch's own step does all that the group asks for."""
    group, weights = one.group, one.weights
    forms = group["factored"] and group["relative_step"] and group["scale_parameter"] and group["beta1"] is None
    low = any(one.rounding.acts_on(p.dtype) for p in weights)
    sharded = any(hasattr(p, "to_local") for p in weights)  # torch's takes norms in place, which shards do not have
    empty = any(not p.numel() for p in weights)  # of which torch's takes a mean
    return bool(forms and not (low or sharded or empty))


def _second_moment(gradient: Tensor, state: dict[str, Any], fresh: float, eps1: float) -> Tensor:
    """The running mean of g² with weight 1 − β2_t = `fresh` for the new one; factored, the product of its means."""
    if "variance" in state:
        variance: Tensor = state["variance"]
        return variance.lerp_(gradient * gradient, fresh).clone()
    for key, axis in (("row_var", -1), ("col_var", -2)):
        mean = torch.linalg.vector_norm(gradient, dim=axis, keepdim=True).square() / gradient.shape[axis]
        state[key].lerp_(mean, fresh)
    rows: Tensor = state["row_var"]
    product: Tensor = rows @ state["col_var"]
    return product.div_(rows.mean(-2, keepdim=True).clamp_(min=eps1))


def _rms(tensor: Tensor) -> float:
    """√mean(x²)"""
    norm = total_norm([tensor]) if hasattr(tensor, "to_local") else torch.linalg.vector_norm(tensor)
    return float(norm) / max(tensor.numel(), 1) ** 0.5  # type: ignore[no-any-return]
