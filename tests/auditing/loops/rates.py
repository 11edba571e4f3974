"""Healthy: optimizers that choose their rate themselves, rates that the loop scales, and weights held in bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Loop
from examples.museum.language_model import two_groups
from torch import Tensor
from torch.optim import lr_scheduler

from tests.auditing.loops.parts import adamw, seeded, train


class Lars(Optimizer):
    """SGD's own L2, and a rate for each tensor by ‖w‖/‖g‖."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        update = p.grad
        if group["weight_decay"]:
            update = update + group["weight_decay"] * p
            update = update * (1e-3 * p.norm() / update.norm())
        momentum: Tensor = state.setdefault("momentum", torch.zeros_like(p)).mul_(0.9).add_(update)
        p.sub_(group["lr"] * momentum)


class WarmsUp(Optimizer):
    """Makes no step before it knows its second moment, as some RAdam."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        update = adam(state, p.grad)
        if state["step"] > 5:
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)


def lars() -> Loop:
    model = seeded()
    optimizer = Lars(two_groups(model.parameters(), 1e-4), lr=1.0)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1e-4})


def dampened_momentum() -> Loop:
    model = seeded()
    optimizer = torch.optim.SGD(two_groups(model.parameters(), 1e-4), lr=0.1, momentum=0.9, dampening=0.9)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1e-4})


def momentum_of_many_steps() -> Loop:
    model = seeded()
    optimizer = torch.optim.SGD(two_groups(model.parameters(), 1e-4), lr=0.1, momentum=0.99)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1e-4})


def no_step_yet_by_its_own_warm_up() -> Loop:
    model = seeded()
    optimizer = WarmsUp(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer, steps=2)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def lr_scale_that_the_loop_applies() -> Loop:
    """MAE's way: the loop multiplies the rate by the group's `lr_scale` before each step."""
    model = seeded()
    groups = [
        {"params": [p], "weight_decay": 0.05 if p.ndim == 2 else 0.0, "lr_scale": 0.75 ** (index % 4)}
        for index, p in enumerate(model.parameters())
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["lr_scale"]
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.05})


def groups_that_carry_names_and_depths() -> Loop:
    model = seeded()
    decay, no_decay = two_groups(model.parameters(), 0.1)
    groups = [{**decay, "name": "decay", "layer_id": 3}, {**no_decay, "name": "no decay", "layer_id": 4}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def small_rate_of_a_fine_tuning() -> Loop:
    """ηλ = 1e-7: float32 still tells it, and removes 14 % too much."""
    model = seeded()
    optimizer = adamw(model, lr=1e-6)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def cosine_at_its_end() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    train(model, optimizer, scheduler=scheduler, steps=10)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def weights_clipped_after_each_step() -> Loop:
    model = seeded()
    optimizer = adamw(model)

    @torch.no_grad()
    def clip(*_: Any) -> None:
        for p in model.parameters():
            p.clamp_(-2.0, 2.0)

    optimizer.register_step_post_hook(clip)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def rows_of_the_head_held_below_a_norm() -> Loop:
    model = seeded()
    optimizer = adamw(model)

    @torch.no_grad()
    def shorten(*_: Any) -> None:
        norms = model.head.weight.norm(dim=1, keepdim=True)
        model.head.weight.mul_(norms.clamp(max=1.0) / norms)

    optimizer.register_step_post_hook(shorten)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


LOOPS: list[Callable[[], Loop]] = [
    lars,
    no_step_yet_by_its_own_warm_up,
    dampened_momentum,
    momentum_of_many_steps,
    lr_scale_that_the_loop_applies,
    groups_that_carry_names_and_depths,
    small_rate_of_a_fine_tuning,
    cosine_at_its_end,
    weights_clipped_after_each_step,
    rows_of_the_head_held_below_a_norm,
]
