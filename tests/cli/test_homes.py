"""`~` within quotes, which a shell leaves alone: every path of a command line and of a file of settings knows it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Answer
from tests.commands import COMMANDS
from weightdecay.cli import data
from weightdecay.cli.flags import A_PATH, setting_flags, with_homes
from weightdecay.declared.fields import hints, metadata
from weightdecay.declared.values import with_home
from weightdecay.recipes.settings import TrainConfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def path_flags() -> Iterator[tuple[typing.Any, str]]:
    for kind in (*COMMANDS.values(), data.Prepare, data.Inspect):
        for item in dataclasses.fields(kind):
            if A_PATH in metadata(hints(kind)[item.name]):
                yield kind, item.name


@pytest.mark.parametrize(("kind", "name"), list(path_flags()), ids=lambda each: getattr(each, "__name__", each))
def test_every_path_of_a_command_line_is_read_as_a_shell_reads_it(kind: typing.Any, name: str, home: Path) -> None:
    given = {item.name: "x" for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING}
    several = "tuple" in str(hints(kind)[name])
    command = with_homes(kind(**given | {name: ("~/a", "b") if several else "~/a"}))
    assert getattr(command, name) == ((str(home / "a"), "b") if several else str(home / "a"))


def test_no_flag_that_takes_a_path_is_forgotten() -> None:
    """By their metavars and words: a flag that names files or directories is marked as one."""
    found = {(kind.__name__, name) for kind, name in path_flags()}
    settings = {flag.name for flag in setting_flags(TrainConfig)}
    for kind in (*COMMANDS.values(), data.Prepare, data.Inspect):
        for item in dataclasses.fields(kind):
            shown = " ".join(str(getattr(each, "metavar", "")) for each in metadata(hints(kind)[item.name]))
            of_a_file = any(word in shown for word in ("DIR", "FILE", "PATH", "SRC", "RUN"))
            if of_a_file and not (kind.__name__ == "Train" and item.name in settings):
                assert (kind.__name__, item.name) in found


@pytest.mark.parametrize("key", ["run.out", "run.init_from", "data.tokenizer", "optimizer.policy"])
def test_settings_know_it_wherever_they_come_from(key: str, home: Path) -> None:
    section, name = key.split(".")
    from weightdecay import recipe

    assert getattr(getattr(recipe("gpt3:nano").config({key: "~/a"}), section), name) == str(home / "a")
    assert recipe("gpt3:nano").config({"data.sources": ["~/a", "b"]}).data.sources == (str(home / "a"), "b")


def test_a_command_with_a_quoted_tilde(command: Callable[..., Answer], home: Path) -> None:
    assert command("plan", "gpt3:nano", "--trace", "off", "--lock", "~/lock.json")[0] == 0
    assert (home / "lock.json").is_file()
    assert not (home / "~").exists()
    assert command("plan", "gpt3:nano", "--trace", "off", "--check", "~/lock.json")[0] == 0
    (home / "settings.toml").write_text("run.out = '~/run'\n")
    _, told, _ = command(
        "train", "gpt3:nano", "--config", "~/settings.toml", "--data", "~/absent", "--dry-run", "--json"
    )
    assert f"{home}/absent: no such file" in told


@pytest.mark.parametrize("name", ["x", "./~", "a~b", "~nobody-is-called-so/x", "", "hf:~"])
def test_other_names_are_left_alone(name: str) -> None:
    assert with_home(name) == name


def test_a_file_of_that_name_goes_first(home: Path) -> None:
    (home / "~").mkdir()
    (home / "~" / "a").touch()
    assert with_home("~/a") == "~/a"
