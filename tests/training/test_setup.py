from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from weightdecay.errors import ConfigError
from weightdecay.recipes.files import settings_toml
from weightdecay.recipes.published.nearest import Planned, neighbours
from weightdecay.recipes.schema import recipe
from weightdecay.training.briefing import briefing
from weightdecay.training.needs import needs_of
from weightdecay.training.setup import Setup, set_up


def assembled(text: Path, **values: Any) -> Setup:
    settings = {"data.sources": (str(text),), "data.tokenizer": "byte", "model.context": 16, "run.steps": 100}
    settings |= {key.replace("__", "."): value for key, value in values.items()}
    return set_up(recipe("gpt3:nano").config(settings))


def test_a_batch_is_rounded_to_whole_sequences_and_its_passes_are_nearly_equal(small_text: Path) -> None:
    config = assembled(small_text, run__batch_tokens=200, run__micro_batch_tokens=70).config
    assert config.run.batch_tokens == 12 * 16  # 12.5 sequences, to the even number
    assert config.run.micro_batch_tokens == 4 * 16  # at most 4 within 70 tokens
    config = assembled(small_text, run__batch_tokens=13 * 16, run__micro_batch_tokens=100, run__nproc=2).config
    assert config.run.micro_batch_tokens == 4 * 16  # 7 sequences of a process in two passes, not 6 and 1


@pytest.mark.parametrize(
    ("given", "steps", "warmup"),
    [
        ({"run.tokens": 64_000, "schedule.warmup_tokens": 6_400}, 1_000, 100),
        ({"run.tokens": 64_001, "schedule.warmup_steps": 7}, 1_001, 7),
        ({"run.steps": 200, "schedule.warmup_fraction": 0.1}, 200, 20),
        ({"run.steps": 200, "schedule.warmup_steps": 0}, 200, 0),
    ],
)
def test_lengths_in_tokens_and_fractions_become_steps(
    small_text: Path, given: dict[str, Any], steps: int, warmup: int
) -> None:
    values = {"data.sources": (str(small_text),), "data.tokenizer": "byte", "model.context": 16, "run.batch_tokens": 64}
    made = set_up(recipe("gpt3:nano").config(values | given))
    assert (made.config.run.steps, made.config.schedule.warmup_steps) == (steps, warmup)
    assert made.lr(max(warmup - 1, 0)) == pytest.approx(6e-3, rel=1e-3 if not warmup else 1e-12)
    assert made.lr(steps - 1) < 6e-3 / 50


def test_a_resolved_configuration_resolves_to_itself(small_text: Path) -> None:
    once = assembled(small_text, run__batch_tokens=200, optimizer__weight_decay="auto")
    assert set_up(once.config).config == once.config


def test_the_sum_of_the_decay_is_the_one_of_the_schedule_and_the_rule(small_text: Path) -> None:
    decoupled, independent, fixed = (
        assembled(small_text, optimizer__rule=rule, optimizer__weight_decay=0.01)
        for rule in ("decoupled", "independent", "fixed")
    )
    rates = [decoupled.lr(step) for step in range(100)]
    assert decoupled.decay is not None
    assert independent.decay is not None
    assert fixed.decay is not None
    assert decoupled.decay.total == pytest.approx(0.01 * sum(rates))
    assert independent.decay.total == pytest.approx(0.01 * sum(rates) / 6e-3)
    assert fixed.decay.total == pytest.approx(1.0)
    assert fixed.decay.matters


def test_the_decay_is_told_in_words_with_the_right_numbers(small_text: Path) -> None:
    """a = 6e-3 · 0.5: Σ = 100 a, (1 − a)^100, ln 2 / a steps of 64 tokens; TPP and λ = 1/(η·T·τ) by hand."""
    flat = {"schedule__shape": "constant", "schedule__warmup_steps": 0, "run__batch_tokens": 64}
    made = assembled(small_text, optimizer__weight_decay=0.5, **flat)
    assert "λ = 0.5 (decoupled), Σ of the decay per step 0.3: without gradients 74.0 %" in told(made)
    assert "half of an update is forgotten in 14.8k tokens at the peak" in told(made)
    names = [(tensor.name, math.prod(tensor.shape)) for tensor in made.plan]
    others = sum(size for name, size in names if not name.startswith(("embedding", "positions")))
    assert made.tokens_per_parameter == pytest.approx(100 * 64 / others)
    better = 1 / (6e-3 * 100 * 1.084 * 20**-0.527)
    assert "this decay does next to nothing in this run: Σ is below 0.5\n" in told(made)
    assert f"λ = {better:.3g} would matter: 1/(η·T·τ)" in told(made)
    assert f"at {made.tokens_per_parameter:.3g} tokens per parameter without embeddings; outside 20 to 1280" in told(
        made
    )
    none = assembled(small_text, optimizer__weight_decay=0.0, **flat)
    assert "without gradients 100.0 % of a weight would be left; no update is ever forgotten" in told(none)


def test_auto_takes_the_law_where_it_holds_and_says_so(small_text: Path) -> None:
    width = {"model__n_layers": 1, "model__d_model": 14, "model__attention__n_heads": 1, "run__batch_tokens": 64}
    inside = {**width, "optimizer__parametrization": "mup", "optimizer__weight_decay": "auto"}
    steps = round(30 / assembled(small_text, **width, run__steps=1000).tokens_per_parameter * 1000)
    made = assembled(small_text, **inside, run__steps=steps)
    λ, source = made.config.optimizer.weight_decay, made.config.optimizer.weight_decay_source
    assert λ == pytest.approx(1 / (6e-3 * steps * 1.084 * 30**-0.527), rel=1e-3)
    assert "arXiv:2505.13738 [V2], at 30 tokens per parameter" in source
    assert f"(λ is {source})" in told(made)
    assert f'weight_decay_source = "{source}"' in settings_toml(made.config)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimizer__parametrization": "standard"}, "the parametrization is standard"),
        ({"schedule__shape": "cosine"}, "the schedule is cosine"),
        ({"schedule__final_fraction": 0.1}, "the schedule is linear"),
        ({"run__steps": 100}, "on 20 to 1,280 tokens per parameter"),
    ],
)
def test_auto_takes_what_published_runs_used_where_the_law_does_not_hold(
    small_text: Path, change: dict[str, Any], reason: str
) -> None:
    width = {"model__n_layers": 1, "model__d_model": 14, "model__attention__n_heads": 1, "run__batch_tokens": 64}
    inside = {**width, "optimizer__parametrization": "mup", "optimizer__weight_decay": "auto", "run__steps": 1500}
    made = assembled(small_text, **inside | change)
    n = made.n_parameters
    near = neighbours(Planned(n, made.sizes.tokens_before(made.config.run.steps), 6e-3))
    assert made.config.optimizer.weight_decay == near.median
    source = made.config.optimizer.weight_decay_source
    assert source.startswith("auto: median of the 7 nearest published runs (")
    assert near.runs[0].name in source
    assert reason in source


def told(setup: Setup) -> str:
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(briefing(setup, needs_of(setup)))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_gpt3s_cosine_ends_before_its_run_does(small_text: Path) -> None:
    values = {"data.sources": (str(small_text),), "data.tokenizer": "byte", "model.context": 16}
    made = set_up(recipe("gpt3:125m").config(values | {"run.batch_tokens": 500_000}))
    steps = made.config.run.steps
    assert steps == pytest.approx(600_000, rel=1e-4)
    assert made.config.schedule.warmup_steps == 750
    assert made.lr(round(260e9 / 500_000)) == pytest.approx(6e-5, rel=1e-3)
    assert made.lr(steps - 1) == pytest.approx(6e-5, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule__warmup_steps": 100}, "leaves nothing of 100 steps"),
        ({"run__nproc": 129}, "128 sequences a step cannot be shared by 129 processes"),
        ({"run__nproc": 5, "run__batch_ramp": ("0:64", "9e3:2048")}, "4 sequences a step cannot be shared by 5"),
        (
            {"optimizer__rule": "independent", "optimizer__weight_decay": "auto"},
            "auto gives λ for adamw under the rule 'decoupled'",
        ),
        ({"optimizer__rule": "decopled"}, "did you mean 'decoupled'"),
        ({"optimizer__policy": "defalt"}, "did you mean 'default'"),
        ({"optimizer__lr": 20.0, "optimizer__weight_decay": "auto"}, "auto: a step would remove"),
        ({"optimizer__lr": 0.0, "optimizer__weight_decay": "auto"}, "at a learning rate of 0 no λ does anything"),
        (
            {"optimizer__rule": "fixed", "optimizer__weight_decay": 2.0},
            "a step would remove 2 of a weight, more than all",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(small_text: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assembled(small_text, **values)
