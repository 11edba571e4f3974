from __future__ import annotations

from pathlib import Path

import pytest
import torch

from weightdecay.errors import ConfigError, RecipeError
from weightdecay.models.decoder import GPT
from weightdecay.recipes.schema import FOLDER, STATUSES, Recipe, load, recipe, systems
from weightdecay.recipes.settings import TrainConfig, known_keys

ALL = [one for system in systems() for one in load(FOLDER / f"{system}.toml").values()]
every_recipe = pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)

VALID = """
title = "Tiny"
[sources]
paper = "A paper"
[common.model]
vocab_size = { value = 10, status = "confirmed", source = "paper" }
context = { value = 8, status = "confirmed", source = "paper" }
d_model = { value = 8, status = "confirmed", source = "paper" }
n_heads = { value = 2, status = "confirmed", source = "paper" }
[common.optimizer]
name = { value = "adamw", status = "confirmed", source = "paper" }
lr = { value = 1e-3, status = "confirmed", source = "paper" }
weight_decay = { value = 0.1, status = "confirmed", source = "paper" }
beta1 = { value = 0.9, status = "confirmed", source = "paper" }
beta2 = { value = 0.95, status = "confirmed", source = "paper" }
eps = { value = 1e-8, status = "confirmed", source = "paper" }
[common.schedule]
shape = { value = "cosine", status = "confirmed", source = "paper" }
[common.run]
steps = { value = 10, status = "confirmed", source = "paper" }
batch_tokens = { value = 16, status = "confirmed", source = "paper" }
[sizes.one.model]
n_layers = { value = 1, status = "confirmed", source = "paper" }
"""


@every_recipe
def test_every_value_has_a_source_and_one_of_the_four_statuses(one: Recipe) -> None:
    for key, sourced in one.values.items():
        assert sourced.source.strip(), key
        assert sourced.status in STATUSES, key
        assert key in known_keys()


@every_recipe
def test_every_source_begins_with_one_that_the_file_explains(one: Recipe) -> None:
    for key, sourced in one.values.items():
        named = any(sourced.source.startswith(name) for name in one.sources)
        own_choice = "this project" in sourced.source or sourced.source.startswith("not stated")
        assert named or own_choice, f"{one.name} {key}: {sourced.source}"


@every_recipe
def test_the_parameters_of_a_published_size_are_the_published_number(one: Recipe) -> None:
    with torch.device("meta"):
        counted = GPT(one.model).n_parameters()
    if one.parameters:
        assert counted == pytest.approx(one.parameters, rel=0.025)
    else:
        assert one.scaling
        assert counted == pytest.approx({"nano": 3e6, "mini": 15e6}[one.size], rel=0.15)


@pytest.mark.parametrize(
    ("name", "weight_decay", "status"), [("gpt3:125m", 0.1, "confirmed"), ("gpt2:124m", 0.01, "unpublished")]
)
def test_the_briefs_values_stand_with_what_is_known_of_them(name: str, weight_decay: float, status: str) -> None:
    sourced = recipe(name).values["optimizer.weight_decay"]
    assert (sourced.value, sourced.status) == (weight_decay, status)
    assert recipe(name.split(":")[0], size="nano").config().optimizer.weight_decay == weight_decay


def test_a_size_may_be_given_either_way_and_the_first_is_the_default() -> None:
    assert recipe("gpt3:125m") == recipe("gpt3", size="125m") == recipe("gpt3", size="125M")
    assert recipe("gpt3").size == "nano"


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'gpt3'"):
        recipe("gtp3")
    with pytest.raises(RecipeError, match=r"did you mean '1.3b'|'13b'"):
        recipe("gpt3:1.3bn")
    with pytest.raises(RecipeError, match="two sizes"):
        recipe("gpt3:nano", size="mini")


def test_overrides_win_and_a_length_replaces_the_recipes_other_kind_of_length() -> None:
    config = recipe("gpt3:125m").config(
        {"run.steps": "1_000", "optimizer.lr": "1e-3", "model.bias": "false", "schedule.warmup_steps": 10}
    )
    assert (config.run.steps, config.run.tokens) == (1_000, 0)
    assert (config.schedule.warmup_steps, config.schedule.warmup_tokens) == (10, 0)
    assert config.optimizer.lr == 1e-3
    assert config.model.bias is False
    assert TrainConfig.from_values(config.values()).values() == config.values()


def test_every_fault_of_the_overrides_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe("gpt3:nano").config(
            {
                "model.n_laers": 3,
                "optimizer.lr": "fast",
                "run.dtype": "bfloat61",
                "run.seed": -1,
                "run.keep": "1.5",
                "optimizer.weight_decay": -0.1,
                "run.tokens": 5,
                "run.steps": 5,
                "model.norm": "layernrm",
            }
        )
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 8
    for expected in (
        "'model.n_layers'",
        "must be a number",
        "'bfloat16'",
        "at least 0",
        "whole number",
        "--steps or",
        "'layernorm'",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "paper" }\nbeta1', 'source = " " }\nbeta1', "source is empty"),
        (
            'value = 1e-3, status = "confirmed", source = "paper"',
            'value = 1e-3, status = "confirmed"',
            "must be { value",
        ),
        ('value = 1e-3, status = "confirmed"', 'value = 1e-3, status = "rumoured"', "known are: assumed"),
        ("value = 1e-3", 'value = "fast"', "must be a number"),
        ("lr = {", "lrr = {", "did you mean"),
        ("[common.schedule]", "[common.scedule]", "did you mean 'schedule'"),
        ("[sizes.one.model]", "[other.one.model]", "unknown entry 'other'"),
        ("n_heads = { value = 2", "n_heads = { value = 0", "at least 1"),
    ],
)
def test_a_faulty_recipe_file_is_refused_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    good = tmp_path / "good.toml"
    good.write_text(VALID)
    assert load(good)["one"].config().model.n_layers == 1
    assert VALID.replace(old, new) != VALID
    path = tmp_path / "faulty.toml"
    path.write_text(VALID.replace(old, new))
    with pytest.raises(RecipeError, match=r"faulty\.toml") as caught:
        load(path)
    assert message in str(caught.value)


def test_several_faults_of_a_recipe_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "faulty.toml"
    path.write_text(
        VALID.replace("value = 1e-3", 'value = "fast"').replace("lr = {", "beta3 = {", 1).replace('"cosine"', "7")
    )
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert len(caught.value.faults) == 2
