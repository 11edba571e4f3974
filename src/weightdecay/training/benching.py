"""`weightdecay bench`: a recipe's step, timed on random tokens."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightdecay.errors import ConfigError
from weightdecay.kernels.library import library
from weightdecay.kernels.memory import keep_freed_memory
from weightdecay.models.decoder import GPT
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.training import precision
from weightdecay.training.optimizers import decay_plan, make_optimizer
from weightdecay.training.speed import (
    OwnStep,
    matrix_products,
    model_flop_per_token,
    product_rate,
    random_batches,
    seconds_by_part,
)

_UNTIMED = 3
# Tokens in one pass where the configuration leaves it open, as a training has it.
_AT_ONCE = 16_384


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        seconds: of a step, the median.
        flop_per_token: that the model asks for, see `training.speed`.
        limit: FLOP/s of the step's own matrix products by themselves.
        parts: seconds of a step by part, from a profile.
        remarks: what keeps this machine from more.
    """

    recipe: str
    parameters: int
    batch_tokens: int
    dtype: str
    threads: int
    seconds: float
    flop_per_token: float
    limit: float
    parts: Mapping[str, float]
    remarks: tuple[str, ...]

    @property
    def tokens_per_s(self) -> float:
        return self.batch_tokens / self.seconds

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.tokens_per_s * self.flop_per_token / self.limit

    def document(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "parameters": self.parameters,
            "batch_tokens": self.batch_tokens,
            "dtype": self.dtype,
            "threads": self.threads,
            "seconds_per_step": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "model_flop_per_token": self.flop_per_token,
            "model_flop_per_s": self.tokens_per_s * self.flop_per_token,
            "matrix_product_flop_per_s": self.limit,
            "share_of_limit": self.share,
            "seconds_by_part": dict(self.parts),
            "remarks": list(self.remarks),
        }


def bench(name: str, asked: Mapping[str, Any], steps: int, told: Callable[[str], None]) -> Bench:
    """Time the steps of a recipe.

    Args:
        name: RECIPE[:SIZE].
        asked: settings over the recipe's.
        steps: how many are timed.
        told: about what is going on.

    Raises:
        ConfigError: there is no such recipe, or a setting cannot be.
    """
    if steps < 1:
        raise ConfigError(f"--steps {steps}: give at least 1")
    wanted = recipe(name).config({"run.steps": 1_000, **asked})
    config = precision.with_precision(wanted)
    step, batches = _step(config)
    for _ in range(_UNTIMED):
        told("a step that is not timed")
        step(next(batches))

    seconds = []
    for number in range(steps):
        batch = next(batches)
        begin = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - begin)
        told(f"step {number + 1} of {steps}: {seconds[-1]:.3g} s")

    told("its matrix products by themselves")
    batch = next(batches)
    limit = product_rate(matrix_products(step, batch))
    told("a profile")
    return Bench(
        recipe=name,
        parameters=step.model.n_parameters(),
        batch_tokens=batch[0].numel(),
        dtype=config.run.dtype,
        threads=torch.get_num_threads(),
        seconds=statistics.median(seconds),
        flop_per_token=model_flop_per_token(step.model),
        limit=limit,
        parts=seconds_by_part(lambda: step(batch)),
        remarks=tuple(_remarks(config, wanted.run.dtype)),
    )


def _step(config: TrainConfig) -> tuple[OwnStep, Any]:
    keep_freed_memory(sparing=config.run.activation_checkpointing)
    torch.manual_seed(config.run.seed)
    model = GPT(config.model)
    model.arithmetic, model.recomputes = config.run.arithmetic, config.run.activation_checkpointing
    if config.run.compile:
        for block in model.blocks:
            block.compile()
    optimizer = make_optimizer(config.optimizer, decay_plan(model, config.optimizer))
    context = config.model.context
    sequences = max(1, round(config.run.batch_tokens / context))
    passes = math.ceil(sequences * context / (config.run.micro_batch_tokens or _AT_ONCE))
    dtype = torch.bfloat16 if config.run.dtype == "bfloat16" else torch.float32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = OwnStep(model, optimizer, dtype, math.ceil(sequences / passes), config.optimizer.grad_clip, device)
    return step, random_batches(config.model.vocab_size, context, sequences)


def _remarks(config: TrainConfig, asked_dtype: str) -> list[str]:
    found = list(precision.remarks(asked_dtype, config.run.dtype))
    if torch.cuda.is_available():
        return found
    if (cores := os.cpu_count() or 1) == 1 or torch.get_num_threads() < cores:
        found.append(f"{torch.get_num_threads()} of {cores} cores are used")
    if config.run.dtype == "bfloat16" and library() is None:
        found.append("no C compiler: the passes between products go by torch's own operations")
    return found
