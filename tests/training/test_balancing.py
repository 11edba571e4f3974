"""The routers' selection biases in training: moved by each step's load, saved, resumed, the same for all ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import SMALL, Command

STEPS = 20
LAST = f"checkpoints/step-{STEPS:08d}"


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    return ["train", "deepseek-v3:nano", "--data", str(text), "--steps", str(STEPS), "--out", str(out),
            "--checkpoint-every", "10", *SMALL, *more]  # fmt: skip


def biases(run: Path, step: int = STEPS) -> torch.Tensor:
    tensors = load_file(run / f"checkpoints/step-{step:08d}" / "model.safetensors")
    return torch.stack([tensor for name, tensor in tensors.items() if name.endswith("router.selection_bias")])


@pytest.fixture(scope="module")
def run(small_text: Path, tmp_path_factory: pytest.TempPathFactory, weightdecay: Command) -> Path:
    out = tmp_path_factory.mktemp("balancing") / "run"
    done = weightdecay(*arguments(small_text, out))
    assert done.returncode == 0, done.stderr
    return out


def test_each_step_moves_each_bias_by_the_speed_at_most(run: Path) -> None:
    bias = biases(run)
    assert bias.shape == (1, 16)  # one of two layers has experts
    steps = bias / 0.001
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert 5 < steps.abs().max() <= STEPS


def test_a_resumed_run_ends_with_the_same_biases_and_weights_bit_for_bit(
    run: Path, small_text: Path, weightdecay: Command
) -> None:
    whole = {name: (run / LAST / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}
    shutil.rmtree(run / LAST)
    (run / "summary.json").unlink()
    done = weightdecay(*arguments(small_text, run))
    assert done.returncode == 0, done.stderr
    assert "resumed from step 10" in done.stdout
    assert all((run / LAST / name).read_bytes() == content for name, content in whole.items())
    assert not torch.equal(biases(run, 10), biases(run))


@pytest.mark.long
def test_two_processes_move_them_as_one_does(small_text: Path, tmp_path: Path, weightdecay: Command) -> None:
    plain = ["--set", "model.dropout=0", "--set", "model.stochastic_depth=0", "--dtype", "float32"]
    for name, more in (("one", []), ("two", ["--nproc", "2"])):
        done = weightdecay(*arguments(small_text, tmp_path / name, *plain, *more))
        assert done.returncode == 0, done.stderr
    assert torch.equal(biases(tmp_path / "one"), biases(tmp_path / "two"))


def test_they_stay_once_the_tokens_are_seen_after_which_they_are_left_alone(
    small_text: Path, tmp_path: Path, weightdecay: Command
) -> None:
    done = weightdecay(*arguments(small_text, tmp_path / "run", "--set", "model.router_bias_tokens=1024"))
    assert done.returncode == 0, done.stderr
    assert torch.equal(biases(tmp_path / "run", 10), biases(tmp_path / "run"))
    assert 0 < biases(tmp_path / "run").abs().max() <= 0.004 + 1e-6  # four steps of 256 tokens
