"""Settings that are given by keyword to a call that takes none so are told how they are given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightdecay
from weightdecay.errors import ConfigError, RecipeError
from weightdecay.recipes.settings import known_keys

config: Any = weightdecay.recipe("gpt3:nano").config
recipe: Any = weightdecay.recipe
train: Any = weightdecay.train
GPT: Any = weightdecay.GPT


def faults(call: Any, *arguments: Any, **settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **settings)
    return caught.value.faults


@pytest.mark.parametrize(
    ("call", "arguments"),
    [(recipe, ["gpt3:nano"]), (config, []), (train, [config()])],
    ids=["recipe", "config", "train"],
)
def test_the_call_says_where_its_settings_go(call: Any, arguments: list[Any]) -> None:
    found = faults(call, *arguments, steps=3, run__steps=4, beta=5)
    assert len(found) == 3
    assert found[0].endswith("takes no 'steps', give it by .config({'run.steps': 3})")
    assert found[1].endswith("takes no 'run__steps', give it by .config({'run.steps': 4})")
    assert "there is no setting 'beta': did you mean " in found[2]
    assert "'optimizer.beta1'" in found[2]


def test_what_else_is_wrong_is_told_with_them() -> None:
    assert len(faults(recipe, "x", steps=3)) == 2
    found = faults(train, "gpt3:nano", steps=3, resume="maybe")
    assert len(found) == 3
    assert "config is a str: give a TrainConfig, as weightdecay.recipe('gpt3:nano').config()" in found


@given(st.sampled_from(sorted(known_keys())))
def test_what_is_said_of_any_setting_can_be_followed(key: str) -> None:
    (found,) = faults(recipe, "gpt3:nano", **{key.replace(".", "__", 1): "no-such"})
    assert found.endswith(f".config({{'{key}': 'no-such'}})")


@pytest.mark.parametrize("wrong", [3, None, ("gpt3", "nano")])
def test_what_is_no_name_names_no_recipe(wrong: Any) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        recipe(wrong)
    with pytest.raises(RecipeError, match="no size '3' of gpt3"):
        recipe("gpt3", size=3)


@pytest.mark.parametrize("wrong", [{}, weightdecay.recipe("gpt3:nano")], ids=["dict", "recipe"])
def test_a_model_is_made_of_its_configuration_alone(wrong: Any) -> None:
    assert faults(GPT, wrong) == [
        f"config is a {type(wrong).__name__}: give a ModelConfig, as weightdecay.recipe('gpt3:nano').model"
    ]
