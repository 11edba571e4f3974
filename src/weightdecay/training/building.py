"""Model and optimizer of a configuration, by its plan, at step 0."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weightdecay.kernels.memory import keep_freed_memory
from weightdecay.models.decoder import GPT
from weightdecay.models.loading import load_weights
from weightdecay.models.objective import Objective
from weightdecay.training.distributed import Ranks
from weightdecay.training.optimizers import make_optimizer
from weightdecay.training.pretrained import tokenizer_advice
from weightdecay.training.resuming import initial_weights
from weightdecay.training.setup import Setup


@dataclass(frozen=True)
class Built:
    """What a step moves.

    Attributes:
        model: the weights.
        objective: tokens and targets to the loss, around the model; exchanges gradients where there are several ranks.
        optimizer: over the plan's groups.
    """

    model: GPT
    objective: nn.Module
    optimizer: torch.optim.Optimizer


def build(setup: Setup, ranks: Ranks, report: Callable[[str], None], *, fresh: bool) -> Built:
    """Weights drawn by the run's seed, or read from where `--init-from` says.

    Args:
        fresh: whether the run begins; a resumed one reads its own weights afterwards.
    """
    config = setup.config
    if ranks.device.type == "cpu":
        keep_freed_memory(sparing=config.run.activation_checkpointing)
    torch.manual_seed(config.run.seed)
    model = GPT(config.model)
    if config.run.init_from and fresh:
        advice = partial(tokenizer_advice, config, setup.data)
        tensors, where = initial_weights(config.run.init_from, setup.data.tokenizer.sha256, report, advice)
        load_weights(model, tensors, where)
    model.to(ranks.device)
    model.arithmetic = config.run.arithmetic
    model.recomputes = config.run.activation_checkpointing
    optimizer = make_optimizer(config.optimizer, setup.plan.on(model))

    if config.run.compile:
        for block in model.blocks:
            block.compile()

    objective: nn.Module = Objective(model)
    if ranks.world_size > 1:
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        # Buffers need no exchange: every rank makes the same ones.
        known = inspect.signature(DistributedDataParallel).parameters
        named = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.13
        exchanged: dict[str, Any] = {named: False}
        objective = DistributedDataParallel(objective, device_ids=devices, **exchanged)
    return Built(model, objective, optimizer)
