from __future__ import annotations

import re
from pathlib import Path

import pytest

from weightdecay.errors import ConfigError, RecipeError
from weightdecay.models.decoder import GPT
from weightdecay.recipes.entries import READ, STATUSES, Source, source_of
from weightdecay.recipes.rows import RampPoint
from weightdecay.recipes.schema import FOLDER, Recipe, all_recipes, load, recipe, systems
from weightdecay.recipes.settings import TrainConfig, known_keys

ALL = all_recipes()
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
    for key, sourced in {**one.values, **one.published}.items():
        assert sourced.source.strip(), key
        assert sourced.status in STATUSES, key
        assert key in known_keys()


@every_recipe
def test_every_source_says_how_it_was_read_and_a_repository_at_which_commit(one: Recipe) -> None:
    for name, source in one.sources.items():
        assert source.read in READ
        repository = re.match(r"[\w-]+/[\w.-]+(@[0-9a-f]{7,})?[, ]", source.reference)
        assert source.read != "opened" or name == "log" or "@" in source.reference, (one.name, name)
        assert not repository or repository[1], (one.name, name)


@every_recipe
def test_nothing_is_confirmed_by_a_source_that_was_not_read(one: Recipe) -> None:
    for key, sourced in {**one.values, **one.published}.items():
        source = source_of(sourced, one.sources)
        assert sourced.status != "confirmed" or (source and source.read != "no"), key


@every_recipe
def test_what_is_known_from_memory_or_at_second_hand_is_not_called_confirmed(one: Recipe) -> None:
    for key, sourced in {**one.values, **one.published}.items():
        if any(words in sourced.source for words in ("memory", "second hand", "second-hand")):
            assert sourced.status != "confirmed", key


@every_recipe
def test_a_contradicted_value_says_what_is_there_instead(one: Recipe) -> None:
    assert all(sourced.note for sourced in one.values.values() if sourced.status == "contradicted")


def test_every_system_that_is_promised_has_a_published_size_and_two_small_ones() -> None:
    promised = (
        "bloom chinchilla deepseek-v3 gpt1 gpt2 gpt3 grok1 llama1 llama2 llama3 mistral mixtral moonlight nanochat "
        "nanogpt olmo2 olmo3 opt palm pythia"
    )
    assert systems() == promised.split()
    for system in systems():
        sizes = load(FOLDER / f"{system}.toml")
        assert [*sizes][:2] == ["nano", "mini"], system
        assert len(sizes) > 2
        assert all(bool(one.scaling) == (size in ("nano", "mini")) for size, one in sizes.items())


@every_recipe
def test_every_source_begins_with_one_that_the_file_explains(one: Recipe) -> None:
    for key, sourced in one.values.items():
        named = source_of(sourced, one.sources) is not None
        own_choice = "this project" in sourced.source or sourced.source.startswith("not stated")
        assert named or own_choice, f"{one.name} {key}: {sourced.source}"


@every_recipe
def test_the_parameters_of_a_published_size_are_the_published_number(one: Recipe) -> None:
    counted = GPT.blueprint(one.model).n_parameters()
    if one.parameters:
        assert counted == pytest.approx(one.parameters, rel=0.025)
    elif one.scaling:
        assert counted == pytest.approx({"nano": 3e6, "mini": 15e6}[one.size], rel=0.15)


@pytest.mark.parametrize(
    ("name", "weight_decay", "status"),
    [
        ("gpt2:124m", 0.01, "unpublished"), ("gpt3:125m", 0.1, "confirmed"), ("llama1:7b", 0.1, "confirmed"),
        ("llama2:70b", 0.1, "confirmed"), ("palm:540b", 0.1, "contradicted"), ("grok1:314b", 0.1, "contradicted"),
        ("mistral:7b", 0.1, "unpublished"), ("mixtral:8x7b", 0.1, "unpublished"),
    ],
)  # fmt: skip
def test_the_briefs_values_stand_with_what_is_known_of_them(name: str, weight_decay: float, status: str) -> None:
    sourced = recipe(name).values["optimizer.weight_decay"]
    assert (sourced.value, sourced.status) == (weight_decay, status)
    small = recipe(name.split(":")[0], size="nano")
    assert small.config().optimizer.weight_decay == weight_decay
    assert small.brief is not None
    assert small.brief.value == weight_decay
    assert (small.brief.published == f"{weight_decay:g}") == (status == "confirmed")


def test_palm_as_published_is_what_its_paper_says() -> None:
    chosen = recipe("palm:540b")
    assert chosen.config().optimizer.name == "adamw"
    config = chosen.as_published().config()
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.factored, optimizer.rule) == ("adafactor", False, "lr_squared")
    assert (optimizer.weight_decay, optimizer.lr, optimizer.beta1, optimizer.beta2_decay) == (1.0, 1e-2, 0.9, -0.8)
    assert (config.schedule.shape, config.schedule.hold_steps, config.schedule.warmup_tokens) == (
        "inverse_sqrt", 10_000, 0,
    )  # fmt: skip
    assert recipe("gpt3:125m").as_published() == recipe("gpt3:125m")


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


def test_tables_may_be_given_as_a_text_of_toml_and_as_older_versions_spelt_them() -> None:
    def ramp(value: object) -> tuple[RampPoint, ...]:
        return recipe("gpt3:nano").config({"run.batch_ramp": value}).run.batch_ramp

    rows = [{"tokens": 0, "batch_tokens": 1024}, {"tokens": 9e3, "batch_tokens": 2048}]
    wanted = (RampPoint(tokens=0.0, batch_tokens=1024), RampPoint(tokens=9e3, batch_tokens=2048))
    text = "[{tokens = 0, batch_tokens = 1024}, {tokens = 9e3, batch_tokens = 2048}]"
    assert ramp(rows) == ramp(text) == ramp('["0:1024", "9e3:2048"]') == ramp(("0:1024", "9e3:2048")) == wanted
    assert ramp("0:2048") == (RampPoint(tokens=0.0, batch_tokens=2048),)
    with pytest.raises(ConfigError, match="must be a list of tables with tokens, batch_tokens"):
        ramp('["0:1024", 9e3')


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
        ('source = "paper" }\nbeta1', 'source = " " }\nbeta1', "text that says something"),
        (
            'value = 1e-3, status = "confirmed", source = "paper"',
            'value = 1e-3, status = "confirmed"',
            "lr.source is missing",
        ),
        ('value = 1e-3, status = "confirmed"', 'value = 1e-3, status = "rumoured"', "known are: assumed"),
        ('lr = { value = 1e-3, status = "confirmed", source = "paper" }', "lr = 1e-3", "must be { value"),
        ("value = 1e-3", 'value = "fast"', "must be a number"),
        ("lr = {", "lrr = {", "did you mean"),
        ("[common.schedule]", "[common.scedule]", "did you mean 'schedule.shape'"),
        ("[sizes.one.model]", "[other.one.model]", "unknown key 'other.one.model"),
        ("n_heads = { value = 2", "n_heads = { value = 0", "at least 1"),
        (
            'paper = "A paper"',
            'paper = { reference = "A paper", read = "no" }',
            "confirmed, but its source was not read",
        ),
        ('paper = "A paper"', 'paper = { reference = "A paper", read = "maybe" }', "known are: no, opened, text"),
        ('paper = "A paper"', "paper = 7", "must be a table with reference, read"),
        ('title = "Tiny"', "title = 7", "title = 7: must be UTF-8 text"),
        (
            "[sizes.one.model]",
            '[sizes.one]\nparameters = "many"\n[sizes.one.model]',
            "parameters = 'many': must be a number",
        ),
        ("[sizes.one.model]", "[sizes]\ntwo = 1\n[sizes.one.model]", "sizes.two = 1: must be a table"),
        ('title = "Tiny"', 'title = "Tiny"\nbrief = { value = 0.1 }', "brief.published is missing"),
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
    assert len(caught.value.faults) == 3  # and lr is missing


def test_each_fault_has_the_line_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "faulty.toml"
    text = VALID.replace("value = 1e-3", 'value = "fast"').replace('"layernorm"', "7") + "[sizes.two.modell]\nx = 1\n"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    lines = text.splitlines()
    for fault, expected in zip(caught.value.faults, ("lr = {", "x = 1"), strict=True):
        place = int(fault.removeprefix(f"{path}:").partition(":")[0])
        assert lines[place - 1].startswith(expected)


def test_a_recipe_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VALID)
    assert recipe(str(path)) == recipe(f"{path}:one")
    assert recipe(f"{path}:one").name == "mine:one"
    with pytest.raises(RecipeError, match="no size 'two' of"):
        recipe(f"{path}:two")
    with pytest.raises(RecipeError, match="No such file"):
        recipe(str(tmp_path / "other.toml"))


def test_a_recipe_of_ones_own_can_add_to_a_shipped_one_and_override_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        extends = "gpt3"
        [sources]
        us = "our own sweep"
        [common.optimizer]
        weight_decay = { value = 0.05, status = "assumed", source = "us" }
        [sizes.wide.model]
        """
    )
    with pytest.raises(RecipeError, match=r"mine:wide: model\.n_layers is missing"):
        load(path)
    path = tmp_path / "good.toml"
    path.write_text(
        """
        extends = "gpt3"
        [sources]
        us = "our own sweep"
        [common.optimizer]
        weight_decay = { value = 0.05, status = "assumed", source = "us" }
        [sizes.125m.optimizer]
        lr = { value = 1e-3, status = "assumed", source = "us" }
        """
    )
    own, shipped = recipe(f"{path}:125m"), recipe("gpt3:125m")
    assert own.config().optimizer.weight_decay == 0.05
    assert own.config().optimizer.lr == 1e-3
    assert own.model == shipped.model
    assert own.sources["us"] == Source("our own sweep")
    assert recipe(f"{path}:175b").config().optimizer.lr == recipe("gpt3:175b").config().optimizer.lr
    path.with_name("stray.toml").write_text('extends = "gtp3"\n')
    with pytest.raises(RecipeError, match="did you mean 'gpt3'"):
        load(path.with_name("stray.toml"))
