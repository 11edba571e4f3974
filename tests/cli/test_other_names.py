"""Who comes from another trainer and asks by its names is told ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.cli.conftest import Answer
from weightdecay.cli.flags import setting_flags
from weightdecay.cli.other_names import OTHER_NAMES, names_here
from weightdecay.recipes.settings import TrainConfig, known_keys

OURS = {flag.shown for flag in setting_flags(TrainConfig)} | {"--set", "--config"}


def test_no_flag_of_ours_is_taken_for_anothers() -> None:
    assert not OURS & OTHER_NAMES.keys()


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_what_a_name_is_here_is_there(name: str) -> None:
    here = OTHER_NAMES[name]
    setting = re.match(r"--set ([\w.]+)=", here)
    if setting is not None:
        assert setting[1] in known_keys()
    else:
        assert here.startswith("the first argument") or here.split()[0] in OURS


def test_each_is_told_beside_what_the_parser_says(command: Callable[..., Answer]) -> None:
    asked = ("train", "gpt3:nano", "--learning-rate", "1", "--batch_size=3", "--lr", "1")
    told = ["--learning-rate: here it is --lr X", f"--batch-size: here it is {OTHER_NAMES['--batch-size']}"]
    code, said, faults = command(*asked)
    assert (code, said) == (2, "")
    assert [line for line in faults.splitlines() if line.startswith("error: ")] == [f"error: {each}" for each in told]
    code, said, _ = command(*asked, "--json")
    assert json.loads(said)["faults"][1:] == told


def test_other_commands_are_left_alone() -> None:
    assert list(names_here(["watch", "--", "train.py", "--learning-rate", "1"])) == []
    assert list(names_here([])) == []
