"""AdamW and AdamL2: torch's own Adam with a decay rule.

    m ← β1·m + (1 − β1)·g          v ← β2·v + (1 − β2)·g²
    w ← (decay of w) − η_t · m̂ / (√v̂ + ε)

At equal settings `AdamW` equals `torch.optim.AdamW`, and `AdamL2` `torch.optim.Adam`, bit for bit on each of torch's
paths (for-loop, foreach, fused), but for gradients and moments that lie otherwise in memory than their weights: torch's
fused kernels take them for others.

Reference: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.optim.compiled import Direction
from weightdecay.optim.elementwise import ElementwiseOptimizer
from weightdecay.optim.grouping import Group, Params, Rules
from weightdecay.optim.pieces import Flat
from weightdecay.optim.roundings import NEAREST, RoundingLike
from weightdecay.optim.work import Work, uncapturable
from weightdecay.rules import DECOUPLED, L2, RuleLike, group_rule

Betas = tuple[float | Tensor, float | Tensor]


def _adam(gradient: Tensor, state: Mapping[str, Tensor], numbers: Sequence[Tensor]) -> Tensor:
    """m/(√v̂ + ε), both moments moved: what is left of the update but for η/(1 − β1^t)."""
    fresh1, kept2, fresh2, correction2, eps = numbers
    first = state["exp_avg"] + (gradient - state["exp_avg"]) * fresh1
    second = state["exp_avg_sq"] * kept2 + fresh2 * gradient * gradient
    state["exp_avg"].copy_(first)
    state["exp_avg_sq"].copy_(second)
    if "max_exp_avg_sq" in state:
        second = torch.maximum(state["max_exp_avg_sq"], second)
        state["max_exp_avg_sq"].copy_(second)
    return first / (second.sqrt() * correction2 + eps)


def _numbers(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[float, Sequence[float]]:
    """η/(1 − β1^t), and the numbers of `_adam`."""
    beta1, beta2, step = *map(float, group["betas"]), float(state["step"])
    rate = float(group["lr"]) / (1 - beta1**step)
    return rate, (1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(1 - beta2**step), float(group["eps"]))


class _Adam(ElementwiseOptimizer):
    """What both say of their direction."""

    pieces_equal_fused = True
    direction = Direction("adam", _adam, _numbers, own=5)
    counts_steps = True

    def _step_faults(self, one: Work) -> Iterator[str]:
        yield from super()._step_faults(one)
        group = one.group
        if (
            group["foreach"]
            and not group["capturable"]
            and any(isinstance(value, Tensor) for value in (group["lr"], *group["betas"]))
        ):
            yield "lr or betas as a Tensor is not supported for capturable=False and foreach=True: give foreach=False"
        if not self._works_beside_kernel(one):
            yield from uncapturable(one.group)

    def _going_on(self, own: Group, saved: Mapping[str, Any]) -> Group:
        # Which torch's other Adam may have written.
        return super()._going_on(own, {**saved, "decoupled_weight_decay": self.kernel_decays})

    def _next_direction(self, group: Group) -> tuple[str, tuple[float, float]]:
        beta1 = float(group["betas"][0])
        return "exp_avg", (beta1, 1 - beta1)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def _update_pieces(self, pieces: Sequence[Flat], group: Group, weight_decay: float) -> None:
        def of_each(key: str) -> list[Tensor]:
            return [flat.state[key] for flat in pieces]

        kernel = torch._fused_adam_ if group_rule(group).coupled else torch._fused_adamw_
        kernel(
            [flat.weights for flat in pieces],
            [flat.gradient for flat in pieces],
            of_each("exp_avg"),
            of_each("exp_avg_sq"),
            of_each("max_exp_avg_sq") if group["amsgrad"] else [],
            of_each("step"),
            lr=float(group["lr"]),
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            weight_decay=weight_decay,
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )


class AdamW(_Adam, torch.optim.AdamW):
    """Adam with decay that does not pass through the gradient; drop-in for `torch.optim.AdamW`.

    Args:
        params: a decay plan, parameters, (name, parameter) pairs, or groups; a group may have its own `rule`,
            `peak_lr` and `rounding`.
        lr: η. The lr a group begins with is its peak unless `peak_lr` is given.
        weight_decay: λ of groups that do not bring their own, as a plan's do; default 1e-2.
        rule: how a step decays: a name of `weightdecay.rules.RULES` or a `Rule` of one's own; or rules by pattern of
            the tensors' names, of which the first that matches holds: `{"lm_head.*": DECOUPLED, "*": CORRECTED}`. With
            a plan, `CORRECTED` leaves `DECOUPLED` to embeddings and output heads by itself.
        peak_lr: the highest η of the schedule, for `independent` and `corrected`.
        rounding: how bfloat16 weights are rounded: `nearest`, `stochastic`, `kahan` or `master`, or a `Rounding`.
        compiled: whether steps that torch's kernels cannot make alone (masks, targets, roundings)
            go through one loop of `torch.compile`; None decides by the number of weights and stays on the processor,
            True wants it anywhere. It needs a C++ compiler; the results are the same up to float32's rounding.
        foreach, fused, maximize, capturable, differentiable, amsgrad, betas, eps: as in torch.

    Raises:
        OptimizerError: with every fault of every group.
    """

    no_coupled_form: ClassVar[str] = (
        "Adam divides the gradient by √v, and with it λ·w, so weights with large gradients would hardly decay "
        "and no λ gives the decoupled step: use AdamL2, whose rule it is"
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        rule: Rules = DECOUPLED,
        peak_lr: float | None = None,
        rounding: RoundingLike = NEAREST,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
    ) -> None:
        self._construct(locals())


class AdamL2(_Adam, torch.optim.Adam):
    """Adam with λ·w in the gradient, the coupled form that `AdamW` came to replace; equals `torch.optim.Adam`.

    Its only rule is `l2`: g ← g + λ·w, before the moments. Arguments as in `AdamW`; λ is 0 by default, as in torch.
    """

    kernel_decays = False
    no_coupled_form: ClassVar[str] = ""
    only_coupled: ClassVar[str] = "AdamL2 is the coupled one, with l2 as its only rule: use AdamW"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        rule: RuleLike = L2,
        rounding: RoundingLike = NEAREST,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
    ) -> None:
        self._construct(locals())
