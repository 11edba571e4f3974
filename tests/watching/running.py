"""Programs in processes of their own, watched and by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WATCH = [sys.executable, "-m", "weightdecay", "watch"]


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it said; our own words apart from its own."""

    code: int
    out: str
    err: str
    ours: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def script(folder: Path, source: str, name: str = "train.py") -> Path:
    """A program's file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


def alone(*words: str | Path, cwd: Path, timeout: float = 300, **environment: str) -> Done:
    """The program as Python runs it."""
    return _done([sys.executable, *map(str, words)], cwd, timeout, environment)


def watched(*words: str | Path, cwd: Path, timeout: float = 300, **environment: str) -> Done:
    """`weightdecay watch WORDS`."""
    return _done([*WATCH, *map(str, words)], cwd, timeout, environment)


def _done(command: list[str], cwd: Path, timeout: float, environment: dict[str, str]) -> Done:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment},
    )  # fmt: skip
    lines = done.stderr.splitlines(keepends=True)
    ours = [line for line in lines if line.startswith("weightdecay watch: ")]
    theirs = [line for line in lines if line not in ours]
    return Done(done.returncode, done.stdout, "".join(theirs), "".join(ours))


def found(folder: Path, name: str = "found.json") -> dict[str, list[str]]:
    """The tensors of each code."""
    document = json.loads((folder / name).read_text())
    return {one["code"]: one["tensors"] for one in document["findings"]}


def both(folder: Path, source: str, *flags: str, words: tuple[str, ...] = ()) -> Done:
    """The program watched; it must print and end as it does by itself, to the last words of an error."""
    path = script(folder, source)
    plain = alone(path, *words, cwd=folder)
    ours = watched(*flags, "--out", "found.json", "--", path, *words, cwd=folder)
    assert plain.out.splitlines() == ours.out.splitlines()
    assert plain.code == ours.code, ours.err + ours.ours
    assert ours.err.endswith(plain.err)
    assert ours.err.count("Traceback") == plain.err.count("Traceback")
    return ours
