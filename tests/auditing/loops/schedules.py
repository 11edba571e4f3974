"""Healthy: learning rates and λ that move, and runs that go on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from examples.museum.exhibit import Loop
from torch.optim import lr_scheduler

from tests.auditing.loops.parts import adamw, seeded, train, trainable


def warm_up_from_zero() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 100, 1.0))
    train(model, optimizer, steps=1)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def annealed_to_zero() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 10))
    train(model, optimizer, scheduler=scheduler, steps=10)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def last_steps_of_an_anneal_below_what_float32_can_tell() -> Loop:
    """ηλ is 1e-8 here, and was 1e-4: what is lost is a ten-thousandth of the run's decay."""
    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 5 else 1e-4)
    train(model, optimizer, scheduler=scheduler, steps=6)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def one_cycle() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=50, cycle_momentum=True)
    train(model, optimizer, scheduler=scheduler, steps=8)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def cosine_with_restarts() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5)
    train(model, optimizer, scheduler=scheduler, steps=7)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def warm_up_then_cosine() -> Loop:
    model = seeded()
    optimizer = adamw(model, lr=3e-3)
    scheduler = lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.01, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 20)],
        milestones=[3],
    )
    train(model, optimizer, scheduler=scheduler, steps=6)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def rate_set_by_hand_before_each_step() -> Loop:
    """nanoGPT's way: no scheduler, the loop writes into the groups."""
    model = seeded()
    optimizer = adamw(model, lr=6e-4)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * (step + 1) / 10
        train(model, optimizer, steps=1)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def weight_decay_schedule() -> Loop:
    """DINO's way: λ grows by a cosine in the groups that have one."""
    model = seeded()
    optimizer = adamw(model, weight_decay=0.04)
    for step in range(4):
        for group in optimizer.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 10)) / 2
        train(model, optimizer, steps=1)
    return Loop(model, optimizer, {})


def layer_wise_rates_under_a_schedule() -> Loop:
    model = seeded()
    groups: list[dict[str, Any]] = []
    for name, p in model.named_parameters():
        share = 0.8 ** (2 if "tokens" in name else 1 if "blocks.0" in name else 0)
        groups.append({"params": [p], "lr": 1e-3 * share, "weight_decay": 0.1 if p.ndim == 2 else 0.0})
    optimizer = torch.optim.AdamW(groups)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    train(model, optimizer, scheduler=scheduler, steps=5)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def plateau() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for loss in (3.0, 3.1, 3.2):
        train(model, optimizer, steps=1)
        scheduler.step(loss)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def resumed() -> Loop:
    """Optimizer and scheduler of a new process, loaded from the old one's states."""
    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    train(model, optimizer, scheduler=scheduler, steps=5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))

    model = seeded()
    optimizer = adamw(model)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for target, state in zip((model, optimizer, scheduler), saved, strict=True):
        target.load_state_dict(state)
    train(model, optimizer, scheduler=scheduler, steps=1)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def frozen_then_unfrozen() -> Loop:
    model = seeded()
    model.blocks.requires_grad_(False)
    optimizer = adamw(model)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    train(model, optimizer)

    model.blocks.requires_grad_(True)
    blocks = list(model.blocks.parameters())
    optimizer.add_param_group({"params": [p for p in blocks if p.ndim == 2], "lr": 1e-4, "weight_decay": 0.1})
    optimizer.add_param_group({"params": [p for p in blocks if p.ndim < 2], "lr": 1e-4, "weight_decay": 0.0})
    train(model, optimizer)
    assert len(trainable(model)) == sum(len(group["params"]) for group in optimizer.param_groups)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def averaged_at_the_end() -> Loop:
    """torch's own stochastic weight averaging, with its schedule."""
    model = seeded()
    optimizer = adamw(model)
    averaged, scheduler = torch.optim.swa_utils.AveragedModel(model), torch.optim.swa_utils.SWALR(optimizer, 5e-4)
    for _ in range(3):
        train(model, optimizer, scheduler=scheduler, steps=1)
        averaged.update_parameters(model)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def exponential_average_beside() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, _: old.lerp(new, 0.01))
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


LOOPS: list[Callable[[], Loop]] = [
    warm_up_from_zero,
    annealed_to_zero,
    last_steps_of_an_anneal_below_what_float32_can_tell,
    one_cycle,
    cosine_with_restarts,
    warm_up_then_cosine,
    rate_set_by_hand_before_each_step,
    weight_decay_schedule,
    layer_wise_rates_under_a_schedule,
    plateau,
    resumed,
    frozen_then_unfrozen,
    averaged_at_the_end,
    exponential_average_beside,
]
