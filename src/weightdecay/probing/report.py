"""What the probe says of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Form: TypeAlias = Literal["none", "decoupled", "coupled", "other"]
Order: TypeAlias = Literal["before", "after"]


@dataclass(frozen=True)
class GroupReport:
    """What a step does to one group's weights.

    Attributes:
        form: how λ enters; "other" where none of the forms fits.
        order: of decay and update, where it is decoupled; None where both are of the whole weight, w − c·w − u(w).
        decay_per_step: the fraction that a step without gradient removes at the group's own lr and λ.
        hidden_decay: the same with `weight_decay` 0 in the group.
        reads_weight_decay, reads_lr: whether another value of the key changes the step.
        idle_steps: how many steps from here λ changes nothing, before it does.
        own_decay_is_lr_times_lambda: whether the step is `w ← (1 − lr·λ)·w`, before the step of λ = 0 or beside it.
        through_gradient: whether it is the step of λ = 0 with λ·w added to the gradient; true of plain SGD, too.
        reads_weights: whether the direction at λ = 0 depends on the weights, or on chance.
        branches_on_weight_decay: where the form is "other", whether its direction is another as soon as there is a λ.
        moves_zeros: where the form is "other", whether λ changes the steps of weights that are 0, as no decay does.
        decays_apart: whether λ takes another fraction off some of its tensors than off others, beside the gradient.
        heeds_zeros: whether λ enters otherwise where gradients are 0, as where only rows with a gradient decay.
        opaque: why nothing can be said; empty where it can.
    """

    index: int
    title: str
    form: Form = "none"
    order: Order | None = None
    decay_per_step: float = 0.0
    hidden_decay: float = 0.0
    reads_weight_decay: bool = False
    reads_lr: bool = False
    idle_steps: int = 0
    own_decay_is_lr_times_lambda: bool = False
    through_gradient: bool = False
    reads_weights: bool = False
    branches_on_weight_decay: bool = False
    moves_zeros: bool = False
    decays_apart: bool = False
    heeds_zeros: bool = False
    opaque: str = ""


@dataclass(frozen=True)
class StepReport:
    """What a step of an optimizer does.

    Attributes:
        groups: a report for each.
        opaque: why nothing can be said of any; empty where it can.
        steps: how many steps were seen.
        keeps_phase: whether they began where the optimizer stands.
    """

    groups: tuple[GroupReport, ...]
    opaque: str = ""
    steps: int = 0
    keeps_phase: bool = True
