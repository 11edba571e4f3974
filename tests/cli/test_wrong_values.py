"""Every flag that takes a value, with values that it cannot take: named, exit 2, no traceback."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Answer
from tests.commands import COMMANDS
from weightdecay.cli.data import Prepare
from weightdecay.cli.flags import Argument, setting_flags
from weightdecay.declared.fields import Declared, alternatives, choices, hints, metadata
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train

KINDS = {name: COMMANDS[name] for name in ("train", "sample", "eval", "export", "plan")} | {"data prepare": Prepare}
# What stands for a flag's value in the help tells what it takes.
WRONG = {
    "N": ("few", "-1", "1.5", "nan", "1e999", "1 000"),
    "X": ("fast", "-1", "nan", "inf", "1e999", "0,1"),
    "WHICH": ("no-such",),
    "NAME": ("no-such",),
    "FILE": ("no/such",),
    "DIR": ("no/such",),
    "RUN": ("no/such",),
    "PATH": ("no/such",),
    "[SRC …]": ("no/such",),
    "WORD": ("no-such",),
}
# Any text is a value of theirs: what a row's field or a file to be written is called, what is continued or searched.
FREE = {"text_key", "separator", "prompt", "out", "lock", "set"}
POSITIONAL = typing.get_args(Argument[str])[-1]
SETTINGS: dict[str, Declared] = {flag.name: flag.setting for flag in setting_flags(TrainConfig)}


def cases() -> Iterator[tuple[str, str, str]]:
    """Each command's flags, with each value that is wrong for it."""
    for command, kind in KINDS.items():
        for item in dataclasses.fields(kind):
            said = metadata(hints(kind)[item.name])
            metavar = next((each.metavar for each in said if getattr(each, "metavar", None)), "")
            if metavar.startswith("{"):
                metavar = "WHICH"
            if metavar and POSITIONAL not in said and item.name not in FREE:
                for value in WRONG["X" if _takes_a_fraction(command, item.name) else metavar]:
                    yield command, item.name, value


def _takes_a_fraction(command: str, flag: str) -> bool:
    """A run's tokens are written like 2.5e9 and read as a number."""
    return command == "train" and flag in SETTINGS and float in alternatives(SETTINGS[flag].hint)


CASES = list(cases())


@pytest.fixture(scope="module")
def run(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    tiny = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 64}
    made = {"data.sources": (str(small_text),), "data.tokenizer": "byte", "run.steps": 1}
    out = {"run.out": str(tmp_path_factory.mktemp("runs") / "one")}
    return train(recipe("gpt3:nano").config({**tiny, **made, **out}), reporter=SilentReporter())


def test_every_command_has_flags_that_are_tried() -> None:
    assert {command for command, _, _ in CASES} == KINDS.keys()
    assert len({(command, flag) for command, flag, _ in CASES}) > 40


@pytest.mark.parametrize(("name", "flag", "value"), CASES)
def test_a_value_that_a_flag_cannot_take_is_named(
    name: str, flag: str, value: str, command: Callable[..., Answer], run: Run, small_text: Path, tmp_path: Path
) -> None:
    words: dict[str, list[Any]] = {
        "train": ["gpt3:nano", "--dry-run", *([] if flag == "data" else ["--data", small_text])],
        "sample": [run.path],
        "eval": [run.path],
        "export": [run.path, tmp_path / "exported"],
        "plan": ["gpt3:nano", "--trace=off"],
        "data prepare": [small_text, "--out", tmp_path / "prepared"],
    }
    shown = f"--{flag.replace('_', '-')}"
    given = [shown, value] if name == "eval" and flag == "data" else [f"{shown}={value}"]
    code, said, told = command(*name.split(), *words[name], *given)

    assert (code, said) == (2, ""), (said, told)
    assert "Traceback" not in told
    fault = told.splitlines()[-1]
    assert fault.startswith("error: ")
    assert value in fault
    if name == "train" and flag in SETTINGS and (choices(SETTINGS[flag].hint) or value in WRONG["N"] + WRONG["X"]):
        assert f"{SETTINGS[flag].key} = '{value}': " in fault
