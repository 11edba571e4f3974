"""What a run writes down about itself: the rows of metrics.jsonl, and the summary at its end."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from weightdecay import checkpoint
from weightdecay.data.loader import evaluation_batches
from weightdecay.evaluation.loss import EVALUATION_TOKENS
from weightdecay.kernels.memory import peak_bytes
from weightdecay.models.decoder import GPT
from weightdecay.optim.clipping import total_norm
from weightdecay.rules import group_decay_per_step
from weightdecay.runs import Row, Run
from weightdecay.training.checkpointing import Position
from weightdecay.training.distributed import Ranks
from weightdecay.training.setup import Setup
from weightdecay.training.step import StepResult, evaluate


def step_row(
    setup: Setup, optimizer: torch.optim.Optimizer, position: Position, result: StepResult, step_s: float
) -> Row:
    """The row of the step that has just been made."""
    step = position.done - 1
    decaying = _decaying_group(optimizer)
    batch_tokens = setup.sizes.tokens_at(step)
    return {
        "kind": "train",
        "step": position.done,
        "tokens": setup.sizes.tokens_before(position.done),
        "loss": result.loss,
        "lr": setup.lr(step),
        "weight_decay": decaying["weight_decay"],
        "decay_per_step": group_decay_per_step(decaying),
        "penalty": _penalty(optimizer),
        "grad_norm": result.grad_norm,
        "grad_clip": setup.grad_clip(step),
        "skipped_steps": position.skipped_steps,
        "batch_tokens": batch_tokens,
        "tokens_per_s": batch_tokens / step_s,
        "elapsed_s": position.elapsed_s,
    }


def evaluation_row(setup: Setup, model: GPT, ranks: Ranks, step: int) -> Row:
    """The loss on the held-out text after so many steps; ranks share the work."""
    config, data = setup.config, setup.data
    context = config.model.context
    started = time.perf_counter()

    batches = evaluation_batches(
        data.held_out.tokens,
        context,
        max(1, EVALUATION_TOKENS // context),
        config.run.eval_tokens,
        end_of_text_id=data.tokenizer.end_of_text_id,
    )
    nats, count = evaluate(model, batches, ranks=ranks, dtype=setup.dtype)

    return {
        "kind": "eval",
        "step": step,
        "val_loss": nats / count,
        "val_perplexity": math.exp(min(nats / count, 700.0)),
        # Of a tokenizer that loses text it would praise the one that loses most.
        "val_bits_per_byte": None if data.fidelity.loses_text else nats / math.log(2) / data.held_out_bytes(count),
        "val_tokens": count,
        "eval_s": time.perf_counter() - started,
    }


def summary(setup: Setup, run: Run, position: Position) -> dict[str, Any]:
    """What summary.json says of a run that has reached its end."""
    last = max(run.rows("train"), key=lambda row: row["step"])
    evaluation = max(run.rows("eval"), key=lambda row: row["step"])
    champion = checkpoint.best(run.checkpoints)
    return {
        "status": "finished",
        "steps": position.done,
        "tokens": last["tokens"],
        "elapsed_s": position.elapsed_s,
        "peak_memory_bytes": peak_bytes() or None,
        "loss": last["loss"],
        "skipped_steps": position.skipped_steps,
        **{key: evaluation[key] for key in ("val_loss", "val_perplexity", "val_bits_per_byte", "val_tokens")},
        "decay_total": setup.decay.total if setup.decay else None,
        "best_checkpoint": champion.path.name if champion else None,
    }


def _decaying_group(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The group whose λ is the configuration's, or the largest share of it."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    return max(groups, key=lambda group: (group["decay_multiplier"] == 1.0, group["decay_multiplier"]))


def _penalty(optimizer: torch.optim.Optimizer) -> float:
    """½·Σ λ‖w‖², what the decay would be as a term of the loss.

    `optim.penalty` is the same to be differentiated; this one adds up in float64 and builds no graph.
    """
    squares = [group["weight_decay"] * float(total_norm(group["params"])) ** 2 for group in optimizer.param_groups]
    return 0.5 * math.fsum(squares)
