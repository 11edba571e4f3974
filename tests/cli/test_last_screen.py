"""The last screen of a training: result, curve, sample, and four commands that work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import SMALL, Command
from weightdecay.cli.last_screen import curve


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500), st.integers(1, 80))
def test_a_curve_is_as_wide_as_asked_or_has_a_bar_for_each_value(values: list[float], width: int) -> None:
    bars = curve(values, width)
    assert len(bars) == min(width, len(values))
    assert set(bars) <= set("▁▂▃▄▅▆▇█")


def test_a_falling_curve_falls() -> None:
    assert curve([8, 7, 6, 5, 4, 3, 2, 1], 8) == "█▇▆▅▄▃▂▁"
    assert curve([2.0, 2.0, 2.0], 3) == "▁▁▁"


@pytest.mark.long
def test_a_training_ends_with_what_it_reached_and_commands_that_run(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    done = weightdecay("train", "gpt3:nano", "--data", small_text, "--steps", "6", "--out", tmp_path / "run", *SMALL)
    assert done.returncode == 0, done.stderr
    assert re.search(r"held-out text: \d\.\d{3} bits per byte after 6 steps", done.stdout)
    assert re.search(r"training loss  \d\.\d\d [▁-█]{6} \d\.\d\d", done.stdout)
    commands = re.findall(r"^  weightdecay (.*?)   # ", done.stdout, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        arguments = shlex.split(command.replace("FILE", str(small_text)))
        again = weightdecay(*arguments)
        assert again.returncode == 0, again.stderr
