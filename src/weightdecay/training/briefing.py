"""What a run says before its first step: to people, and as a document."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.text import Text

from weightdecay.declared.values import quantity
from weightdecay.errors import printable
from weightdecay.laws import (
    FITTED_TOKENS_PER_PARAMETER,
    MANY_EPOCHS,
    NEGLIGIBLE_TOTAL,
    POWER_LINES,
    optimal_timescale,
    optimal_weight_decay,
)
from weightdecay.planning.render import PlanTable
from weightdecay.training import precision
from weightdecay.training.needs import Needs
from weightdecay.training.pace import run_seconds
from weightdecay.training.progress import duration
from weightdecay.training.setup import Setup

# From here on nothing is left to learn but the text itself.
_BY_HEART = 100


def briefing(setup: Setup, needs: Needs, step_s: float | None = None) -> Group:
    """The plan, the corpus, the model, the decay in words, and what the run needs.

    Args:
        step_s: seconds of a step of the full batch, where one was timed; a real run says its time when its model is
            built, see `pace`.
    """
    lines = [line for of in (_plan_and_corpus, _model, _decay) for line in of(setup)]
    lines += needs.lines()
    if step_s is not None:
        steps, whole = setup.config.run.steps, duration(_run_seconds(setup, step_s))
        lines.append(
            f"time: about {whole} here, {step_s:.2g} s for each of {steps:,} steps (as timed now), evaluations included"
        )
    lines += _directory(setup)
    return Group(PlanTable(setup.plan), *(Text(printable(line)) for line in lines))


def document(setup: Setup, needs: Needs, step_s: float | None = None) -> dict[str, Any]:
    """The same for `--json`."""
    config, data, decay, plan = setup.config, setup.data, setup.decay, setup.plan.summary()
    return {
        "recipe": config.recipe,
        "config": config.values(),
        "parameters": setup.n_parameters,
        "corpus": {"name": data.name, "sha256": data.corpus_sha256, "tokens": data.n_tokens, **vars(data.summary)},
        "plan": {"decayed": plan.decayed_elements, "exempt": plan.exempt_elements},
        "decay": {
            "total": decay.total if decay else None,
            "shrink": decay.shrink if decay else None,
            "half_life_tokens": decay.half_life_tokens if decay and math.isfinite(decay.half_life_tokens) else None,
            "matters": decay.matters if decay else None,
            "weight_decay_that_matters": _weight_decay_that_matters(setup),
        },
        "needs": {
            "memory_bytes": {**vars(needs.memory), "total": needs.memory.total},
            "available_bytes": needs.available,
            "disk_bytes": needs.disk,
            "free_bytes": needs.free,
            "step_s": step_s,
            "run_s": None if step_s is None else _run_seconds(setup, step_s),
        },
    }


def _run_seconds(setup: Setup, step_s: float) -> float:
    return run_seconds(setup, step_s / setup.config.run.batch_tokens)


def _plan_and_corpus(setup: Setup) -> Iterator[str]:
    data, corpus = setup.data, setup.data.summary
    yield str(setup.plan.summary())
    yield ""
    yield (
        f"corpus: {data.name}, {corpus.documents:,} documents, {corpus.n_bytes:,} bytes, {data.n_tokens:,} tokens "
        f"({setup.config.data.tokenizer}), {100 * corpus.held_out_share:.1f} % of the bytes held out, hash "
        f"{data.corpus_sha256[:12]}"
    )
    yield from data.remarks()


def _model(setup: Setup) -> Iterator[str]:
    config, run, sizes = setup.config, setup.config.run, setup.sizes
    grown = f", grown from {sizes.tokens_at(0):,} over {len(sizes.ramp):,} steps" if sizes.ramp else ""
    yield (
        f"model: {setup.n_parameters:,} parameters, recipe {config.recipe}; {run.steps:,} steps of "
        f"{run.batch_tokens:,} tokens{grown}, {sizes.tokens_before(run.steps):,} in all, "
        f"{setup.loader.epoch_of(run.steps):.2f} epochs"
    )
    yield from precision.remarks(setup.asked_dtype, run.dtype)
    epochs = setup.loader.epoch_of(run.steps)
    if epochs > _BY_HEART:
        yield (
            f"remark: {epochs:,.0f} epochs of {len(setup.data.training.tokens):,} tokens teach the text by heart: give "
            "more text (--data) or fewer steps (--steps)"
        )
    elif epochs > MANY_EPOCHS:
        yield (
            f"remark: at {epochs:.0f} epochs the best λ is far above the usual, up to 30 times (Kim et al. 2025, "
            "arXiv:2509.14786 [its abstract was read])"
        )
    if config.schedule.grad_clip_changes:
        first, last = setup.grad_clip(0), setup.grad_clip(run.steps - 1)
        yield f"clipping: the gradient's norm at {first:g} in the first step, at {last:g} in the last"
    if config.scaling:
        yield f"scaled down: {config.scaling}"


def _decay(setup: Setup) -> Iterator[str]:
    optimizer, decay = setup.config.optimizer, setup.decay
    if optimizer.lr == 0:
        yield "remark: at a learning rate of 0 nothing is learnt: give --lr"
    if decay is None:
        yield (
            f"decay: λ = {optimizer.weight_decay:.3g} ({optimizer.rule}), through the gradient: what a step removes "
            "of a weight depends on the gradients, so this run has no decay per step"
        )
        return
    forgotten = "no update is ever forgotten"
    if math.isfinite(decay.half_life_tokens):
        forgotten = f"half of an update is forgotten in {quantity(decay.half_life_tokens)} tokens at the peak"
    yield (
        f"decay: λ = {optimizer.weight_decay:.3g} ({optimizer.rule}), Σ of the decay per step "
        f"{decay.total:.3g}: without gradients {100 * decay.shrink:.1f} % of a weight would be left; {forgotten}"
    )
    if optimizer.weight_decay_source:
        yield f"  (λ is {optimizer.weight_decay_source})"
    if decay.matters:
        yield "that is enough to matter in this run"
        return
    yield f"this decay does next to nothing in this run: Σ is below {NEGLIGIBLE_TOTAL:g}"
    yield from _a_law_would_say(setup)


def _a_law_would_say(setup: Setup) -> Iterator[str]:
    """Which λ would matter, by a law that need not hold here."""
    better = _weight_decay_that_matters(setup)
    if better is None:
        return
    low, high = FITTED_TOKENS_PER_PARAMETER
    found = setup.tokens_per_parameter
    edge = "" if low <= found <= high else f"; outside {low:g} to {high:g} the law is held at its edge"
    yield (
        f"  λ = {better:.3g} would matter: 1/(η·T·τ), τ = {optimal_timescale(found):.3g} of the run, by "
        f"{POWER_LINES.source} [V2: read in a summary], at {found:.3g} tokens per parameter without embeddings{edge}; "
        f"it is fitted for {POWER_LINES.holds}: weightdecay advise says what speaks for it and what against"
    )


def _directory(setup: Setup) -> Iterator[str]:
    yield f"run: {setup.config.run.out or 'a new directory under runs/'}"


def _weight_decay_that_matters(setup: Setup) -> float | None:
    """The law's λ, whether it holds here or not; None where it has none that a step could follow."""
    optimizer, run = setup.config.optimizer, setup.config.run
    if optimizer.name != "adamw" or optimizer.rule != "decoupled" or optimizer.lr == 0:
        return None
    found = optimal_weight_decay(lr=optimizer.lr, steps=run.steps, tokens_per_parameter=setup.tokens_per_parameter)
    return found if optimizer.lr * found <= 1 else None
