"""Our own training step in its settings, for benchmarks/train_step.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.contestants import BETAS, CLIP, LR, WEIGHT_DECAY, Contestant, Here, Setting, Shape, Weights
from weightdecay.kernels.memory import keep_freed_memory
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.optim.adamw import AdamW
from weightdecay.planning.plan import plan
from weightdecay.training.speed import OwnStep

PROGRAM = "ours"


@dataclass(frozen=True)
class Arithmetic:
    """How a step of ours computes, see `run.dtype`, `run.arithmetic`, `run.activation_checkpointing`, `run.compile`."""

    dtype: torch.dtype = torch.bfloat16
    arithmetic: Literal["working", "autocast"] = "working"
    recomputes: bool = False
    compiled: bool = False


SETTINGS = {
    "ours": Arithmetic(),
    "ours, activation checkpointing": Arithmetic(recomputes=True),
    "ours, autocast": Arithmetic(arithmetic="autocast"),
    "ours, float32": Arithmetic(torch.float32),
}
COMPILED = {
    "ours, compiled by block": Arithmetic(compiled=True),
    "ours, autocast, compiled by block": Arithmetic(arithmetic="autocast", compiled=True),
}


def configuration(shape: Shape) -> ModelConfig:
    """nanoGPT's architecture."""
    return ModelConfig(
        vocab_size=shape.vocabulary, context=shape.context, n_layers=shape.layers, d_model=shape.width,
        n_heads=shape.heads, feedforward="gelu",
    )  # fmt: skip


def initial_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """What all that can take them begin with."""
    torch.manual_seed(seed)
    return {name: tensor.detach().clone() for name, tensor in GPT(config).tensors().items()}


def own_step(
    config: ModelConfig, weights: Weights, device: torch.device, arithmetic: Arithmetic = SETTINGS["ours"]
) -> OwnStep:
    """Our step from these weights."""
    model = GPT(config)
    model.arithmetic, model.recomputes = arithmetic.arithmetic, arithmetic.recomputes
    tensors = model.tensors()
    with torch.no_grad():
        for name, tensor in weights.items():
            tensors[name].copy_(tensor)
    model.to(device)
    if arithmetic.compiled:
        for block in model.blocks:
            block.compile()
    optimizer = AdamW(plan(model, weight_decay=WEIGHT_DECAY), lr=LR, betas=BETAS, fused=True)
    return OwnStep(model, optimizer, arithmetic.dtype, rows_at_once=1 << 20, clip=CLIP, device=device)


def own_contestants(setting: Setting, *, compiled: bool, alone: bool) -> Iterator[Contestant]:
    """Ours as it trains by default, and by its other settings.

    Args:
        alone: whether the process has no other contestant, so that its allocator can do as a training's does.
    """
    for name, arithmetic in (SETTINGS | (COMPILED if compiled else {})).items():

        def make(shape: Shape, weights: Weights, arithmetic: Arithmetic = arithmetic) -> Here:
            keep_freed_memory(sparing=alone and arithmetic.recomputes)
            return Here(own_step(configuration(shape), weights, setting.device, arithmetic), setting)

        yield Contestant(name, PROGRAM, make)
