"""What one step's decay is: seven meanings of one λ, and decay towards a target.

A rule turns η_t, λ and the peak η into the **decay per step** a_t, the fraction of a weight that step t removes. It is
the neutral quantity by which rules are logged, compared and converted.

    name                a_t                 who means this by λ
    decoupled           η_t·λ               torch.optim.AdamW and most frameworks
    independent         (η_t/η)·λ           Loshchilov & Hutter 2019, arXiv:1711.05101; Composer's DecoupledAdamW
    fixed               λ                   pytorch_optimizer's `fixed_decay`
    lr_squared          η_t²·λ              PaLM (λ = 1), arXiv:2204.02311 §5; t5x `adafactor.py`
    corrected           η_t·λ·(η_t/η)       AdamC, Defazio 2025, arXiv:2506.02285
    cautious            η_t·λ, masked       Chen et al. 2025, arXiv:2510.12402
    towards_one         η_t·λ of w − 1      gains
    towards_initial     η_t·λ of w − w_0    pre-trained weights
    l2                  through the gradient: torch.optim.Adam and SGD

The peak η is each group's own: with one peak for all, a group at ten times the lr would decay ten times too much.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean

# What a_t acts on: all of w, w where the update agrees with it, w − target, or the gradient instead of w.
Reach = Literal["weights", "agreeing", "towards_one", "towards_initial", "gradient"]

_ROUNDING = 1e-12  # a schedule that ends at 0 may end a hair below


@dataclass(frozen=True)
class Rule(ABC):
    """How much of a weight a step removes, and of which weights."""

    name: ClassVar[str]
    needs_peak: ClassVar[bool] = False
    reach: ClassVar[Reach] = "weights"

    @abstractmethod
    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:
        """a_t: the fraction of a weight that a step at `lr` removes."""


@dataclass(frozen=True)
class Decoupled(Rule):
    """w ← (1 − η_t·λ)·w"""

    name = "decoupled"

    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:  # noqa: ARG002
        return lr * weight_decay


@dataclass(frozen=True)
class Independent(Rule):
    """w ← (1 − (η_t/η)·λ)·w: λ is what a step at the peak removes, whatever the peak is."""

    name = "independent"
    needs_peak = True

    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:
        return lr / _peak(self, peak_lr) * weight_decay


@dataclass(frozen=True)
class Fixed(Rule):
    """w ← (1 − λ)·w at every step, whatever η_t: also in the warm-up and at the end of an anneal to zero."""

    name = "fixed"

    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:  # noqa: ARG002
        return weight_decay


@dataclass(frozen=True)
class LrSquared(Rule):
    """w ← (1 − η_t²·λ)·w; PaLM's "dynamic weight decay of lr^2.0" is λ = 1."""

    name = "lr_squared"

    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:  # noqa: ARG002
        return lr * lr * weight_decay


@dataclass(frozen=True)
class Corrected(Rule):
    """w ← (1 − η_t·λ·(η_t/η))·w, which holds the norm still while η_t falls.

    Meant for weights whose output is normalised; the output head and the embeddings keep `decoupled`.
    """

    name = "corrected"
    needs_peak = True

    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:
        return lr * weight_decay * (lr / _peak(self, peak_lr))


@dataclass(frozen=True)
class Cautious(Decoupled):
    """w ← w − η_t·λ·1[u⊙w ≥ 0]·w, u the update that is subtracted: only where both shrink the weight."""

    name = "cautious"
    reach = "agreeing"


@dataclass(frozen=True)
class TowardsOne(Decoupled):
    """w ← w − η_t·λ·(w − 1): a gain at rest is 1, not 0."""

    name = "towards_one"
    reach = "towards_one"


@dataclass(frozen=True)
class TowardsInitial(Decoupled):
    """w ← w − η_t·λ·(w − w_0), w_0 the value before the first step: initial or pre-trained."""

    name = "towards_initial"
    reach = "towards_initial"


@dataclass(frozen=True)
class L2(Rule):
    """g ← g + λ·w before the moments: the gradient of ½·λ·‖w‖². No fraction of w that λ alone would decide."""

    name = "l2"
    reach = "gradient"

    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:  # noqa: ARG002
        raise OptimizerError(
            "rule 'l2' has no decay per step: it adds λ·w to the gradient, and what that removes depends on the "
            "gradient's size; ask for a decoupled rule to have one"
        )


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Decoupled(), Independent(), Fixed(), LrSquared(), Corrected(), Cautious(), TowardsOne(), TowardsInitial(), L2(),
    )
}  # fmt: skip


def rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        OptimizerError: there is none; the message names the nearest.
    """
    if name not in RULES:
        raise OptimizerError(f"unknown rule '{name}': {did_you_mean(str(name), RULES)}")
    return RULES[name]


def group_decay_per_step(group: Mapping[str, Any]) -> float | None:
    """a_t of an optimizer's group at its present lr and λ; None under `l2`, which has no such fraction.

    Args:
        group: one of `optimizer.param_groups`: `lr`, `weight_decay`, and where present `rule` and `peak_lr`.

    Raises:
        OptimizerError: the peak is missing, lr is above it, or a_t is under 0, with which the weights would grow, or
            over 1, which would turn their sign.
    """
    chosen = rule(group.get("rule", "decoupled"))
    weight_decay = _float(group["weight_decay"])
    if chosen.reach == "gradient":
        return None
    if weight_decay == 0.0:
        return 0.0
    lr, peak_lr = _float(group["lr"]), group.get("peak_lr")
    where = f"group '{group['name']}': " if "name" in group else ""
    if chosen.needs_peak and peak_lr is not None and lr > float(peak_lr) * (1 + 1e-6):
        raise OptimizerError(
            f"{where}lr {lr:g} is above the declared peak {float(peak_lr):g}, so rule '{chosen.name}' would decay too "
            "much: give the schedule's highest lr as peak_lr"
        )
    decay = chosen.decay_per_step(lr, weight_decay, None if peak_lr is None else float(peak_lr))
    if decay < -_ROUNDING or weight_decay < 0.0:
        raise OptimizerError(
            f"{where}a decay per step of {decay:g} would make the weights grow (rule '{chosen.name}', lr {lr:g}, "
            f"weight_decay {weight_decay:g}): lr and weight_decay must be at least 0"
        )
    if not decay <= 1.0:
        raise OptimizerError(
            f"{where}a decay per step of {decay:g} would turn the sign of the weights (rule '{chosen.name}', "
            f"lr {lr:g}, weight_decay {weight_decay:g}): it must stay at or below 1; lower weight_decay"
        )
    return decay


def _float(value: float | Tensor) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _peak(asking: Rule, peak_lr: float | None) -> float:
    if peak_lr is None or not (math.isfinite(peak_lr) and peak_lr > 0):
        raise OptimizerError(
            f"rule '{asking.name}' needs the peak lr, got {peak_lr}: give peak_lr, the highest lr of the schedule, "
            "for each group"
        )
    return peak_lr
