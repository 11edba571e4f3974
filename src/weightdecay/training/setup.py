"""All that is decided before the first step, from a configuration and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from weightdecay.data.batches import BatchSizes
from weightdecay.data.corpus import Progress
from weightdecay.data.loader import Loader
from weightdecay.data.prepare import Prepared, prepared_for
from weightdecay.errors import ConfigError
from weightdecay.models.decoder import GPT
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.recipes.published.automatic import Automatic, automatic_weight_decay
from weightdecay.recipes.published.nearest import Planned
from weightdecay.recipes.settings import TrainConfig
from weightdecay.rules import as_rule
from weightdecay.schedules import Schedule
from weightdecay.timescale import DecayOverRun, decay_over_run
from weightdecay.training.optimizers import decay_plan, rule_faults
from weightdecay.training.precision import with_precision
from weightdecay.training.preflight import missing_names
from weightdecay.training.pretrained import holds_a_model, tokenizer_advice, with_pretrained_shape
from weightdecay.training.timing import (
    batch_sizes,
    grad_clip_schedule,
    lr_schedule,
    momentum_schedule,
    weight_decay_schedule,
)

# Tokens in one forward pass when the configuration leaves it open: fits small models in a laptop's memory.
_MICRO_BATCH_TOKENS = 16_384
# A run at most this long logs every step.
_LOGGED_STEPS = 1_000


@dataclass(frozen=True)
class Setup:
    """A run that is ready to start.

    Attributes:
        config: resolved: steps, λ, intervals and vocabulary are concrete numbers.
        asked_dtype: of the matrix products; `auto` where nobody asked.
        blueprint: the model without weights.
        lr, weight_decay, momentum, grad_clip: η, λ, Muon's momentum and the largest norm of the gradient at every step,
            counted from 0.
        sizes: tokens of every step.
        decay: what the decay per step amounts to.
        tokens_per_parameter: of the whole run, without embeddings.
    """

    config: TrainConfig
    asked_dtype: str
    data: Prepared
    loader: Loader
    blueprint: GPT
    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    grad_clip: Schedule
    sizes: BatchSizes
    decay: DecayOverRun | None  # none under `l2`, whose decay the gradients decide
    tokens_per_parameter: float
    n_parameters: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products; the weights are float32."""
        return torch.bfloat16 if self.config.run.dtype == "bfloat16" else torch.float32

    @property
    def micro_batch_rows(self) -> int:
        """Sequences that go through the model at once."""
        return self.config.run.micro_batch_tokens // self.config.model.context

    def balances_experts_at(self, step: int) -> bool:
        """Whether the routers' selection biases still move with the load of this step."""
        training = self.config.model.training
        moving = not training.router_bias_tokens or self.sizes.tokens_before(step) < training.router_bias_tokens
        return bool(training.router_bias_speed) and moving

    @cached_property
    def plan(self) -> DecayPlan:
        """Which tensors decay: made of the blueprint, once for the whole run, when it is first asked for.

        Raises:
            ConfigError: a setting by pattern that cannot be read, or whose pattern matches no tensor.
        """
        return decay_plan(self.blueprint, self.config.optimizer)


def set_up(config: TrainConfig, progress: Progress | None = None, bfloat16_costs: float | None = None) -> Setup:
    """Open the data and decide everything else.

    Args:
        progress: of preparing the data, see `data.prepare.prepare`.
        bfloat16_costs: where ranks have agreed on it, see `training.precision`.

    Raises:
        ConfigError: the data, the shapes and the lengths do not fit together.
    """
    if faults := missing_names(config.values()) or rule_faults(config.optimizer):
        raise ConfigError(faults)
    asked_dtype = config.run.dtype
    config = with_precision(config, bfloat16_costs)
    data = prepared_for(
        config.data.sources,
        config.data.tokenizer,
        text_key=config.data.text_key,
        encoding_errors=config.data.encoding_errors,
        missing_text=config.data.missing_text,
        separator=config.data.separator,
        progress=progress,
    )
    if [Path(source) for source in config.data.sources] == [data.path]:  # prepared, with the tokenizer in it
        config = config.resolved(data__tokenizer=str(data.path / "tokenizer.json"))
    config = _resolve_shapes(with_pretrained_shape(config), data)
    model = GPT.blueprint(config.model)
    embeddings = sum(table.weight.numel() for table in model.tables())
    n_parameters = model.n_parameters()
    sizes = batch_sizes(config.run, config.model.context)
    tokens = sizes.tokens_before(config.run.steps)
    tokens_per_parameter = tokens / (n_parameters - embeddings)
    if config.optimizer.weight_decay == "auto":
        chosen = _automatic_weight_decay(config, n_parameters, tokens, tokens_per_parameter)
        config = config.resolved(
            optimizer__weight_decay=chosen.weight_decay, optimizer__weight_decay_source=chosen.source
        )
    lr, weight_decay = lr_schedule(config, sizes), weight_decay_schedule(config)
    return Setup(
        config=config,
        asked_dtype=asked_dtype,
        data=data,
        loader=Loader(data.training.tokens, config.model.context, sizes.full, config.run.seed, sizes.ramp),
        blueprint=model,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum_schedule(config),
        grad_clip=grad_clip_schedule(config, sizes),
        sizes=sizes,
        decay=_decay_over_run(config, lr, weight_decay),
        tokens_per_parameter=tokens_per_parameter,
        n_parameters=n_parameters,
    )


def _resolve_shapes(config: TrainConfig, data: Prepared) -> TrainConfig:
    """Vocabulary from the tokenizer; whole sequences in a step and in a pass; steps, warm-up and intervals in steps."""
    run, context = config.run, config.model.context
    vocab_size = data.tokenizer.vocab_size
    if holds_a_model(config):
        if vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"{run.init_from}: has {config.model.vocab_size} tokens, the data's tokenizer {vocab_size}: "
                f"{tokenizer_advice(config, data, Path(run.init_from) / 'tokenizer.json')}"
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
    if vocab_size != config.model.vocab_size:
        config = config.resolved(model__vocab_size=vocab_size)
    return config.resolved(
        schedule__warmup_steps=warmup,
        schedule__warmup_tokens=0.0,
        schedule__warmup_fraction=0.0,
        run__batch_tokens=sizes.full * context,
        run__micro_batch_tokens=micro * context,
        run__steps=steps,
        run__tokens=0.0,
        run__log_every=run.log_every or math.ceil(steps / _LOGGED_STEPS),
        run__eval_every=run.eval_every or max(100, math.ceil(steps / 5)),
        run__checkpoint_every=run.checkpoint_every or max(1, math.ceil(steps / 5)),
    )


def _automatic_weight_decay(
    config: TrainConfig, parameters: int, tokens: int, tokens_per_parameter: float
) -> Automatic:
    optimizer = config.optimizer
    if optimizer.name != "adamw" or optimizer.rule != "decoupled":
        raise ConfigError(
            f"--weight-decay auto gives λ for adamw under the rule 'decoupled', not for {optimizer.name} under "
            f"'{optimizer.rule}': give a number"
        )
    if optimizer.lr == 0:
        raise ConfigError("--weight-decay auto: at a learning rate of 0 no λ does anything: give --lr")
    found = automatic_weight_decay(
        planned=Planned(parameters, tokens, optimizer.lr),
        steps=config.run.steps,
        tokens_per_parameter=tokens_per_parameter,
        parametrization=optimizer.parametrization,
        schedule=_schedule_name(config),
    )
    if optimizer.lr * found.weight_decay > 1:
        raise ConfigError(
            f"--weight-decay auto: a step would remove more than the whole weight (λ would be {found.weight_decay:.3g} "
            f"at lr {optimizer.lr:g}, over {config.run.steps} steps): give a number"
        )
    return found


def _schedule_name(config: TrainConfig) -> str:
    """The learning rate's way as the laws name it."""
    timing = config.schedule
    to_zero = not timing.decay_tokens and timing.final_fraction == 0
    return "linear-to-zero" if timing.shape == "linear" and to_zero else timing.shape


def _decay_over_run(config: TrainConfig, lr: Schedule, weight_decay: Schedule) -> DecayOverRun | None:
    optimizer, rule = config.optimizer, as_rule(config.optimizer.rule)
    if rule.coupled:
        return None

    def decay_at(step: int) -> float:
        return rule.decay_per_step(lr(step), weight_decay(step), optimizer.lr) if optimizer.weight_decay else 0.0

    return decay_over_run(decay_at, config.run.steps, config.run.batch_tokens)
