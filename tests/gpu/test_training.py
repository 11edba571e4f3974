"""Training on a GPU: the losses of a processor, resumed bit for bit, from pinned batches."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import weightdecay
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter

STEPS = 12
SMALL: dict[str, Any] = {
    "data.tokenizer": "byte", "model.context": 32, "run.batch_tokens": 256, "run.micro_batch_tokens": 128,
    "model.n_layers": 2, "model.d_model": 32, "model.n_heads": 2, "run.steps": STEPS, "run.eval_every": 6,
    "run.checkpoint_every": 4, "run.keep": 9, "run.log_every": 1, "run.dtype": "float32",
}  # fmt: skip
CALM = {"model.dropout": 0.0, "model.stochastic_depth": 0.0}


def train(recipe: str, text: Path, out: Path, **more: Any) -> Run:
    values = SMALL | {"data.sources": [str(text)], "run.out": str(out)}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    return weightdecay.train(weightdecay.recipe(recipe).config(values), reporter=SilentReporter())


def losses(run: Run, kind: str = "train", key: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if row["kind"] == kind]


@pytest.mark.anywhere
@pytest.mark.parametrize(
    ("recipe", "tolerance"),
    [("gpt3:nano", 1e-4), ("llama2:nano", 1e-4), ("palm:nano", 1e-4), ("deepseek-v3:nano", 2e-3)],
)
def test_losses_are_those_of_a_processor(
    recipe: str, tolerance: float, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {"model.n_kv_heads": 1} if recipe == "llama2:nano" else {}
    there = train(recipe, small_text, tmp_path / "there", **CALM, **heads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = train(recipe, small_text, tmp_path / "here", **CALM, **heads)
    assert losses(there) == pytest.approx(losses(here), rel=tolerance)
    assert losses(there, "eval", "val_loss") == pytest.approx(losses(here, "eval", "val_loss"), rel=tolerance)
    assert losses(there)[-1] < losses(there)[0]


@pytest.mark.anywhere
@pytest.mark.parametrize("optimizer", ["lion", "muon", "adafactor", "sgdw"])
def test_each_optimizer_trains_as_on_a_processor(
    optimizer: str, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**CALM, "optimizer.name": optimizer, "optimizer.lr": 1e-3}
    there = train("gpt3:nano", small_text, tmp_path / "there", **settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = train("gpt3:nano", small_text, tmp_path / "here", **settings)
    # Muon's products are in bfloat16, and Lion's signs turn with the last digit.
    assert losses(there) == pytest.approx(losses(here), rel=1e-4 if optimizer in ("adafactor", "sgdw") else 1e-2)


@pytest.mark.anywhere
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_with_the_same_bytes(dtype: str, small_text: Path, tmp_path: Path) -> None:
    """With dropout on, whose draws come from the device's generator."""
    settings = {"run.dtype": dtype, "model.dropout": 0.1, "model.stochastic_depth": 0.1}
    whole = train("gpt3:nano", small_text, tmp_path / "whole", **settings)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole.path, stopped)
    (stopped / "run.toml").write_text((stopped / "run.toml").read_text().replace(str(whole.path), str(stopped)))
    (stopped / "summary.json").unlink()
    for step in (8, STEPS):
        shutil.rmtree(stopped / f"checkpoints/step-{step:08d}")
    again = train("gpt3:nano", small_text, stopped, **settings)
    for name in ("model.safetensors", "optimizer.safetensors"):
        ends = [(run.path / f"checkpoints/step-{STEPS:08d}" / name).read_bytes() for run in (whole, again)]
        assert ends[0] == ends[1], name
    assert losses(whole) == losses(again)


@pytest.mark.anywhere
@pytest.mark.parametrize("recipe", ["gpt3:nano", "llama2:nano"])
def test_bfloat16_products_train_as_float32_does(recipe: str, small_text: Path, tmp_path: Path) -> None:
    heads = {"model.n_kv_heads": 1} if recipe == "llama2:nano" else {}
    longer = {**CALM, **heads, "run.steps": 30, "run.checkpoint_every": 30, "run.eval_every": 30}
    coarse = losses(train(recipe, small_text, tmp_path / "bf16", **longer, **{"run.dtype": "bfloat16"}))
    fine = losses(train(recipe, small_text, tmp_path / "f32", **longer))
    assert len(coarse) == 30
    assert all(map(math.isfinite, coarse))
    assert coarse == pytest.approx(fine, rel=0.02)
    assert coarse[-1] < 0.8 * coarse[0]


@pytest.mark.compiler
def test_compiled_blocks_train_as_eager_ones(small_text: Path, tmp_path: Path) -> None:
    compiled = losses(train("gpt3:nano", small_text, tmp_path / "compiled", **CALM, **{"run.compile": True}))
    eager = losses(train("gpt3:nano", small_text, tmp_path / "eager", **CALM))
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_batches_come_from_pinned_memory(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    whole = torch.Tensor.to

    def to(tensor: torch.Tensor, *where: Any, **how: Any) -> torch.Tensor:
        if how.get("non_blocking") and tensor.dtype == torch.int64 and tensor.shape[-1:] == (32,):
            pinned.append(tensor.is_pinned())
        return whole(tensor, *where, **how)

    monkeypatch.setattr(torch.Tensor, "to", to)
    train("gpt3:nano", small_text, tmp_path / "run", **{"run.steps": 2})
    assert len(pinned) >= 2
    assert all(pinned)


@pytest.mark.anywhere
def test_what_was_trained_there_is_evaluated_and_continued_elsewhere(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    run = train("gpt3:nano", small_text, tmp_path / "run", **CALM)
    summary = run.summary()
    assert summary is not None
    assert summary["val_loss"] == pytest.approx(losses(run, "eval", "val_loss")[-1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    further = train("gpt3:nano", small_text, tmp_path / "run2", **CALM, **{"run.init_from": str(run.path)})
    assert losses(further)[0] < losses(run)[0]
    assert device.type in ("cpu", "cuda")
