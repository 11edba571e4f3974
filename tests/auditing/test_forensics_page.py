"""What the page on forensics prints can be pasted, and says what it shows."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from weightdecay.cli.forensics import Forensics

PAGE = (Path(__file__).parents[2] / "docs" / "forensics.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def test_the_pages_python_prints_what_stands_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = BLOCKS
    exec(block, {})
    said = capsys.readouterr().out
    assert re.search(r"Σηλ: 0\.36108\d* \(95 %: 0\.3610\d+ to 0\.3611?0?\d+\)", said)
    assert "100 rows that are a multiple of their start" in said
    assert re.search(r"Told\(value=0\.3\d+, low=0\.2\d+, high=0\.4\d+, basis='the spread of \d+ rows", said)
    words = [re.sub(r"[\d.]+", "#", text) for text in (said, SHOWN[0])]
    assert words[0] == words[1]  # all but the numbers, which another processor rounds otherwise


def test_every_flag_that_the_page_names_is_one() -> None:
    flags = {f"--{field.name.replace('_', '-')}" for field in fields(Forensics)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert named <= flags
    assert flags <= named | {"--checkpoint", "--embedding", "--tokenizer"}
