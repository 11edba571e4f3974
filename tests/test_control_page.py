"""What the page on probe and control prints can be pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "control.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SAID = [
    r"AdamW decoupled 0\.0001 False\nAdam coupled .* False\nAdafactor decoupled .* True",
    r"Control\(Adam: group 0 rule independent, λ 0\.0998, peak lr 0\.001, .*step 3 of the schedule; exactness seen",
    r"\[5e-05\]",
    r"0\.0998",
]


def test_there_is_an_expectation_for_each_block() -> None:
    assert len(BLOCKS) == len(SAID)


@pytest.mark.parametrize("index", range(len(SAID)))
def test_the_pages_python_runs_as_it_is_printed(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[index], {})
    assert re.search(SAID[index], capsys.readouterr().out)
