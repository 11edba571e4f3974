"""What takes a second to find out before a run is found out once, and a start without it needs no compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import SMALL, Command
from weightdecay.recipes.schema import recipe
from weightdecay.training import cached as module
from weightdecay.training import footprint as forecast
from weightdecay.training.cached import cached
from weightdecay.training.setup import Setup, set_up

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sizes:
    large: int
    small: int = 1


@pytest.fixture(name="cache")
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


class Counted:
    """An answer that counts how often it is asked for."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Sizes:
        self.times += 1
        return Sizes(large=10 * self.times)


@pytest.mark.usefixtures("cache")
def test_an_answer_is_worked_out_once_for_a_question_and_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Counted()
    assert cached(Sizes, ("a", 1), answer) == cached(Sizes, ("a", 1), answer) == Sizes(10)
    assert cached(Sizes, ("a", 2), answer) == Sizes(20)
    monkeypatch.setattr(module, "_code", lambda: "edited")
    assert cached(Sizes, ("a", 1), answer) == Sizes(30)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def of_another_kind(path: Path) -> None:
    path.write_text('{"large": 10, "huge": 1}')


def not_numbers(path: Path) -> None:
    path.write_text('{"large": "10", "small": 1}')


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncated, of_another_kind, not_numbers, a_list, no_text, a_directory])
def test_a_damaged_answer_is_worked_out_anew(damage: Callable[[Path], None], cache: Path) -> None:
    answer = Counted()
    cached(Sizes, "question", answer)
    (place,) = cache.rglob("*.json")
    damage(place)
    assert cached(Sizes, "question", answer) == Sizes(20)


def tiny(text: Path, changed: dict[str, Any]) -> Setup:
    given = {
        "model.n_layers": 2, "model.d_model": 32, "model.n_heads": 2, "model.context": 32, "data.sources": [str(text)],
        "data.tokenizer": "byte", "run.steps": 4, "run.batch_tokens": 256, "run.micro_batch_tokens": 128,
    }  # fmt: skip
    return set_up(recipe("gpt3:nano").config(given | changed))


def told(setup: Setup) -> forecast.Footprint:
    return replace(forecast.footprint(setup, CPU, setup.micro_batch_rows), program=0)


@pytest.mark.parametrize(
    "changed",
    [
        {"model.n_layers": 3},
        {"run.activation_checkpointing": True},
        {"run.dtype": "float32"},
        {"run.nproc": 2},
        {"run.batch_tokens": 65536, "run.micro_batch_tokens": 32768},
        {"optimizer.name": "muon"},
        {"model.training.dropout": 0.1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_memory_of_another_run_is_not_taken_for_this_ones(changed: dict[str, Any], small_text: Path) -> None:
    one, other = tiny(small_text, {}), tiny(small_text, changed)
    known, expected = told(one), forecast._of_tensors(other, CPU, other.micro_batch_rows)
    assert told(other) == told(other) == expected
    # A processor without bfloat16 trains in float32 unasked, and its peak need not be where dropout is.
    assert expected != known or changed.keys() & {"run.dtype", "model.training.dropout"}


def test_the_second_start_of_a_run_imports_no_compiler(weightdecay: Command, small_text: Path, tmp_path: Path) -> None:
    """Which takes a second or two: as long as all else that is imported."""
    command = ["train", "gpt3:nano", "--data", str(small_text), "--steps", "2", *SMALL]
    weightdecay(*command, "--dry-run")
    program = (
        "import atexit, sys; from weightdecay.cli import main; "
        "atexit.register(lambda: print('with' if 'torch._dynamo' in sys.modules else 'without', 'a compiler')); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--out", str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert done.stdout.splitlines()[-1] == "without a compiler"
