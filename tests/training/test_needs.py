"""What a run needs is said before its first step, and what does not fit is refused with what would."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import weightdecay
from tests.commands import SMALL, Command
from weightdecay.errors import OutOfMemoryError, StorageError
from weightdecay.training import needs as module
from weightdecay.training.needs import Needs, needs_of, refuse_what_does_not_fit, size
from weightdecay.training.setup import Setup, set_up


@pytest.fixture(scope="module")
def setup(small_text: Path) -> Setup:
    values = {"run.steps": 4, "data.sources": [str(small_text)], "data.tokenizer": "byte", "run.batch_tokens": 16384}
    return set_up(weightdecay.recipe("gpt3:nano").config(values))


def test_weights_gradients_and_state_are_counted_to_the_byte(setup: Setup) -> None:
    memory = needs_of(setup).memory
    parameters = 4 * setup.n_parameters
    assert memory.gradients == parameters
    assert parameters <= memory.weights <= 1.02 * parameters + 1e6  # buffers beside them
    assert 2 * parameters <= memory.optimizer <= 2 * parameters + 4 * 400  # two moments, and a counter a tensor
    assert memory.activations > 0


def test_the_disk_is_that_of_all_checkpoints_and_one_being_written(setup: Setup) -> None:
    needed = needs_of(setup)
    assert needed.checkpoints == setup.config.run.keep + 1
    assert needed.disk == pytest.approx(needed.checkpoints * 3 * 4 * setup.n_parameters, rel=0.05)


def test_a_dry_run_says_memory_disk_and_time(weightdecay: Command, small_text: Path, tmp_path: Path) -> None:
    done = weightdecay("train", "gpt3:nano", "--data", small_text, "--steps", "5", "--dry-run", "--json", *SMALL)
    needed = json.loads(done.stdout)["needs"]
    assert needed["memory_bytes"]["total"] > needed["memory_bytes"]["weights"]
    assert 5 * needed["step_s"] < needed["run_s"] < 100 * needed["step_s"]  # its evaluation is of more tokens
    out = ("--out", tmp_path / "run")
    told = weightdecay("train", "gpt3:nano", "--data", small_text, "--steps", "3000", "--dry-run", *SMALL, *out).stdout
    assert "memory: " in told
    assert "disk: " in told
    assert "time: " in told
    assert "teach the text by heart" in told


def test_what_does_not_fit_is_refused_with_what_would(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = needs_of(setup)
    smaller = Needs(needed.memory, round(0.7 * needed.memory.more), 3, 10, 10**12)
    with pytest.raises(OutOfMemoryError, match=r"--set run\.micro_batch_tokens=\d+ takes"):
        refuse_what_does_not_fit(setup, smaller)
    with pytest.raises(OutOfMemoryError, match="take a smaller size"):
        refuse_what_does_not_fit(setup, Needs(needed.memory, 10**6, 3, 10, 10**12))
    with pytest.raises(StorageError, match="keep fewer"):
        refuse_what_does_not_fit(setup, Needs(needed.memory, None, 3, 10**12, 10**6))
    refuse_what_does_not_fit(setup, needed)
    monkeypatch.setattr(module, "available_memory", lambda _: 10**6)
    assert "at least" in needs_of(setup).lines()[0]


def test_sizes_are_told_in_the_units_of_their_size() -> None:
    assert [size(n) for n in (2_000, 1.5e6, 2.25e9, 3e12)] == ["2 kB", "1.5 MB", "2.25 GB", "3 TB"]


def told_and_taken(
    weightdecay: Command, out: Path, *arguments: str | Path, **environment: str
) -> tuple[dict[str, int], int]:
    """What a dry run says of memory, and the most that a run of three steps, an evaluation and a checkpoint had."""
    short = ("--steps", "3", "--set", "schedule.warmup_steps=1", "--set", "run.eval_tokens=32768", "--json", *arguments)
    weightdecay(
        "train", *short, "--dry-run", **environment
    )  # finds it out, by torch's compiler, which others do not import
    told = json.loads(weightdecay("train", *short, "--dry-run", **environment).stdout)["needs"]["memory_bytes"]
    done = weightdecay("train", *short, "--out", out, **environment)
    return told, json.loads(done.stdout)["summary"]["peak_memory_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak is read from /proc")
def test_the_memory_that_is_told_is_what_a_run_takes(weightdecay: Command, small_text: Path, tmp_path: Path) -> None:
    told, taken = told_and_taken(weightdecay, tmp_path / "run", "gpt3:nano", "--data", small_text)
    assert told["total"] == sum(value for name, value in told.items() if name != "total")
    assert told["total"] == pytest.approx(taken, rel=0.15)
    assert told["total"] - told["program"] == pytest.approx(taken - told["program"], rel=0.35)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak is read from /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        ("llama2:nano",),
        ("nanochat:nano",),
        ("gpt2:mini",),
        ("gpt2:mini", "--set", "run.activation_checkpointing=true"),
        ("gpt2:nano", "--dtype", "float32"),
    ],
    ids=" ".join,
)
def test_the_memory_that_is_told_is_what_any_run_takes(
    arguments: tuple[str, ...], weightdecay: Command, tmp_path: Path
) -> None:
    # In processes that begin themselves: a forked one finds room in what its parent has freed.
    told, taken = told_and_taken(weightdecay, tmp_path / "run", *arguments, OMP_NUM_THREADS="1")
    assert told["total"] == pytest.approx(taken, rel=0.15)
