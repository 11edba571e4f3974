"""A run's state on its way to a checkpoint and back: what is saved here is what is read here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from weightdecay import checkpoint
from weightdecay.models.decoder import GPT
from weightdecay.models.loading import load_weights
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name
from weightdecay.runs import Run
from weightdecay.training.distributed import Ranks


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        done: optimizer steps behind it.
        elapsed_s: time that the steps took, over all processes that ever made some of them.
        skipped_steps: those without an update, as their gradient was not finite.
        monitor: what the monitor knows of the steps before; None where there is none.
    """

    done: int = 0
    elapsed_s: float = 0.0
    skipped_steps: int = 0
    monitor: dict[str, Any] | None = None


def save(
    run: Run,
    position: Position,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    *,
    tokens: int,
    val_loss: float | None,
    keep: int,
) -> None:
    """Write a checkpoint and remove those that nobody asked to keep. Rank 0 writes; the others wait.

    Args:
        tokens: seen so far.
        val_loss: the held-out loss at this step; None where it was not measured.
        keep: how many of the newest stay.
    """
    if ranks.is_first:
        checkpoint.save(
            run.checkpoints,
            position.done,
            model=model.tensors(),
            optimizer=state_by_name(optimizer),
            state={
                "tokens": tokens,
                "elapsed_s": position.elapsed_s,
                "skipped_steps": position.skipped_steps,
                "monitor": position.monitor,
                "threads": torch.get_num_threads(),
                "world_size": ranks.world_size,
                "optimizer": settings_by_name(optimizer),
                "val_loss": val_loss,
            },
        )
        checkpoint.prune(run.checkpoints, keep)
    ranks.wait_for_all()


def resume(
    run: Run, model: GPT, optimizer: torch.optim.Optimizer, ranks: Ranks, report: Callable[[str], None]
) -> Position:
    """Weights, optimizer state and place of the newest good checkpoint; what came after it is forgotten.

    Raises:
        DamagedError: there are checkpoints and none is good.
    """
    step = 0
    if ranks.is_first:
        newest = checkpoint.newest_good(run.checkpoints, report)
        step = newest.step if newest else 0
        run.forget_rows_after(step)
        checkpoint.set_aside(run.checkpoints, after=step)
    step = ranks.highest(step)  # the others go on from where the first one does

    if step == 0:
        report(f"{run.path}: no checkpoint yet; starting from the beginning")
        return Position()

    found = checkpoint.of_step(run.checkpoints, step)
    state = found.state()
    load_weights(model, found.model(), found.path / checkpoint.MODEL)
    load_state_by_name(optimizer, found.optimizer())
    if state["threads"] != torch.get_num_threads():
        report(
            f"resumed with {torch.get_num_threads()} threads, was saved with {state['threads']}: the results will "
            f"agree to rounding, not bit for bit (set OMP_NUM_THREADS={state['threads']} for that)"
        )
    report(f"resumed from step {found.step} ({found.path})")
    return Position(found.step, state["elapsed_s"], state.get("skipped_steps", 0), state.get("monitor"))
