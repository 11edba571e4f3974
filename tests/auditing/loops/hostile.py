"""Wrong in one way each, in ways that the museum does not show."""

from __future__ import annotations

import copy
from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Loop
from examples.museum.language_model import VOCABULARY, two_groups
from torch import nn

import weightdecay
from tests.auditing.loops.parts import Experts, Hostile, adamw, seeded, train, with_adapters

MATRICES = ("tokens.weight", "blocks.0.up.weight", "blocks.1.down.weight", "head.weight")
ASKED: dict[str, Any] = {"weight_decay": 0.1}
BY_POLICY: dict[str, Any] = {"weight_decay": 0.1, "policy": "default"}


class DecaysACopy(Optimizer):
    """The decay is written into a tensor that nobody keeps."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.clone().mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * adam(state, p.grad))


class AddsDecay(Optimizer):
    """The sign is wrong: weights grow."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 + group["lr"] * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))


class NeverReadsDecay(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.sub_(group["lr"] * adam(state, p.grad))


class DecaysByTheFirstRate(Optimizer):
    """All groups decay at the constructor's lr."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 - self.defaults["lr"] * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))


class FusedAdam(Optimizer):
    """Adam by its name, AdamW by default, as DeepSpeed's and apex'."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))


class DecaysWithoutGradients(Optimizer):
    """As KellerJordan/Muon issue 54: what has no gradient is stepped as if it were zero."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                grad = torch.zeros_like(p) if p.grad is None else p.grad
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * adam(self.state[p], grad))


def of(kind: type[Optimizer], asked: dict[str, Any] = ASKED, **settings: Any) -> Loop:
    model = seeded()
    optimizer = kind(two_groups(model.parameters(), 0.1), lr=1e-3, **settings)
    train(model, optimizer)
    return Loop(model, optimizer, asked)


def decays_a_copy() -> Loop:
    return of(DecaysACopy)


def decays_with_the_wrong_sign() -> Loop:
    return of(AddsDecay)


def hook_that_puts_the_decay_back() -> Loop:
    model = seeded()
    optimizer = adamw(model)

    @torch.no_grad()
    def undo(*_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.div_(1 - group["lr"] * group["weight_decay"])

    optimizer.register_step_post_hook(undo)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def bfloat16_weights_in_torchs_adamw() -> Loop:
    model = seeded().bfloat16()
    optimizer = adamw(model, lr=3e-4, foreach=True)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def float32_below_its_floor_all_along() -> Loop:
    """lr 1e-6 · λ 0.01 is below 2⁻²⁵, and no schedule ever raises it."""
    model = seeded()
    optimizer = adamw(model, lr=1e-6, weight_decay=0.01)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.01})


def hook_that_decays_too() -> Loop:
    model = seeded()
    optimizer = adamw(model)

    @torch.no_grad()
    def decay(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])

    optimizer.register_step_pre_hook(decay)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def step_that_decays_before_its_base_class_does() -> Loop:
    class DecaysBefore(torch.optim.AdamW):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
            super().step()

    model = seeded()
    optimizer = DecaysBefore(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def adam_with_weight_decay() -> Loop:
    model = seeded()
    optimizer = torch.optim.Adam(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def nadam_left_at_its_default() -> Loop:
    model = seeded()
    optimizer = torch.optim.NAdam(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def rmsprop_with_weight_decay() -> Loop:
    model = seeded()
    optimizer = torch.optim.RMSprop(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def adam_that_is_adamw_by_default() -> Loop:
    return of(FusedAdam)


def everything_in_one_group() -> Loop:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    train(model, optimizer)
    return Loop(model, optimizer, BY_POLICY)


def everything_in_one_group_and_no_policy_given() -> Loop:
    return everything_in_one_group()._replace(asked={})


def groups_swapped() -> Loop:
    """As CLIP4Clip issue 11: those named "no decay" got λ, and those named "decay" none."""
    model = seeded()
    decay, no_decay = two_groups(model.parameters(), 0.0)
    optimizer = torch.optim.AdamW([decay, {**no_decay, "weight_decay": 0.1}], lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, BY_POLICY)


def pattern_that_takes_too_much() -> Loop:
    """ "up" was meant for upsampling layers."""
    model = seeded()
    named = dict(model.named_parameters())
    exempt = [p for name, p in named.items() if p.ndim < 2 or "up" in name]
    decay = [p for name, p in named.items() if p.ndim == 2 and "up" not in name]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, BY_POLICY)


def layer_replaced_after_the_optimizer_was_made() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    model.head = nn.Linear(32, VOCABULARY, bias=False)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def optimizer_of_a_copy() -> Loop:
    model = seeded()
    optimizer = adamw(copy.deepcopy(model))
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def adapters_put_in_after_the_optimizer_was_made() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    with_adapters(model)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def unfrozen_and_not_added() -> Loop:
    model = seeded()
    model.blocks.requires_grad_(False)
    optimizer = torch.optim.AdamW(two_groups([p for p in model.parameters() if p.requires_grad], 0.1), lr=1e-3)
    train(model, optimizer)
    model.blocks.requires_grad_(True)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def held_by_two_optimizers() -> Loop:
    model = seeded()
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    optimizers = [torch.optim.Muon(hidden, lr=1e-3, weight_decay=0.1), adamw(model)]
    train(model, *optimizers)
    return Loop(model, optimizers, ASKED)


def put_into_a_second_group_later() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model.head.weight], "lr": 1e-3})
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def loaded_with_the_old_weight_decay() -> Loop:
    model = seeded()
    old = adamw(model, weight_decay=0.01)
    train(model, old)
    optimizer = adamw(model, weight_decay=0.1)
    optimizer.load_state_dict(old.state_dict())
    return Loop(model, optimizer, ASKED)


def rate_that_is_not_the_one_asked_for() -> Loop:
    model = seeded()
    optimizer = adamw(model, lr=1e-4)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1, "lr": 1e-3})


def groups_made_before_the_plan_changed() -> Loop:
    model = seeded()
    optimizer = torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.02).param_groups(lr=1e-3))
    train(model, optimizer)
    return Loop(model, optimizer, {"plan": weightdecay.plan(model, weight_decay=0.1)})


def one_rate_for_the_decay_of_all_groups() -> Loop:
    model = seeded()
    rest = [p for p in model.parameters() if p is not model.head.weight]
    groups = [*two_groups(rest, 0.1), {"params": [model.head.weight], "weight_decay": 0.1, "lr": 1e-4}]
    optimizer = DecaysByTheFirstRate(groups, lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def rprop_with_weight_decay_in_its_groups() -> Loop:
    """torch stores the key in the groups, and Rprop has no decay."""
    model = seeded()
    optimizer = torch.optim.Rprop(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def weight_decay_that_nobody_reads() -> Loop:
    return of(NeverReadsDecay)


def expert_that_decays_without_tokens() -> Loop:
    model = seeded(Experts)
    optimizer = adamw(model)
    train(model, optimizer)
    model.experts[-1].weight.grad = torch.zeros_like(model.experts[-1].weight)
    return Loop(model, optimizer, ASKED)


def tensors_without_gradients_are_stepped() -> Loop:
    model = seeded(Experts)
    optimizer = DecaysWithoutGradients(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def weights_set_to_unit_norm_after_each_step() -> Loop:
    """nGPT's way: rows have norm 1, and whatever decayed grows back."""
    model = seeded()
    optimizer = adamw(model)

    @torch.no_grad()
    def normalise(*_: Any) -> None:
        for p in model.parameters():
            if p.ndim == 2:
                p.div_(p.norm(dim=1, keepdim=True))

    normalise()
    optimizer.register_step_post_hook(normalise)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def step_that_wants_a_closure() -> Loop:
    model = seeded()
    return Loop(model, torch.optim.LBFGS(model.parameters()), {})


class Refuses(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:  # noqa: ARG002
        raise RuntimeError("this kernel needs a GPU")


def step_that_raises() -> Loop:
    model = seeded()
    return Loop(model, Refuses(two_groups(model.parameters(), 0.1), lr=1e-3), ASKED)


GAINS: tuple[str, ...] = ("norm.weight", "blocks.0.norm.weight", "blocks.0.up.bias")

LOOPS: list[Hostile] = [
    Hostile(decays_a_copy, "not-decaying", "error", MATRICES),
    Hostile(decays_with_the_wrong_sign, "not-decaying", "error", MATRICES),
    Hostile(hook_that_puts_the_decay_back, "not-decaying", "error", MATRICES),
    Hostile(bfloat16_weights_in_torchs_adamw, "lost-to-rounding", "error", MATRICES),
    Hostile(float32_below_its_floor_all_along, "lost-to-rounding", "error", MATRICES),
    Hostile(hook_that_decays_too, "decays-twice", "error", MATRICES),
    Hostile(step_that_decays_before_its_base_class_does, "decays-twice", "error", MATRICES),
    Hostile(adam_with_weight_decay, "coupled", "warning", MATRICES),
    Hostile(nadam_left_at_its_default, "coupled", "warning", MATRICES),
    Hostile(rmsprop_with_weight_decay, "coupled", "warning", MATRICES),
    Hostile(adam_that_is_adamw_by_default, "decoupled", "warning", MATRICES),
    Hostile(everything_in_one_group, "decays-exempt", "error", GAINS),
    Hostile(everything_in_one_group_and_no_policy_given, "decays-exempt", "warning", GAINS),
    Hostile(groups_swapped, "decays-exempt", "error", GAINS),
    Hostile(groups_swapped, "exempt-matrix", "error", MATRICES),
    Hostile(pattern_that_takes_too_much, "exempt-matrix", "error", ("blocks.0.up.weight", "blocks.1.up.weight")),
    Hostile(layer_replaced_after_the_optimizer_was_made, "missing", "error", ("head.weight",)),
    Hostile(optimizer_of_a_copy, "missing", "error", MATRICES),
    Hostile(
        adapters_put_in_after_the_optimizer_was_made,
        "missing",
        "error",
        ("blocks.0.up.lora_A.weight", "blocks.1.down.lora_A.weight"),
    ),
    Hostile(unfrozen_and_not_added, "missing", "error", ("blocks.0.up.weight", "blocks.1.norm.weight")),
    Hostile(held_by_two_optimizers, "doubled", "error", ("blocks.0.up.weight",)),
    Hostile(put_into_a_second_group_later, "doubled", "error", ("head.weight",)),
    Hostile(loaded_with_the_old_weight_decay, "stale", "error", MATRICES),
    Hostile(rate_that_is_not_the_one_asked_for, "stale", "error", MATRICES),
    Hostile(groups_made_before_the_plan_changed, "stale", "error", MATRICES),
    Hostile(one_rate_for_the_decay_of_all_groups, "wrong-scale", "error", ("head.weight",)),
    Hostile(rprop_with_weight_decay_in_its_groups, "ignored-key", "error", MATRICES),
    Hostile(weight_decay_that_nobody_reads, "ignored-key", "error", MATRICES),
    Hostile(expert_that_decays_without_tokens, "idle-decay", "note", ("experts.2.weight",)),
    Hostile(tensors_without_gradients_are_stepped, "idle-decay", "note", ("experts.2.weight",)),
    Hostile(weights_set_to_unit_norm_after_each_step, "by-design", "note", ("head.weight",)),
    Hostile(step_that_wants_a_closure, "opaque", "warning", ()),
    Hostile(step_that_raises, "opaque", "warning", ()),
]
