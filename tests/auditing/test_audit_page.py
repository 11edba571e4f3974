"""What the page on the audit prints can be pasted, in its order, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from weightdecay.auditing.findings import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def without_numbers(text: str) -> str:
    """What is measured differs between machines, and so does the room that it takes."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.e+-]+", "0", text))


def test_the_pages_python_runs_as_it_is_printed_and_prints_what_is_below_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    printed = PAGE.split("```text\n")[1].split("```")[0]
    assert without_numbers(capsys.readouterr().out) == without_numbers(printed)

    for block in BLOCKS[1:]:
        exec(block, names)
    names["test_our_loop_decays_as_we_mean"]()
    assert "nothing decays otherwise than asked, 5 ignored" in capsys.readouterr().out


def test_every_code_has_its_row() -> None:
    table = PAGE.split("## The codes")[1].split("## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(CODES)
