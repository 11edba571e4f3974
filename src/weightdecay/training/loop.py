"""A run in motion: the loop, and what is due after a step."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from weightdecay.data.loader import evaluation_batches
from weightdecay.errors import StoppedError
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.optim.clipping import total_norm
from weightdecay.optim.scheduling import apply_schedules
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name
from weightdecay.rules import group_decay_per_step
from weightdecay.runs import MetricsWriter, Run
from weightdecay.training import checkpoint
from weightdecay.training.assembly import Assembly
from weightdecay.training.distributed import Ranks
from weightdecay.training.optimizers import make_optimizer
from weightdecay.training.progress import Reporter, duration
from weightdecay.training.resuming import initial_weights, load_weights
from weightdecay.training.signals import StopRequest
from weightdecay.training.step import StepResult, evaluate, take_step

# Tokens in one forward pass of an evaluation.
_EVALUATION_TOKENS = 8_192


@dataclass
class TrainingLoop:
    """The parts of a run in motion; `done` counts the optimizer steps behind it."""

    assembly: Assembly
    run: Run
    ranks: Ranks
    reporter: Reporter
    model: GPT
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    done: int = 0
    elapsed_s: float = 0.0
    skipped_steps: int = 0

    @classmethod
    def build(cls, assembly: Assembly, run: Run, ranks: Ranks, reporter: Reporter, *, fresh: bool) -> TrainingLoop:
        """Model and optimizer of a configuration, by its plan, at step 0; `fresh` obeys `--init-from`."""
        config = assembly.config
        torch.manual_seed(config.run.seed)
        model = GPT(config.model)
        if config.run.init_from and fresh:
            tensors, where = initial_weights(config.run.init_from, assembly.data.tokenizer.sha256, reporter.note)
            load_weights(model, tensors, where)
        model.to(ranks.device)
        optimizer = make_optimizer(config.optimizer, assembly.plan.on(model))
        if config.run.compile:
            for block in model.blocks:
                block.compile()
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        objective: nn.Module = Objective(model)
        if ranks.world_size > 1:
            # Buffers need no exchange: every rank makes the same ones.
            objective = DistributedDataParallel(objective, device_ids=devices, broadcast_buffers=False)
        return cls(assembly, run, ranks, reporter, model, objective, optimizer)

    def run_to_end(self, stop: StopRequest) -> None:
        """Steps until the last one; rank 0 writes the metrics and the summary."""
        self.objective.train()
        with MetricsWriter(self.run) if self.ranks.is_first else nullcontext() as metrics:
            while self.done < self.assembly.config.run.steps:
                self._step(stop, metrics)
        if self.ranks.is_first:
            self._finish()

    def _step(self, stop: StopRequest, metrics: MetricsWriter | None) -> None:
        """An update, and what is due after it: a row, an evaluation, a checkpoint, leaving."""
        settings = self.assembly.config.run
        started = time.perf_counter()
        result = self._update()
        self.done += 1
        step_s = time.perf_counter() - started
        self.elapsed_s += step_s

        last = self.done == settings.steps
        if metrics and (last or self.done % settings.log_every == 0):
            row = self._step_row(result, step_s)
            metrics.write(row)
            self.reporter.step(row, settings.steps)
        val_loss = None
        if last or self.done % settings.eval_every == 0:
            row = self._evaluate()
            val_loss = row["val_loss"]
            if metrics:
                metrics.write(row)
                self.reporter.evaluation(row)
        signal_number = self.ranks.highest(stop.signal_number)
        if last or signal_number or self.done % settings.checkpoint_every == 0:
            if metrics:
                metrics.sync()
            self._save(val_loss)
        if signal_number and not last:
            raise StoppedError(
                f"stopped by signal {signal_number} after step {self.done} of {settings.steps}; saved, "
                f"go on with --out {self.run.path} --resume auto",
                signal_number,
            )

    def _update(self) -> StepResult:
        """The next step's rates, gradient and update."""
        settings = self.assembly.config.run
        self.set_rates(self.done)
        result = take_step(
            self.objective,
            self.optimizer,
            self._micro_batches(),
            sequences=self.assembly.sizes.sequences_at(self.done),
            ranks=self.ranks,
            dtype=self.dtype,
            grad_clip=self.assembly.grad_clip(self.done),
            on_nonfinite="skip" if settings.on_nonfinite == "skip" else "stop",
            seed=(settings.seed, self.done),
        )
        if result.skipped:
            self.skipped_steps += 1
            self.reporter.note(f"step {self.done + 1}: the gradient is not finite; the update is left out")
        else:
            self._balance_experts(result.load)
        return result

    def _balance_experts(self, load_LX: Tensor | None) -> None:
        """Move the routers' selection biases by the load of the step, as long as they move at all."""
        model = self.assembly.config.model
        moving = not model.router_bias_tokens or self.assembly.sizes.tokens_before(self.done) < model.router_bias_tokens
        if load_LX is not None and model.router_bias_speed and moving:
            self.model.shift_router_biases(load_LX, model.router_bias_speed)

    def set_rates(self, step: int) -> None:
        """A step's η and λ, of which each group takes its share, and Muon's momentum."""
        config, groups = self.assembly.config, self.optimizer.param_groups
        apply_schedules(self.optimizer, step, lr=self.assembly.lr, weight_decay=self.assembly.weight_decay)
        if config.schedule.weight_decay_moves != "all":  # λ of all but Muon's groups stays where it is
            others = [group for group in groups if group.get("algorithm") != "muon"]
            apply_schedules(self.optimizer, step, weight_decay=config.optimizer.peak_weight_decay, groups=others)
        for group in groups:
            if group.get("algorithm") == "muon":
                group["momentum"] = self.assembly.momentum(step)

    def resume(self) -> None:
        """Weights, optimizer state and place of the newest good checkpoint."""
        step = 0
        if self.ranks.is_first:
            newest = checkpoint.newest_good(self.run.checkpoints, self.reporter.note)
            step = newest.step if newest else 0
            self.run.forget_rows_after(step)
            checkpoint.set_aside(self.run.checkpoints, after=step)
        step = self.ranks.highest(step)
        if step == 0:
            self.reporter.note(f"{self.run.path}: no checkpoint yet; starting from the beginning")
            return
        found = checkpoint.of_step(self.run.checkpoints, step)
        state = found.state()
        load_weights(self.model, found.model(), found.path / checkpoint.MODEL)
        load_state_by_name(self.optimizer, found.optimizer())
        self.done, self.elapsed_s = found.step, state["elapsed_s"]
        self.skipped_steps = state.get("skipped_steps", 0)
        if state["threads"] != torch.get_num_threads():
            self.reporter.note(
                f"resumed with {torch.get_num_threads()} threads, was saved with {state['threads']}: the results will "
                f"agree to rounding, not bit for bit (set OMP_NUM_THREADS={state['threads']} for that)"
            )
        self.reporter.note(f"resumed from step {found.step} ({found.path})")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.assembly.config.run.dtype == "bfloat16" else torch.float32

    def _micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        rows = self.assembly.config.run.micro_batch_tokens // self.assembly.config.model.context
        x_BT, y_BT = self.assembly.loader.batch(self.done, self.ranks.rank, self.ranks.world_size)
        device = self.ranks.device
        if device.type == "cuda":  # a copy waits for nothing only from pinned memory
            x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()
        return [
            (x.to(device, non_blocking=True), y.to(device, non_blocking=True))
            for x, y in zip(torch.split(x_BT, rows), torch.split(y_BT, rows), strict=True)
        ]

    def _step_row(self, result: StepResult, step_s: float) -> dict[str, Any]:
        decaying = self._decaying_group()
        batch_tokens = self.assembly.sizes.tokens_at(self.done - 1)
        return {
            "kind": "train",
            "step": self.done,
            "tokens": self.assembly.sizes.tokens_before(self.done),
            "loss": result.loss,
            "lr": self.assembly.lr(self.done - 1),
            "weight_decay": decaying["weight_decay"],
            "decay_per_step": group_decay_per_step(decaying),
            "penalty": self._penalty(),
            "grad_norm": result.grad_norm,
            "grad_clip": self.assembly.grad_clip(self.done - 1),
            "skipped_steps": self.skipped_steps,
            "batch_tokens": batch_tokens,
            "tokens_per_s": batch_tokens / step_s,
            "elapsed_s": self.elapsed_s,
        }

    def _decaying_group(self) -> dict[str, Any]:
        """The group whose λ is the configuration's, or the largest share of it."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return max(groups, key=lambda group: (group["decay_multiplier"] == 1.0, group["decay_multiplier"]))

    def _penalty(self) -> float:
        """½·Σ λ‖w‖², what the decay would be as a term of the loss."""
        groups = self.optimizer.param_groups
        squares = [group["weight_decay"] * float(total_norm(group["params"])) ** 2 for group in groups]
        return 0.5 * math.fsum(squares)

    def _evaluate(self) -> dict[str, Any]:
        config, data = self.assembly.config, self.assembly.data
        tokens = data.held_out.tokens
        rows = max(1, _EVALUATION_TOKENS // config.model.context)
        started = time.perf_counter()
        nats, count = evaluate(
            self.model,
            evaluation_batches(
                tokens,
                config.model.context,
                rows,
                config.run.eval_tokens,
                end_of_text_id=data.tokenizer.end_of_text_id,
            ),
            ranks=self.ranks,
            dtype=self.dtype,
        )
        return {
            "kind": "eval",
            "step": self.done,
            "val_loss": nats / count,
            "val_perplexity": math.exp(min(nats / count, 700.0)),
            "val_bits_per_byte": nats / math.log(2) / data.held_out_bytes(count),
            "val_tokens": count,
            "eval_s": time.perf_counter() - started,
        }

    def _save(self, val_loss: float | None) -> None:
        """Rank 0 writes; the others wait."""
        if self.ranks.is_first:
            checkpoint.save(
                self.run.checkpoints,
                self.done,
                model=self.model.tensors(),
                optimizer=state_by_name(self.optimizer),
                state={
                    "tokens": self.assembly.sizes.tokens_before(self.done),
                    "elapsed_s": self.elapsed_s,
                    "skipped_steps": self.skipped_steps,
                    "threads": torch.get_num_threads(),
                    "world_size": self.ranks.world_size,
                    "optimizer": settings_by_name(self.optimizer),
                    "val_loss": val_loss,
                },
            )
            checkpoint.prune(self.run.checkpoints, self.assembly.config.run.keep)
        self.ranks.wait_for_all()

    def _finish(self) -> None:
        checkpoint.prune(self.run.checkpoints, self.assembly.config.run.keep)  # a kill may have come before it
        last = max(self.run.rows("train"), key=lambda row: row["step"])
        evaluation = max(self.run.rows("eval"), key=lambda row: row["step"])
        champion, decay = checkpoint.best(self.run.checkpoints), self.assembly.decay
        self.run.write_json(
            "summary.json",
            {
                "status": "finished",
                "steps": self.done,
                "tokens": last["tokens"],
                "elapsed_s": self.elapsed_s,
                "loss": last["loss"],
                "skipped_steps": self.skipped_steps,
                **{key: evaluation[key] for key in ("val_loss", "val_perplexity", "val_bits_per_byte", "val_tokens")},
                "decay_total": decay.total if decay else None,
                "best_checkpoint": champion.path.name if champion else None,
            },
        )
        self.reporter.note(f"finished: {self.done} steps in {duration(self.elapsed_s)}")
