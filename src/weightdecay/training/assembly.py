"""All that is decided before the first step, from a configuration and its data; and how that reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from weightdecay.data.batches import BatchSizes
from weightdecay.data.loader import Loader
from weightdecay.data.prepare import Prepared, Progress, prepared_for
from weightdecay.errors import ConfigError, printable
from weightdecay.models.decoder import GPT
from weightdecay.optim import rules
from weightdecay.optim.schedules import Schedule
from weightdecay.optim.timescale import (
    NEGLIGIBLE_TOTAL,
    POWER_LAW_RANGE,
    DecayOverRun,
    decay_over_run,
    optimal_timescale,
    optimal_weight_decay,
)
from weightdecay.planning.plan import DecayPlan
from weightdecay.planning.render import table
from weightdecay.recipes.settings import TrainConfig
from weightdecay.training.optimizers import decay_plan
from weightdecay.training.preflight import missing_names
from weightdecay.training.pretrained import holds_a_model, with_pretrained_shape
from weightdecay.training.timing import batch_sizes, grad_clip_schedule, lr_schedule, weight_decay_schedule

# Tokens in one forward pass when the configuration leaves it open: fits small models in a laptop's memory.
_MICRO_BATCH_TOKENS = 16_384
# A run at most this long logs every step.
_LOGGED_STEPS = 1_000


@dataclass(frozen=True)
class Assembly:
    """A run that is ready to start.

    Attributes:
        config: resolved: steps, λ, intervals and vocabulary are concrete numbers.
        plan: made on a model without weights, equal to the trained model's.
        lr, weight_decay, grad_clip: η, λ and the largest norm of the gradient at every step, counted from 0.
        sizes: tokens of every step.
    """

    config: TrainConfig
    data: Prepared
    loader: Loader
    plan: DecayPlan
    lr: Schedule
    weight_decay: Schedule
    grad_clip: Schedule
    sizes: BatchSizes
    decay: DecayOverRun
    tokens_per_parameter: float
    n_parameters: int
    automatic: bool

    def document(self) -> dict[str, Any]:
        """The same facts for `--json`."""
        summary = self.plan.summary()
        return {
            "recipe": self.config.recipe,
            "config": self.config.values(),
            "parameters": self.n_parameters,
            "corpus": {
                "name": self.data.name,
                "sha256": self.data.corpus_sha256,
                "tokens": self.data.n_tokens,
                **vars(self.data.summary),
            },
            "plan": {"decayed": summary.decayed_elements, "exempt": summary.exempt_elements},
            "decay": {
                "total": self.decay.total,
                "shrink": self.decay.shrink,
                "half_life_tokens": None if math.isinf(self.decay.half_life_tokens) else self.decay.half_life_tokens,
                "matters": self.decay.matters,
                "weight_decay_that_matters": self._weight_decay_that_matters(),
            },
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield table(self.plan)
        yield from (Text(printable(line)) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        config, run = self.config, self.config.run
        yield str(self.plan.summary())
        yield ""
        corpus = self.data.summary
        yield (
            f"corpus: {self.data.name}, {corpus.documents:,} documents, {corpus.n_bytes:,} bytes, "
            f"{self.data.n_tokens:,} tokens ({config.data.tokenizer}), {100 * corpus.held_out_share:.1f} % of the "
            f"bytes held out, hash {self.data.corpus_sha256[:12]}"
        )
        grown = (
            f", grown from {self.sizes.tokens_at(0):,} over {len(self.sizes.ramp):,} steps" if self.sizes.ramp else ""
        )
        yield (
            f"model: {self.n_parameters:,} parameters, recipe {config.recipe}; {run.steps:,} steps of "
            f"{run.batch_tokens:,} tokens{grown}, {self.sizes.tokens_before(run.steps):,} in all, "
            f"{self.loader.epoch_of(run.steps):.2f} epochs"
        )
        if config.schedule.grad_clip_changes:
            first, last = self.grad_clip(0), self.grad_clip(run.steps - 1)
            yield f"clipping: the gradient's norm at {first:g} in the first step, at {last:g} in the last"
        if config.scaling:
            yield f"scaled down: {config.scaling}"
        yield from self._decay_in_words()
        yield f"run: {run.out or 'a new directory under runs/'}"

    def _decay_in_words(self) -> Iterator[str]:
        optimizer, decay = self.config.optimizer, self.decay
        chosen = ", chosen for this run's length" if self.automatic else ""
        yield (
            f"decay: λ = {optimizer.weight_decay:.3g} ({optimizer.rule}{chosen}), Σ of the decay per step "
            f"{decay.total:.3g}: without gradients {100 * decay.shrink:.1f} % of a weight would be left; "
            f"half of an update is forgotten in {_quantity(decay.half_life_tokens)} tokens at the peak"
        )
        if decay.matters:
            yield "that is enough to matter in this run"
        else:
            better = self._weight_decay_that_matters()
            hint = f"; λ = {better:.2g} would matter (--weight-decay auto takes it)" if better else ""
            yield f"this decay does next to nothing in this run: Σ is below {NEGLIGIBLE_TOTAL:g}{hint}"
        if self.automatic or not decay.matters:
            low, high = POWER_LAW_RANGE
            found = self.tokens_per_parameter
            edge = "" if low <= found <= high else f"; outside {low:g} to {high:g} the law is held at its edge"
            yield (
                f"  (λ = 1/(η·T·τ), τ = {optimal_timescale(found):.3g} of the run, from Bergsma et al. 2025, "
                f"arXiv:2505.13738 [V2: read in a summary], at {found:.3g} tokens per parameter "
                f"without embeddings{edge})"
            )

    def _weight_decay_that_matters(self) -> float | None:
        optimizer = self.config.optimizer
        if optimizer.name != "adamw" or optimizer.rule != "decoupled" or optimizer.lr == 0:
            return None
        return optimal_weight_decay(
            lr=optimizer.lr, steps=self.config.run.steps, tokens_per_parameter=self.tokens_per_parameter
        )


def assemble(config: TrainConfig, progress: Progress | None = None) -> Assembly:
    """Open the data and decide everything else.

    Args:
        progress: of preparing the data, see `data.prepare.prepare`.

    Raises:
        ConfigError: the data, the shapes and the lengths do not fit together.
    """
    if faults := missing_names(config.values()):
        raise ConfigError(faults)
    data = prepared_for(
        config.data.sources,
        config.data.tokenizer,
        text_key=config.data.text_key,
        encoding_errors="replace" if config.data.encoding_errors == "replace" else "strict",
        progress=progress,
    )
    config = _resolve_shapes(with_pretrained_shape(config), data)
    with torch.device("meta"):
        model = GPT(config.model)
    embeddings = sum(p.numel() for part in (model.embedding, model.positions) if part for p in part.parameters())
    n_parameters = model.n_parameters()
    sizes = batch_sizes(config.run, config.model.context)
    tokens_per_parameter = sizes.tokens_before(config.run.steps) / (n_parameters - embeddings)
    automatic = math.isnan(config.optimizer.weight_decay)
    if automatic:
        config = config.replace(optimizer__weight_decay=_automatic_weight_decay(config, tokens_per_parameter))
    lr, weight_decay = lr_schedule(config, sizes), weight_decay_schedule(config)
    return Assembly(
        config=config,
        data=data,
        loader=Loader(data.training.tokens, config.model.context, sizes.full, config.run.seed, sizes.ramp),
        plan=decay_plan(model, config.optimizer),
        lr=lr,
        weight_decay=weight_decay,
        grad_clip=grad_clip_schedule(config, sizes),
        sizes=sizes,
        decay=decay_over_run(_decay_per_step(config, lr, weight_decay), config.run.batch_tokens),
        tokens_per_parameter=tokens_per_parameter,
        n_parameters=n_parameters,
        automatic=automatic,
    )


def _resolve_shapes(config: TrainConfig, data: Prepared) -> TrainConfig:
    """Vocabulary from the tokenizer; whole sequences in a step and in a pass; steps, warm-up and intervals in steps."""
    run, context = config.run, config.model.context
    vocab_size = data.tokenizer.vocab_size
    if holds_a_model(config):
        if vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"{run.init_from}: has {config.model.vocab_size} tokens, the data's tokenizer {vocab_size}: give "
                f"--tokenizer {run.init_from}/tokenizer.json"
            )
        vocab_size = config.model.vocab_size  # often padded beyond the tokenizer's
    sizes = batch_sizes(run, context)
    faults = []
    if (fewest := min((sizes.full, *sizes.ramp))) < run.nproc:
        faults.append(f"{fewest} sequences a step cannot be shared by {run.nproc} processes: change --batch-tokens")
    share = math.ceil(sizes.full / run.nproc)
    limit = max(1, (run.micro_batch_tokens or _MICRO_BATCH_TOKENS) // context)
    micro = math.ceil(share / math.ceil(share / limit))  # passes as even as they can be
    steps = run.steps or max(1, sizes.steps_for(run.tokens))
    timing = config.schedule
    warmup = (
        timing.warmup_steps
        or (sizes.steps_for(timing.warmup_tokens) if timing.warmup_tokens else 0)
        or round(timing.warmup_fraction * steps)
    )
    if warmup >= steps:
        faults.append(
            f"a warm-up of {warmup} steps leaves nothing of {steps} steps: lengthen the run or shorten the warm-up "
            "(--set schedule.warmup_fraction=0.05)"
        )
    if faults:
        raise ConfigError(faults)
    return config.replace(
        model__vocab_size=vocab_size,
        schedule__warmup_steps=warmup,
        schedule__warmup_tokens=0,
        schedule__warmup_fraction=0,
        run__batch_tokens=sizes.full * context,
        run__micro_batch_tokens=micro * context,
        run__steps=steps,
        run__tokens=0,
        run__log_every=run.log_every or math.ceil(steps / _LOGGED_STEPS),
        run__eval_every=run.eval_every or max(100, math.ceil(steps / 5)),
        run__checkpoint_every=run.checkpoint_every or max(1, math.ceil(steps / 5)),
    )


def _automatic_weight_decay(config: TrainConfig, tokens_per_parameter: float) -> float:
    optimizer = config.optimizer
    if optimizer.name != "adamw" or optimizer.rule != "decoupled":
        raise ConfigError(
            f"--weight-decay auto gives λ for adamw under the rule 'decoupled', not for {optimizer.name} under "
            f"'{optimizer.rule}': give a number"
        )
    return optimal_weight_decay(lr=optimizer.lr, steps=config.run.steps, tokens_per_parameter=tokens_per_parameter)


def _decay_per_step(config: TrainConfig, lr: Schedule, weight_decay: Schedule) -> list[float]:
    optimizer = config.optimizer
    rule = rules.rule(optimizer.rule)
    return [
        rule.decay_per_step(lr(step), weight_decay(step), optimizer.lr) if optimizer.weight_decay else 0.0
        for step in range(config.run.steps)
    ]


def _quantity(number: float) -> str:
    """12,300,000 as `12.3M`; infinity as `endless`."""
    if math.isinf(number):
        return "endless"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
