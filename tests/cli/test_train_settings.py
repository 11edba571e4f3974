"""Where the settings of `train` come from: recipe, file, flags, `--set`."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands import MOVING, SMALL, Command
from weightdecay.cli.flags import setting_flags
from weightdecay.cli.train import Train
from weightdecay.declared import reading
from weightdecay.declared.values import flat, nested
from weightdecay.errors import ConfigError
from weightdecay.models.config import ModelConfig
from weightdecay.recipes.files import read_settings, settings_toml
from weightdecay.recipes.schema import all_recipes, recipe
from weightdecay.recipes.settings import SECTIONS, TrainConfig, known_keys
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.setup import set_up
from weightdecay.training.trainer import train


def command(**given: Any) -> Train:
    return Train(**given)


def faults(**given: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        command(**given).settings()
    return caught.value.faults


def test_a_runs_own_settings_train_the_same_weights_bit_for_bit(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    chosen = [flag.partition("=")[::2] for flag in (*SMALL, *MOVING) if "=" in flag]
    asked = {"data.sources": [str(small_text)], "data.tokenizer": "byte", "model.context": 32, "run.batch_tokens": 256}
    values = asked | {"run.steps": 6, "optimizer.lr": "3e-3", "run.out": str(tmp_path / "a")} | dict(chosen)
    train(recipe("gpt3:nano").config(values), reporter=SilentReporter())
    again = weightdecay("train", "--config", tmp_path / "a" / "run.toml", "--out", tmp_path / "b", OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole = [(tmp_path / run / "checkpoints" / "step-00000006" / name).read_bytes() for run in "ab"]
        assert whole[0] == whole[1]
    configs = [Run.open(tmp_path / run).config() for run in "ab"]
    assert configs[0] == configs[1].resolved(run__out=str(tmp_path / "a"))


@pytest.mark.parametrize("one", all_recipes(), ids=lambda one: one.name)
def test_what_is_written_reads_as_it_was(one: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for form in (one.config(), one.as_published().config()):
        path.write_text(settings_toml(form), encoding="utf-8")
        assert read_settings(path).config() == form


@settings(max_examples=50)
@given(text=st.text(), number=st.floats(0, 1e300), whole=st.integers(0, 2**63 - 1))
def test_any_text_and_number_comes_back_from_a_file(text: str, number: float, whole: int) -> None:
    values = {"run.out": text, "optimizer.lr": number, "run.seed": whole, "data.sources": [text, text]}
    config = recipe("gpt3:nano").config(values)
    document = tomllib.loads(settings_toml(config))
    assert TrainConfig.from_values(flat({name: document[name] for name in SECTIONS})).values() == config.values()


def test_flags_go_over_a_file_over_a_recipe_and_set_over_all(tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    path.write_text("[optimizer]\nlr = 1\nbeta1 = 0.5\nbeta2 = 0.5\n", encoding="utf-8")
    config, origins = command(
        recipe="gpt3:nano", config=str(path), lr="2", weight_decay="0.2", set=("optimizer.lr=3",)
    ).settings()
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.beta1, optimizer.eps) == (3.0, 0.2, 0.5, 1e-8)
    assert origins["optimizer.lr"] == "--set"
    assert origins["optimizer.weight_decay"] == "--weight-decay"
    assert origins["optimizer.beta1"] == str(path)
    assert origins["optimizer.eps"] == "recipe gpt3:nano, confirmed"
    assert "optimizer.momentum" not in origins


def test_a_length_in_a_flag_takes_back_the_files_other_kind_of_length(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(settings_toml(recipe("gpt3:nano").config({"run.steps": 7})), encoding="utf-8")
    assert command(config=str(path)).settings()[0].run.steps == 7
    longer = command(config=str(path), tokens="5M").settings()[0].run
    assert (longer.steps, longer.tokens) == (0, 5e6)


def test_a_file_names_its_recipe_and_a_recipe_on_the_command_line_goes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(settings_toml(recipe("llama2:nano").config()), encoding="utf-8")
    assert command(config=str(path)).settings()[0] == recipe("llama2:nano").config()
    assert command(recipe="gpt2:nano", config=str(path)).settings()[0].model == recipe("llama2:nano").model
    path.write_text(settings_toml(recipe("llama2:nano").config()).replace("llama2:nano", "mine:small"))
    alone = command(config=str(path)).settings()[0]
    assert (alone.recipe, alone.model) == ("mine:small", recipe("llama2:nano").model)


def test_every_fault_of_a_file_and_of_the_command_line_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        '[optimizer]\nlr = "fast"\nbeta3 = 1\nlr_multipliers = [{ pattern = "x", factor = -1 }]\n[modle]\nx = 1\n',
        encoding="utf-8",
    )
    found = faults(config=str(path), seed="-1", set=("run.keep=2", "run.keep=none", "nonsense"), resume="maybe")
    for words in (
        f"{path}: optimizer.lr = 'fast': must be a number of at least 0",
        f"{path}: unknown key 'optimizer.beta3': did you mean",
        f"{path}: unknown key 'modle.x'",
        f"{path}: optimizer.lr_multipliers[0].factor = -1: must be a number of at least 0",
        "run.seed = '-1': must be a whole number from 0 to below 2^64",
        "run.keep = 'none': must be a whole number of at least 1",
        "--set nonsense: must be KEY=VALUE",
        "--resume maybe",
    ):
        assert sum(fault.startswith(words) for fault in found) == 1, (words, found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("[run]\nsteps = 1\nsteps = 2\n", "cannot be read: Cannot overwrite a value"),
        ("schema_version = 99\n", "schema_version = 99: this weightdecay reads up to 2: update it"),
        ("recipe = 3\n", "recipe = 3: must be UTF-8 text"),
        ("run = 3\n", "run = 3: must be a table with steps, tokens"),
        ("[model]\nn_heads = 2\n[model.attention]\nn_heads = 3\n", "model.attention.n_heads is given twice: once as"),
        ("[[optimizer.stages]]\nshape = 1\n", "unknown key 'optimizer.stages'"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    found = faults(config=str(path))
    assert len(found) == 1, found
    assert words in found[0]
    assert str(path) in found[0]


def test_a_dry_run_says_where_each_value_comes_from(small_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {
        "tokenizer": "byte",
        "context": "32",
        "batch_tokens": "256",
        "set": ("model.d_model=32", "model.n_heads=2"),
    }
    dry = command(recipe="gpt3:nano", data=(str(small_text),), steps="50", weight_decay="auto", **small)
    assert dataclasses.replace(dry, dry_run=True, json=True).run() == 0
    document = json.loads(capsys.readouterr().out)
    origins = document["origins"]
    assert set(origins) == set(document["config"])
    assert origins["run.steps"] == "--steps"
    assert origins["model.d_model"] == "--set"
    assert origins["optimizer.beta1"].startswith("recipe gpt3:nano, confirmed")
    assert origins["optimizer.weight_decay"] == origins["schedule.warmup_steps"] == "worked out"
    assert origins["data.text_key"] == "default"
    told = settings_toml(recipe("gpt3:nano").config({"run.steps": 20}), {"run.steps": "--steps"})
    assert "\nsteps = 20  # --steps\n" in told


def test_the_flags_of_train_are_those_that_settings_declare_and_no_name_is_taken_twice() -> None:
    names = [flag.name for flag in setting_flags(TrainConfig)]
    assert len(names) == len(set(names))
    assert {"data", "lr", "weight_decay", "steps", "out"} <= set(names)
    assert all(flag.setting.key in known_keys() for flag in setting_flags(TrainConfig))
    assert not set(names) & {"recipe", "config", "resume", "on_change", "as_published", "set", "dry_run", "json"}


@pytest.mark.parametrize("flag", setting_flags(TrainConfig), ids=lambda flag: flag.name)
def test_a_wrong_value_of_each_flag_is_told_at_its_setting(flag: Any) -> None:
    kinds = str(flag.setting.hint)
    if "bool" in kinds or ("str" in kinds and "Literal" not in kinds):
        return  # a switch takes no value; a text takes any, and is looked up later
    found = faults(recipe="gpt3:nano", **{flag.name: "no-such"})
    assert any(fault.startswith(f"{flag.setting.key} = 'no-such': ") for fault in found), found


def test_a_run_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Lists of texts where tables are now, and no version."""
    config = recipe("bloom:176b").config()
    old = config.values() | {
        "run.batch_ramp": [f"{point.tokens:g}:{point.batch_tokens}" for point in config.run.batch_ramp],
        "optimizer.lr_multipliers": ["^embedding=0.5"],
        "schedule.grad_clip_changes": ["30e9:0.3"],
        "schedule.stages": ["cosine to 0.1 over 4.3e12"],
    }
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps({"recipe": config.recipe, "scaling": ""} | nested(old)), encoding="utf-8")
    found = read_settings(path).config()
    assert found.run == config.run
    assert [(row.pattern, row.factor) for row in found.optimizer.lr_multipliers] == [("^embedding", 0.5)]
    assert [(row.tokens, row.grad_clip) for row in found.schedule.grad_clip_changes] == [(30e9, 0.3)]
    assert [(row.shape, row.to, row.over_tokens) for row in found.schedule.stages] == [("cosine", 0.1, 4.3e12)]


def test_a_configuration_is_checked_once_on_its_way_to_a_run(small_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Any] = []
    whole = reading._checked

    def counted(kind: Any, *more: Any) -> Any:
        checked.append(kind)
        return whole(kind, *more)

    monkeypatch.setattr(reading, "_checked", counted)
    asked = command(recipe="gpt3:nano", data=(str(small_text),), tokenizer="byte", context="32", batch_tokens="256")
    setup = set_up(asked.settings()[0])
    assert setup.config.model.vocab_size == 257
    assert checked.count(TrainConfig) == 1
    assert checked.count(ModelConfig) == 1  # whose vocabulary is the tokenizer's
