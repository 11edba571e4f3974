"""What the README prints can be pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import COMMANDS
from weightdecay.cli.data import Prepare

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_readmes_python_runs_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "coupled" in said
    assert "decay plan: policy default, λ = 0.1" in said
    assert said.rstrip().endswith("one number per feature")


def test_the_readmes_commands_and_flags_are_there() -> None:
    commands = {**COMMANDS, "data": Prepare}
    lines = re.findall(r"^weightdecay (\w+)(.*?)(?:  +#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 10
    for name, rest in lines:
        for flag in re.findall(r"--([a-z-]+)", rest):
            assert flag.replace("-", "_") in commands[name].__annotations__, (name, flag)
