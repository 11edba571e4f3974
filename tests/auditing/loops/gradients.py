"""Healthy: precisions, and gradients that are scaled, half gathered, absent, sparse, zero or gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from examples.museum.exhibit import Loop
from examples.museum.language_model import VOCABULARY, two_groups
from torch import Tensor, nn

import weightdecay
from tests.auditing.loops.parts import (
    Experts,
    adamw,
    language_loss,
    seeded,
    train,
    trainable,
    with_adapters,
)


def autocast_loss(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return language_loss(model)


def bfloat16_autocast_over_float32_weights() -> Loop:
    model = seeded()
    optimizer = adamw(model, lr=3e-4)
    train(model, optimizer, loss=autocast_loss)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def scaler_that_skipped_steps() -> Loop:
    """The scale of 2^24 overflows at first, steps are skipped, and the gradients here are still scaled."""
    model = seeded()
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    for step in range(3):
        torch.autograd.backward(scaler.scale(language_loss(model)))
        if step == 0:
            model.head.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        model.zero_grad()
    torch.autograd.backward(scaler.scale(language_loss(model)))
    return Loop(model, optimizer, {"weight_decay": 0.1})


def gradients_that_overflowed() -> Loop:
    """Before the scaler has looked: this step will be skipped."""
    model = seeded()
    optimizer = adamw(model)
    train(model, optimizer)
    model.head.weight.grad.fill_(torch.inf)
    model.tokens.weight.grad[3] = torch.nan
    return Loop(model, optimizer, {"weight_decay": 0.1})


def accumulation_mid_way() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    train(model, optimizer)
    for _ in range(2):
        torch.autograd.backward(language_loss(model) / 4)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def before_the_first_step() -> Loop:
    model = seeded()
    return Loop(model, adamw(model), {"weight_decay": 0.1})


def between_steps_without_gradients() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    train(model, optimizer)
    model.zero_grad()
    return Loop(model, optimizer, {"weight_decay": 0.1})


def gradients_set_to_zero_instead_of_none() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    train(model, optimizer)
    model.zero_grad(set_to_none=False)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def clipped_gradients() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    train(model, optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def experts_without_tokens() -> Loop:
    model = seeded(Experts)
    optimizer = adamw(model)
    train(model, optimizer)
    assert model.experts[-1].weight.grad is None
    return Loop(model, optimizer, {"weight_decay": 0.1})


def low_rank_adapters_over_a_frozen_base() -> Loop:
    model = with_adapters(seeded())
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3, weight_decay=0.01)
    train(model, optimizer)
    return Loop(model, optimizer, {})


def frozen_parameters_in_the_optimizer() -> Loop:
    model = seeded()
    model.tokens.requires_grad_(False)
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def sparse_embedding_beside_adamw() -> Loop:
    model = seeded()
    model.tokens = nn.Embedding(VOCABULARY, 32, sparse=True)
    optimizers = [
        torch.optim.SparseAdam([model.tokens.weight], lr=1e-3),
        torch.optim.AdamW(
            two_groups([p for p in model.parameters() if p is not model.tokens.weight], 0.1),
            lr=1e-3,
        ),
    ]
    train(model, *optimizers)
    return Loop(model, optimizers, {})


def step_inside_backward() -> Loop:
    """An optimizer for each parameter, stepped as soon as its gradient is there; no gradients are left to see."""
    model = seeded()
    optimizers: dict[nn.Parameter, Any] = {
        p: torch.optim.AdamW([p], lr=1e-3, weight_decay=0.1 if p.ndim == 2 else 0.0) for p in model.parameters()
    }

    def step(p: Tensor) -> None:
        optimizers[p].step()  # type: ignore[index]
        optimizers[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        torch.autograd.backward(language_loss(model))
    return Loop(model, list(optimizers.values()), {"weight_decay": 0.1})


def float64() -> Loop:
    model = seeded().double()
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def bfloat16_weights_with_rounding_that_keeps_decay() -> Loop:
    model = seeded().bfloat16()
    plan = weightdecay.plan(model, weight_decay=0.1)
    optimizer = weightdecay.AdamW(plan, lr=3e-4, rounding="stochastic")
    train(model, optimizer)
    return Loop(model, optimizer, {"plan": plan})


def bfloat16_weights_without_decay() -> Loop:
    model = seeded().bfloat16()
    optimizer = adamw(model, weight_decay=0.0)
    train(model, optimizer)
    return Loop(model, optimizer, {})


LOOPS: list[Callable[[], Loop]] = [
    bfloat16_autocast_over_float32_weights,
    scaler_that_skipped_steps,
    gradients_that_overflowed,
    accumulation_mid_way,
    before_the_first_step,
    between_steps_without_gradients,
    gradients_set_to_zero_instead_of_none,
    clipped_gradients,
    experts_without_tokens,
    low_rank_adapters_over_a_frozen_base,
    frozen_parameters_in_the_optimizer,
    sparse_embedding_beside_adamw,
    step_inside_backward,
    float64,
    bfloat16_weights_with_rounding_that_keeps_decay,
    bfloat16_weights_without_decay,
]
