"""A finished run is looked at before it is called finished: a damaged last checkpoint is made once more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from weightdecay import checkpoint
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train
from weightdecay.training.verification import verify

STEPS = 6


class Told(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def small(text: Path, out: Path) -> TrainConfig:
    return recipe("gpt2:nano").config({
        "data.sources": (str(text),), "data.tokenizer": "byte", "model.n_layers": 1, "model.d_model": 16,
        "model.n_heads": 2, "model.context": 16, "model.dropout": 0.1, "run.batch_tokens": 64, "run.steps": STEPS,
        "run.checkpoint_every": 2, "run.keep": 9, "run.out": str(out),
    })  # fmt: skip


@pytest.fixture(scope="module")
def finished(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small(small_text, tmp_path_factory.mktemp("runs") / "run"), reporter=SilentReporter())


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json", "all"])
def test_a_damaged_last_checkpoint_of_a_finished_run_is_made_once_more_to_the_same_bytes(
    damage: str, finished: Run, small_text: Path, tmp_path: Path
) -> None:
    copy = Run(Path(shutil.copytree(finished.path, tmp_path / "copy")))
    last = checkpoint.of_step(copy.checkpoints, STEPS)
    if damage == "all":
        shutil.rmtree(last.path)
    elif damage == "manifest.json":
        (last.path / damage).unlink()
    else:
        flipped(last.path / damage)

    told = Told()
    train(small(small_text, copy.path), reporter=told)
    assert any("its last checkpoint is damaged since" in note for note in told.notes)
    assert any("resumed from step 4" in note for note in told.notes)
    assert last.faults() == []
    sound = checkpoint.of_step(finished.checkpoints, STEPS).path
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (last.path / name).read_bytes() == (sound / name).read_bytes()
    assert [row["step"] for row in copy.rows("train")] == list(range(1, STEPS + 1))
    set_aside = [path.name for path in copy.checkpoints.iterdir() if path.name.startswith("damaged-")]
    assert bool(set_aside) == (damage != "all")


def test_a_finished_run_that_is_sound_is_left_as_it_is_and_a_cut_log_is_said(
    finished: Run, small_text: Path, tmp_path: Path
) -> None:
    copy = Run(Path(shutil.copytree(finished.path, tmp_path / "copy")))
    told = Told()
    train(small(small_text, copy.path), reporter=told)
    assert told.notes[-1].endswith(f"this run is finished ({STEPS} steps); nothing to do")
    copy.forget_rows_after(4)
    train(small(small_text, copy.path), reporter=told)
    assert told.notes[-1].endswith("its metrics.jsonl was cut off after step 4")

    found = verify(copy, {})
    assert found.damaged
    assert found.rows_lost.startswith("metrics.jsonl ends after step 4, and a checkpoint is of step 6")
    assert not verify(finished, {}).damaged
