"""A run directory as version 0.1.0 left it: stopped after step 8 of 12, with settings in the forms of that time.

`old_run/` holds it, its text, and (`ended.*`) what the same version made of it when nothing stopped it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Command
from weightdecay import checkpoint
from weightdecay.runs import Run

OLD = Path(__file__).parent / "old_run"
# As its command line was, in the words of that version.
ARGUMENTS = [
    "gpt3:nano", "--tokenizer", "byte", "--context", "32", "--batch-tokens", "128", "--steps", "12",
    "--checkpoint-every", "4", "--keep", "3", "--set", "model.n_layers=1", "--set", "model.d_model=16",
    "--set", "model.n_heads=2", "--set", "model.dropout=0.1", "--set", "run.micro_batch_tokens=64",
    "--set", "run.eval_every=4", "--set", "run.log_every=1", "--set", 'run.batch_ramp=["0:64", "600:128"]',
    "--set", "run.batch_ramp_shape=linear", "--set", "optimizer.grad_clip=1",
    "--set", "schedule.grad_clip_changes=1000:0.1", "--set", "optimizer.lr_multipliers=^embedding=0.5",
]  # fmt: skip


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(OLD / "run", copy)
    return copy


def test_it_goes_on_and_ends_as_that_version_would_have_ended_it(old_run: Path, weightdecay: Command) -> None:
    """Nothing may differ but rounding: another processor adds up in another order."""
    done = weightdecay("train", *ARGUMENTS, "--data", OLD / "text", "--out", old_run, "--resume", "must")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 8" in done.stdout

    for old, new in zip(rows(OLD / "ended.jsonl"), rows(old_run / "metrics.jsonl"), strict=True):
        assert new == to_rounding(old, new)
    summary = Run(old_run).summary()
    assert summary is not None
    del summary["peak_memory_bytes"]  # of which that version did not speak
    assert summary == to_rounding(json.loads((OLD / "ended.json").read_text()), summary)


def to_rounding(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What is expected of the new values; their clock goes its own way."""
    clock = {key: new.get(key) for key in old.keys() & {"tokens_per_s", "elapsed_s", "eval_s"}}
    return {
        key: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value for key, value in old.items()
    } | clock


def test_its_checkpoint_and_settings_are_read_as_they_were_written(old_run: Path) -> None:
    found = checkpoint.newest_good(Run(old_run).checkpoints, pytest.fail)
    assert found is not None
    assert found.step == 8
    config = Run(old_run).config()
    assert (config.optimizer.lr, config.model.d_model, config.run.batch_ramp[-1].batch_tokens) == (0.006, 16, 128)
