"""The command in the process of the tests, which needs no seconds to begin."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from weightdecay.cli import main

Answer = tuple[int, str, str]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """The command in this process, its stdin being a text: code, stdout, stderr."""

    def run(*arguments: str | Path, stdin: str | bytes = "") -> Answer:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(each) for each in arguments])
        answered = capfd.readouterr()
        return int(left.value.code or 0), answered.out, answered.err

    return run
