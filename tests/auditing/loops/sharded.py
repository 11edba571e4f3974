"""Loops over two processes: FSDP2 and DDP, healthy and hostile. Each is made on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from examples.museum.exhibit import Loop
from examples.museum.language_model import LanguageModel, two_groups
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import weightdecay
from tests.auditing.loops.parts import Hostile, adamw, seeded, train

ASKED: dict[str, Any] = {"weight_decay": 0.1}


def sharded(width: int = 33, **settings: Any) -> Any:
    """33 rows cannot be shared equally by two ranks."""
    model = seeded(lambda: LanguageModel(width=width))
    for block in model.blocks:
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    return model


def fsdp2() -> Loop:
    model = sharded()
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def fsdp2_by_a_plan_of_the_bare_model() -> Loop:
    plan = weightdecay.plan(seeded(), weight_decay=0.1)
    model = sharded(width=32)
    optimizer = torch.optim.AdamW(plan.on(model).param_groups(lr=1e-3), foreach=True)
    train(model, optimizer)
    return Loop(model, optimizer, {"plan": plan})


def fsdp2_in_mixed_precision() -> Loop:
    model = sharded(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    optimizer = weightdecay.AdamW(weightdecay.plan(model, weight_decay=0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def fsdp2_before_the_first_step() -> Loop:
    model = sharded()
    return Loop(model, adamw(model), ASKED)


def ddp() -> Loop:
    model = DistributedDataParallel(seeded())
    optimizer = adamw(model)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def everything_in_one_group() -> Loop:
    model = sharded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    train(model, optimizer)
    return Loop(model, optimizer, {**ASKED, "policy": "default"})


def optimizer_made_before_sharding() -> Loop:
    model = seeded()
    optimizer = adamw(model)
    fully_shard(model)
    return Loop(model, optimizer, ASKED)


def hook_that_decays_too() -> Loop:
    model = sharded()
    optimizer = adamw(model)

    @torch.no_grad()
    def decay(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])

    optimizer.register_step_pre_hook(decay)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def bfloat16_weights() -> Loop:
    model = seeded().bfloat16()
    fully_shard(model)
    optimizer = torch.optim.AdamW(two_groups(model.parameters(), 0.1), lr=3e-4)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


HEALTHY: list[Callable[[], Loop]] = [
    fsdp2,
    fsdp2_by_a_plan_of_the_bare_model,
    fsdp2_in_mixed_precision,
    fsdp2_before_the_first_step,
    ddp,
]
MATRICES = ("tokens.weight", "blocks.0.up.weight", "head.weight")
HOSTILE: list[Hostile] = [
    Hostile(everything_in_one_group, "decays-exempt", "error", ("blocks.0.norm.weight", "blocks.1.up.bias")),
    Hostile(optimizer_made_before_sharding, "missing", "error", MATRICES),
    Hostile(hook_that_decays_too, "decays-twice", "error", MATRICES),
    Hostile(bfloat16_weights, "lost-to-rounding", "error", MATRICES),
]
