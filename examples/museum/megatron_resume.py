"""Megatron's scheduler, when loaded, writes λ into the groups before it has read λ's schedule from the checkpoint.

So the first step after a resume decays by the constructor's λ; the next step of the scheduler mends it, and the logs
never show it. NeMo Automodel carried the same lines (issue 3882).
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train

import weightdecay


class Scheduler:
    """λ grows linearly from `start` to `end` in 10 steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, start: float, end: float) -> None:
        self.optimizer, self.start, self.end, self.num_steps = optimizer, start, end, 0

    def step(self, increment: int = 1) -> None:
        self.num_steps += increment
        weight_decay = self.start + (self.end - self.start) * min(self.num_steps / 10, 1.0)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = weight_decay * group["decay_multiplier"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step(state["num_steps"])
        self.start, self.end = state["start"], state["end"]


class MendedScheduler(Scheduler):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.end = state["start"], state["end"]
        self.step(state["num_steps"])


def loop(scheduler: type[Scheduler]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    plan = weightdecay.plan(model, weight_decay=0.033)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-3))
    train(model, optimizer)

    scheduler(optimizer, start=0.033, end=0.033).load_state_dict({"num_steps": 5, "start": 0.1, "end": 0.2})
    return Loop(model, optimizer, {"weight_decay": 0.15})


EXHIBIT = Exhibit(
    project="Megatron-LM",
    reference="https://github.com/NVIDIA/Megatron-LM/pull/7468",
    bug="the first step after a resume has the constructor's λ",
    code="stale",
    severity="error",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(Scheduler),
    mended=lambda: loop(MendedScheduler),
)
