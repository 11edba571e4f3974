"""A run in motion: the step, and what is due after it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightdecay import checkpoint
from weightdecay.errors import StoppedError
from weightdecay.evaluation.curve import write_loss_curve
from weightdecay.optim.scheduling import apply_schedules
from weightdecay.runs import MetricsWriter, Run, Tracker
from weightdecay.training import checkpointing
from weightdecay.training.building import Built
from weightdecay.training.checkpointing import Position
from weightdecay.training.distributed import Ranks
from weightdecay.training.metrics import evaluation_row, step_row, summary
from weightdecay.training.monitored import Watched
from weightdecay.training.pace import Pace
from weightdecay.training.progress import Reporter, duration
from weightdecay.training.setup import Setup
from weightdecay.training.signals import StopRequest
from weightdecay.training.step import StepResult, take_step


@dataclass
class TrainingLoop:
    """What a run needs to move, and how far it has come."""

    setup: Setup
    built: Built
    run: Run
    ranks: Ranks
    reporter: Reporter
    position: Position = field(default_factory=Position)
    tracker: Tracker | None = None
    watched: Watched | None = None
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(self.setup, self.position.done)

    def run_to_end(self, stop: StopRequest) -> None:
        """Steps until the last one; rank 0 writes the metrics and the summary."""
        settings = self.setup.config.run
        self.built.objective.train()
        if line := self.pace.before_first_step(self.built, self.ranks):
            self.reporter.note(line)
        with self._metrics() if self.ranks.is_first else nullcontext() as metrics, self._watching(metrics):
            while self.position.done < settings.steps:
                self._step(stop, metrics)

        if self.ranks.is_first:
            checkpoint.prune(self.run.checkpoints, settings.keep)  # a kill may have come before it
            self.run.write_json("summary.json", summary(self.setup, self.run, self.position))
            write_loss_curve(self.run)
            self.reporter.note(f"finished: {self.position.done} steps in {duration(self.position.elapsed_s)}")

    def _metrics(self) -> MetricsWriter:
        return MetricsWriter(self.run, self.tracker, self.position.done)

    def _watching(self, metrics: MetricsWriter | None) -> AbstractContextManager[object]:
        """The monitor; on one rank, for all have the same weights."""
        if metrics is None or not self.setup.config.run.monitor:
            return nullcontext()
        self.watched = Watched(self.setup, self.built, self.position, metrics, self.reporter.note)
        return self.watched

    def _step(self, stop: StopRequest, metrics: MetricsWriter | None) -> None:
        """An update, and what is due after it: a row, an evaluation, a checkpoint, leaving."""
        settings, position = self.setup.config.run, self.position
        started = time.perf_counter()
        result = self._update()
        step_s = time.perf_counter() - started
        position.done += 1
        position.elapsed_s += step_s
        last = position.done == settings.steps
        if line := self.pace.after_step(step_s):
            self.reporter.note(line)

        if metrics and (last or position.done % settings.log_every == 0):
            row = step_row(self.setup, self.built.optimizer, position, result, step_s)
            metrics.write(row)
            self.reporter.step(row, settings.steps)

        val_loss = None
        if last or position.done % settings.eval_every == 0:
            row = evaluation_row(self.setup, self.built.model, self.ranks, position.done)
            val_loss = row["val_loss"]
            if metrics:
                metrics.write(row)
                self.reporter.evaluation(row)

        signal_number = self.ranks.highest(stop.signal_number)
        if last or signal_number or position.done % settings.checkpoint_every == 0:
            if metrics:
                metrics.sync()  # no checkpoint outlives the rows of its steps
            self._save(val_loss)

        if signal_number and not last:
            if metrics:
                write_loss_curve(self.run)
            raise StoppedError(
                f"stopped by signal {signal_number} after step {position.done} of {settings.steps}; saved, "
                f"go on with --out {self.run.path} --resume auto",
                signal_number,
            )

    def _update(self) -> StepResult:
        """The next step's rates, gradient and update."""
        settings, step = self.setup.config.run, self.position.done
        self.set_rates(step)
        if self.watched:
            self.watched.expect(step)
        result = take_step(
            self.built.objective,
            self.built.optimizer,
            self._micro_batches(step),
            sequences=self.setup.sizes.sequences_at(step),
            ranks=self.ranks,
            dtype=self.setup.dtype,
            grad_clip=self.setup.grad_clip(step),
            on_nonfinite="skip" if settings.on_nonfinite == "skip" else "stop",
            seed=(settings.seed, step),
        )

        if result.skipped:
            self.position.skipped_steps += 1
            self.reporter.note(f"step {step + 1}: the gradient is not finite; the update is left out")
        elif result.load is not None and self.setup.balances_experts_at(step):
            self.built.model.shift_router_biases(result.load, self.setup.config.model.training.router_bias_speed)
        return result

    def set_rates(self, step: int) -> None:
        """A step's η and λ, of which each group takes its share, and Muon's momentum."""
        setup, optimizer = self.setup, self.built.optimizer
        apply_schedules(optimizer, step, lr=setup.lr, weight_decay=setup.weight_decay)

        muons = [group for group in optimizer.param_groups if group.get("algorithm") == "muon"]
        if setup.config.schedule.weight_decay_moves != "all":  # λ of all but Muon's groups stays where it is
            others = [group for group in optimizer.param_groups if group.get("algorithm") != "muon"]
            peak = setup.config.optimizer.peak_weight_decay
            apply_schedules(optimizer, step, weight_decay=peak, groups=others)
        for group in muons:
            group["momentum"] = setup.momentum(step)

    def _micro_batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        rows = self.setup.micro_batch_rows
        x_BT, y_BT = self.setup.loader.batch(step, self.ranks.rank, self.ranks.world_size)
        device = self.ranks.device
        if device.type == "cuda":  # a copy waits for nothing only from pinned memory
            x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()
        return [
            (x.to(device, non_blocking=True), y.to(device, non_blocking=True))
            for x, y in zip(torch.split(x_BT, rows), torch.split(y_BT, rows), strict=True)
        ]

    def _save(self, val_loss: float | None) -> None:
        if self.watched:
            self.position.monitor = self.watched.monitor.state_dict()
        checkpointing.save(
            self.run,
            self.position,
            self.built.model,
            self.built.optimizer,
            self.ranks,
            tokens=self.setup.sizes.tokens_before(self.position.done),
            val_loss=val_loss,
            keep=self.setup.config.run.keep,
        )
