"""What one step's decay is: a rule as a value.

Every rule that the field uses is one point in a small space: how the decay per step grows with the learning rate, how
it is scaled by the rate's peak, what it pulls towards, and which weights it spares:

    a_t = λ · η_t^lr_power / η_peak^peak_power            the decay per step, the fraction of a weight that it removes
    w  ← w − a_t · mask · (w − target)

    rule                a_t                 who means this by λ
    decoupled           η_t·λ               torch.optim.AdamW and most frameworks
    independent         (η_t/η)·λ           Loshchilov & Hutter 2019, arXiv:1711.05101; Composer's DecoupledAdamW
    fixed               λ                   pytorch_optimizer's `fixed_decay`
    lr_squared          η_t²·λ              PaLM (λ = 1), arXiv:2204.02311 §5; t5x `adafactor.py`
    corrected           η_t·λ·(η_t/η)       AdamC, Defazio 2025, arXiv:2506.02285
    cautious            η_t·λ, masked       Chen et al. 2025, arXiv:2510.12402
    towards_one         η_t·λ of w − 1      gains
    towards_initial     η_t·λ of w − w_0    pre-trained weights
    l2                  through the gradient: torch.optim.Adam and SGD

A rule of one's own is one more value, and works wherever a name does. As modded-nanogpt decays its matrices:

    from weightdecay import AdamW, Rule, plan

    AdamW(plan(model), lr=0.02, rule=Rule("mine", lr_power=2, mask="agreeing"))

The peak η is each group's own: with one peak for all, a group at ten times the lr would decay ten times too much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from weightdecay.amounts import amount, number
from weightdecay.errors import OptimizerError, did_you_mean

RuleName = Literal[
    "decoupled",
    "independent",
    "fixed",
    "lr_squared",
    "corrected",
    "cautious",
    "towards_one",
    "towards_initial",
    "l2",
]
Target = Literal["zero", "one", "initial"]
Mask = Literal["none", "agreeing", "strictly_agreeing"]

_ROUNDING = 1e-12  # a schedule that ends at 0 may end a hair below


@dataclass(frozen=True)
class Rule:
    """What one step's decay is.

    Attributes:
        name: as it is shown beside every λ, because a λ means nothing without its rule.
        lr_power: p in η_t^p; 0 decays in the warm-up and at the end of an anneal, too.
        peak_power: q in η_peak^q; a rule with q > 0 needs to be told the peak, for schedulers hide it.
        target: what weights are pulled towards; `initial` is the value before the first step.
        mask: which weights decay, u the update that is subtracted: all, those with u·w ≥ 0, those with u·w > 0.
        coupled: λ·w goes into the gradient instead, and no fraction of w can be named.

    Raises:
        OptimizerError: with every fault of the values.
    """

    name: str
    lr_power: float = 1
    peak_power: float = 0
    target: Target = "zero"
    mask: Mask = "none"
    coupled: bool = False

    def __post_init__(self) -> None:
        values: dict[str, Any] = dict(vars(self))  # whatever the caller gave, be its type what it may
        name = values["name"]
        faults = [] if isinstance(name, str) and name else [f"name: a rule needs one, got {name!r}"]
        for key in ("lr_power", "peak_power"):
            power = amount(values[key])
            if power is None:
                faults.append(f"{key}: give a finite number of at least 0, got {values[key]!r}")
            elif values[key].__class__ not in (int, float):
                object.__setattr__(self, key, power)  # which any file takes
        for key, known in (("target", get_args(Target)), ("mask", get_args(Mask))):
            value = values[key]
            if not (isinstance(value, str) and value in known):
                faults.append(f"{key}: unknown '{value}': {did_you_mean(str(value), known)}")
        if not isinstance(values["coupled"], bool):
            faults.append(f"coupled: give True or False, got {values['coupled']!r}")
        elif self.coupled and (self.target, self.mask) != ("zero", "none"):
            faults.append("coupled: what goes through the gradient has neither mask nor target")
        if faults:
            raise OptimizerError([f"rule '{self.name}': {fault}" for fault in faults])

    @property
    def needs_peak(self) -> bool:
        """Whether a_t depends on the highest η of the schedule."""
        return self.peak_power > 0

    @property
    def is_scalar(self) -> bool:
        """Whether the decay is (1 − a_t)·w for every weight, which a kernel's own `weight_decay` can do."""
        return not self.coupled and self.mask == "none" and self.target == "zero"

    @property
    def is_torchs(self) -> bool:
        """Whether the decay is (1 − η_t·λ)·w, which torch.optim.AdamW means by λ."""
        return self.is_scalar and self.lr_power == 1 and not self.peak_power

    @property
    def is_masked(self) -> bool:
        """Whether the update decides which weights decay."""
        return self.mask != "none"

    def decay_per_step(self, lr: float, weight_decay: float, peak_lr: float | None = None) -> float:
        """a_t: the fraction of a weight that a step at `lr` removes.

        Raises:
            OptimizerError: the rule is coupled, or needs a peak and got none.
        """
        if self.coupled:
            raise OptimizerError(
                f"rule '{self.name}' has no decay per step: it adds λ·w to the gradient, and what that removes depends "
                "on the gradient's size; ask for a decoupled rule to have one"
            )

        decay = float(weight_decay * lr**self.lr_power)
        if not self.peak_power:
            return decay

        # A scheduler that warms up shows lr = 0 when one attaches, so a peak is never guessed from it.
        if peak_lr is None or not (math.isfinite(peak_lr) and peak_lr > 0):
            raise OptimizerError(
                f"rule '{self.name}' needs the peak lr, got {peak_lr}: give peak_lr, the highest lr of the schedule, "
                "for each group"
            )
        return decay / float(peak_lr**self.peak_power)


DECOUPLED = Rule("decoupled")
"""w ← (1 − η_t·λ)·w"""

INDEPENDENT = Rule("independent", peak_power=1)
"""w ← (1 − (η_t/η)·λ)·w: λ is what a step at the peak removes, whatever the peak is."""

FIXED = Rule("fixed", lr_power=0)
"""w ← (1 − λ)·w at every step, whatever η_t: also in the warm-up and at the end of an anneal to zero."""

LR_SQUARED = Rule("lr_squared", lr_power=2)
"""w ← (1 − η_t²·λ)·w; PaLM's "dynamic weight decay of lr^2.0" is λ = 1."""

CORRECTED = Rule("corrected", lr_power=2, peak_power=1)
"""w ← (1 − η_t·λ·(η_t/η))·w, which holds the norm still while η_t falls.

Meant for weights whose output is normalised; the output head and the embeddings keep `DECOUPLED`.
"""

CAUTIOUS = Rule("cautious", mask="agreeing")
"""w ← w − η_t·λ·1[u⊙w ≥ 0]·w, u the update that is subtracted: only where both shrink the weight."""

TOWARDS_ONE = Rule("towards_one", target="one")
"""w ← w − η_t·λ·(w − 1): a gain at rest is 1, not 0."""

TOWARDS_INITIAL = Rule("towards_initial", target="initial")
"""w ← w − η_t·λ·(w − w_0), w_0 the value before the first step: initial or pre-trained."""

L2 = Rule("l2", coupled=True)
"""g ← g + λ·w before the moments: the gradient of ½·λ·‖w‖². No fraction of w that λ alone would decide."""

RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        DECOUPLED,
        INDEPENDENT,
        FIXED,
        LR_SQUARED,
        CORRECTED,
        CAUTIOUS,
        TOWARDS_ONE,
        TOWARDS_INITIAL,
        L2,
    )
}

# What a user gives as `rule`.
RuleLike: TypeAlias = RuleName | Rule


def as_rule(value: Any) -> Rule:
    """The rule of a name, of the fields that a saved state holds, or the value itself.

    Raises:
        OptimizerError: there is no such rule; the message names the nearest.
    """
    if isinstance(value, Rule):
        return value
    if isinstance(value, str) and value in RULES:
        return RULES[value]
    if isinstance(value, Mapping) and "name" in value:
        known = [field.name for field in fields(Rule)]
        if unknown := [key for key in value if key not in known]:
            raise OptimizerError(f"a rule has no '{unknown[0]}': {did_you_mean(str(unknown[0]), known)}")
        return Rule(**value)
    raise OptimizerError(f"unknown rule '{value}': {did_you_mean(str(value), RULES)}, or give a Rule of your own")


def spelt(rule: Rule) -> str | Rule:
    """A rule as a group holds it: by its name where the name says it all, so that states stay plain."""
    return rule.name if RULES.get(rule.name) == rule else rule


def plain_rule(value: Any) -> Any:
    """What a group holds of its rule as a saved state does: a name, or the fields."""
    return asdict(value) if isinstance(value, Rule) else value


def group_rule(group: Mapping[str, Any]) -> Rule:
    """The rule of an optimizer's group; `DECOUPLED` where it says none, as torch means λ."""
    held = group.get("rule", DECOUPLED)
    return RULES[held] if held.__class__ is str and held in RULES else as_rule(held)


def group_decay_per_step(group: Mapping[str, Any]) -> float | None:
    """a_t of an optimizer's group at its present lr and λ; None under a coupled rule, which has no such fraction.

    Args:
        group: one of `optimizer.param_groups`: `lr`, `weight_decay`, and where present `rule` and `peak_lr`.

    Raises:
        OptimizerError: the peak is missing, lr is above it, lr or λ is no number, or a_t is under 0, with which the
            weights would grow, or over 1, which would turn their sign.
    """
    rule, lr, weight_decay = group_rule(group), _number(group, "lr"), _number(group, "weight_decay")
    if rule.coupled:
        return None
    if weight_decay == 0.0:
        return 0.0

    peak_lr = None if group.get("peak_lr") is None else _number(group, "peak_lr")
    if rule.needs_peak and peak_lr is not None and lr > peak_lr * (1 + 1e-6):
        raise OptimizerError(
            f"{_where(group)}lr {lr:g} is above the declared peak {peak_lr:g}, so rule '{rule.name}' would decay too "
            "much: give the schedule's highest lr as peak_lr"
        )

    try:
        decay = rule.decay_per_step(lr, weight_decay, peak_lr)
    except OptimizerError as error:
        raise OptimizerError([f"{_where(group)}{fault}" for fault in error.faults]) from error
    if decay < -_ROUNDING or weight_decay < 0.0:
        raise OptimizerError(
            f"{_where(group)}a decay per step of {decay:g} would make the weights grow (rule '{rule.name}', lr {lr:g}, "
            f"weight_decay {weight_decay:g}): lr and weight_decay must be at least 0"
        )
    if not decay <= 1.0:
        raise OptimizerError(
            f"{_where(group)}a decay per step of {decay:g} would turn the sign of the weights (rule '{rule.name}', "
            f"lr {lr:g}, weight_decay {weight_decay:g}): it must stay at or below 1; lower weight_decay"
        )
    return decay


def _number(group: Mapping[str, Any], key: str) -> float:
    value = number(group[key])
    if value is None:
        raise OptimizerError(f"{_where(group)}{key} must be a number, got {group[key]!r}")
    return value


def _where(group: Mapping[str, Any]) -> str:
    return f"group '{group['name']}': " if "name" in group else ""
