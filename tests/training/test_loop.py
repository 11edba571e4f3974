"""The loop against the same training written out in plain PyTorch."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from weightdecay import checkpoint
from weightdecay.data.loader import Loader, evaluation_batches
from weightdecay.data.prepare import prepared_for
from weightdecay.errors import ConfigError, StoppedError, TrainingError
from weightdecay.models.decoder import GPT
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train

STEPS, WARMUP, LR, DECAY, CONTEXT, SEQUENCES = 12, 3, 1e-2, 0.5, 16, 8


def config(text: Path, out: Path, **more: Any) -> TrainConfig:
    values = {
        "data.sources": (str(text),), "data.tokenizer": "byte", "run.out": str(out), "run.steps": STEPS,
        "run.batch_tokens": CONTEXT * SEQUENCES, "run.micro_batch_tokens": 4 * CONTEXT, "run.dtype": "float32",
        "run.seed": 3, "schedule.warmup_steps": WARMUP, "optimizer.lr": LR, "optimizer.weight_decay": DECAY,
        "optimizer.eps": 1e-5,  # where a gradient is nothing but rounding, so is the update
        "model.context": CONTEXT, "model.n_layers": 2, "model.d_model": 32, "model.n_heads": 2, "model.window": 8,
    }  # fmt: skip
    return recipe("gpt3:nano").config(values | {key.replace("__", "."): value for key, value in more.items()})


def run_of(settings: TrainConfig) -> Run:
    return train(settings, reporter=SilentReporter())


def by_kind(run: Run, kind: str) -> list[dict[str, Any]]:
    return list(run.rows(kind))


def test_a_run_is_what_plain_pytorch_makes_of_the_same_settings(small_text: Path, tmp_path: Path) -> None:
    """Warm-up and descent, accumulation, clipping, decay of the matrices alone, multipliers, and every number told."""
    multipliers = {
        "optimizer__lr_multipliers": ("^embedding=0.5",),
        "optimizer__weight_decay_multipliers": ("^positions=0.25",),
    }
    run = run_of(config(small_text, tmp_path / "run", run__eval_every=5, **multipliers))

    data = prepared_for([str(small_text)], "byte")
    loader = Loader(data.training.tokens, CONTEXT, SEQUENCES, seed=3)
    torch.manual_seed(3)
    model = GPT(run.config().model)
    groups = [
        {
            "params": [tensor],
            "share": 0.5 if name.startswith("embedding") else 1.0,
            "weight_decay": DECAY * (tensor.ndim > 1) * (0.25 if name.startswith("positions") else 1.0),
        }
        for name, tensor in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-5)
    for step, row in enumerate(by_kind(run, "train")):
        lr = LR * (step + 1) / WARMUP if step < WARMUP else LR * (STEPS - step) / (STEPS - WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"]
        x, y = loader.batch(step)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        penalty = 0.5 * sum(g["weight_decay"] * g["params"][0].norm().item() ** 2 for g in optimizer.param_groups)
        assert row == {
            "kind": "train",
            "step": step + 1,
            "tokens": (step + 1) * CONTEXT * SEQUENCES,
            "batch_tokens": CONTEXT * SEQUENCES,
            "loss": pytest.approx(loss.item(), rel=1e-4),
            "lr": pytest.approx(lr, rel=1e-9),
            "weight_decay": DECAY,
            "decay_per_step": pytest.approx(lr * DECAY, rel=1e-9),
            "penalty": pytest.approx(penalty, rel=1e-4),
            "grad_norm": pytest.approx(float(norm), rel=1e-3),
            "grad_clip": 1.0,
            "skipped_steps": 0,
            "tokens_per_s": pytest.approx(row["tokens_per_s"]),
            "elapsed_s": pytest.approx(row["elapsed_s"]),
        }
    assert math.isclose(sum(CONTEXT * SEQUENCES / r["tokens_per_s"] for r in by_kind(run, "train")), row["elapsed_s"])
    trained = load_file(run.checkpoints / f"step-{STEPS:08d}" / "model.safetensors")
    assert trained.keys() == dict(model.named_parameters()).keys()
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(trained[name], tensor.detach(), rtol=1e-3, atol=2e-5)

    nats = 0.0
    held_out = data.held_out.tokens
    with torch.no_grad():
        for x, y in evaluation_batches(held_out, CONTEXT, 4, end_of_text_id=256):
            nats += float(F.cross_entropy(model.eval()(x).flatten(0, 1), y.flatten(), reduction="sum"))
    evaluations = by_kind(run, "eval")
    assert [row["step"] for row in evaluations] == [5, 10, 12]
    last = evaluations[-1]
    assert last["val_tokens"] == len(held_out)
    assert last["val_loss"] == pytest.approx(nats / len(held_out), rel=1e-4)
    assert last["val_perplexity"] == pytest.approx(math.exp(nats / len(held_out)), rel=1e-3)
    assert last["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / data.held_out.header.n_bytes, rel=1e-4)
    summary = run.summary()
    assert summary is not None
    assert summary["decay_total"] == pytest.approx(sum(row["decay_per_step"] for row in by_kind(run, "train")))
    told = ("status", "steps", "tokens", "loss", "val_bits_per_byte", "best_checkpoint")
    wanted = ("finished", 12, 1536, row["loss"], last["val_bits_per_byte"], "step-00000012")
    assert tuple(summary[key] for key in told) == wanted


def test_every_step_draws_its_own_dropout(tmp_path: Path) -> None:
    """One window, no learning: the losses differ by the dropout alone, and are the same in a second run."""
    text = tmp_path / "text.txt"
    text.write_text("a single window, 26 bytes.")

    def losses(out: str, **more: Any) -> list[float]:
        settings = config(text, tmp_path / out, optimizer__lr=0.0, run__batch_tokens=CONTEXT, **more)
        return [row["loss"] for row in by_kind(run_of(settings), "train")]

    first = losses("one", model__dropout=0.3)
    assert len(set(first)) == STEPS
    assert losses("again", model__dropout=0.3) == first
    assert len(set(losses("without"))) == 1


def test_rows_are_logged_and_checkpoints_kept_as_asked(small_text: Path, tmp_path: Path) -> None:
    run = run_of(
        config(small_text, tmp_path / "run", run__log_every=5, run__checkpoint_every=3, run__eval_every=4, run__keep=2)
    )
    assert [row["step"] for row in by_kind(run, "train")] == [5, 10, 12]
    states = {
        path.name: json.loads((path / "state.json").read_text())["val_loss"] for path in run.checkpoints.iterdir()
    }
    assert states == {"step-00000009": None, "step-00000012": by_kind(run, "eval")[-1]["val_loss"]}


def test_steps_without_a_finite_gradient_stop_the_run_or_are_counted(small_text: Path, tmp_path: Path) -> None:
    """After one step at this rate every product overflows."""
    absurd = {"optimizer__lr": 1e30, "optimizer__weight_decay": 0.0, "schedule__warmup_steps": 0}
    with pytest.raises(TrainingError, match="step 2: the gradient is not finite"):
        run_of(config(small_text, tmp_path / "stopped", **absurd))
    assert [row["step"] for row in by_kind(Run(tmp_path / "stopped"), "train")] == [1]
    skipping = config(small_text, tmp_path / "skipped", **absurd, run__on_nonfinite="skip")
    for _ in range(2):  # the second time goes on from the last checkpoint, which has counted too
        run = run_of(skipping)
        assert [row["skipped_steps"] for row in by_kind(run, "train")] == list(range(STEPS))
        summary = run.summary()
        assert summary is not None
        assert (summary["steps"], summary["skipped_steps"], summary["loss"]) == (STEPS, STEPS - 1, None)
        (run.path / "summary.json").unlink()
    state = load_file(run.checkpoints / f"step-{STEPS:08d}" / "optimizer.safetensors")
    assert {int(value) for name, value in state.items() if name.endswith("/step")} == {1}


def test_rows_are_on_the_disk_before_the_checkpoint_of_their_step(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    real_sync = os.fsync
    monkeypatch.setattr(os, "fsync", sync)
    run_of(config(small_text, tmp_path / "run", run__checkpoint_every=6))
    assert [name for name in synced if name in ("metrics.jsonl", "manifest.json")] == 2 * [
        "metrics.jsonl",
        "manifest.json",
    ]


class Interrupting(SilentReporter):
    """Sends SIGTERM while step 5 is evaluated."""

    def evaluation(self, row: Mapping[str, Any]) -> None:
        if row["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_during_an_evaluation_or_a_save_is_heeded_after_it(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = {"run__eval_every": 5, "run__checkpoint_every": 3}
    whole = run_of(config(small_text, tmp_path / "whole", **often))
    with pytest.raises(StoppedError, match="signal 15 after step 5 of 12; saved") as stopped:
        train(config(small_text, tmp_path / "evaluating", **often), reporter=Interrupting())
    assert stopped.value.exit_code == 143
    save = checkpoint.save

    def interrupted(folder: Path, step: int, **parts: Any) -> checkpoint.Checkpoint:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return save(folder, step, **parts)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        with pytest.raises(StoppedError, match="signal 2 after step 4 of 12; saved"):
            run_of(config(small_text, tmp_path / "saving", **often))
    last = f"step-{STEPS:08d}/model.safetensors"
    for name, step in (("evaluating", 5), ("saving", 4)):
        stopped_at = checkpoint.of_step(tmp_path / name / "checkpoints", step)
        assert stopped_at.faults() == []
        again = run_of(config(small_text, tmp_path / name, **often))
        assert (again.checkpoints / last).read_bytes() == (whole.checkpoints / last).read_bytes()


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_a_seed_is_whatever_torch_takes(seed: int, small_text: Path, tmp_path: Path) -> None:
    """Written, read back, and gone on with; one more is a fault in words, however it is given."""
    torch.Generator().manual_seed(seed)
    run = run_of(config(small_text, tmp_path / "run", run__seed=str(seed), run__steps=4))
    assert run.config().run.seed == seed
    longer = config(small_text, tmp_path / "run", run__seed=seed, run__steps=5)
    assert train(longer, on_change="override", reporter=SilentReporter()).summary()["steps"] == 5  # type: ignore[index]
    for more in (2**64, str(2**64), -1):
        with pytest.raises(ConfigError, match=r"must be a whole number from 0 to below 2\^64"):
            config(small_text, tmp_path, run__seed=more)


def test_choices_that_are_none_are_refused_before_anything_is_made(small_text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train(config(small_text, tmp_path / "run"), resume="maybe", on_change="kepp", reporter=SilentReporter())
    assert caught.value.faults == [
        "--resume maybe: known are: auto, must, never",
        "--on-change kepp: did you mean 'keep'?",
    ]
    assert not (tmp_path / "run").exists()
