"""The monitor within a run of ours, beside one on the same training written out in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import weightdecay
from weightdecay import GPT, Monitor
from weightdecay.data.loader import Loader
from weightdecay.data.prepare import prepared_for
from weightdecay.training.progress import SilentReporter

STEPS, LR, DECAY, CONTEXT, SEQUENCES = 12, 1e-2, 0.5, 16, 8
MEASURED = (
    "weight_rms", "update_rms", "angle", "decay_requested", "decay_realised", "memory_steps", "memory_tokens",
    "equilibrium_rms", "equilibrium_angle", "expected_rms", "expected_angle", "distance",
)  # fmt: skip


def trained(text: Path, out: Path, **more: Any) -> weightdecay.Run:
    values = {
        "data.sources": (str(text),), "data.tokenizer": "byte", "run.out": str(out), "run.steps": STEPS,
        "run.batch_tokens": CONTEXT * SEQUENCES, "run.micro_batch_tokens": 4 * CONTEXT, "run.dtype": "float32",
        "run.seed": 3, "run.monitor_every": 4, "schedule.shape": "constant", "schedule.warmup_fraction": 0,
        "optimizer.lr": LR, "optimizer.weight_decay": DECAY, "optimizer.eps": 1e-5, "model.context": CONTEXT,
        "model.n_layers": 2, "model.d_model": 32, "model.n_heads": 2, "model.window": 8,
    }  # fmt: skip
    config = weightdecay.recipe("gpt3:nano").config(values | more)
    return weightdecay.train(config, reporter=SilentReporter())


def test_a_run_and_a_plain_loop_have_the_same_rows(small_text: Path, tmp_path: Path) -> None:
    run = trained(small_text, tmp_path / "run")
    loader = Loader(prepared_for([str(small_text)], "byte").training.tokens, CONTEXT, SEQUENCES, seed=3)
    torch.manual_seed(3)
    model = GPT(run.config().model)
    decaying = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-5)
    with Monitor(model, optimizer, interval=4, batch_tokens=CONTEXT * SEQUENCES) as monitor:
        for step in range(STEPS):
            x, y = loader.batch(step)
            F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    plain = {(row["step"], row["name"]): row for row in monitor.rows if row["kind"] == "decay"}
    ours = {(row["step"], row["name"]): row for row in run.rows("decay")}
    assert ours.keys() == plain.keys()
    assert len({name for _, name in ours}) == len(list(model.parameters()))
    matrices = [key for key, row in ours.items() if len(row["shape"]) > 1]
    for key in matrices:
        assert ours[key]["role"] == plain[key]["role"]
        assert ours[key]["tokens"] == key[0] * CONTEXT * SEQUENCES
        for name in MEASURED:
            assert ours[key][name] == pytest.approx(plain[key][name], rel=2e-3), (key, name)
    roles = {row["role"]: row for row in run.rows("decay-role")}
    assert roles["linear weight"]["decay_realised"] == pytest.approx(LR * DECAY, rel=1e-3)


def test_it_can_be_left_out_and_changes_nothing_of_the_run(small_text: Path, tmp_path: Path) -> None:
    watched, alone = (
        trained(small_text, tmp_path / "one"),
        trained(small_text, tmp_path / "two", **{"run.monitor": False}),
    )
    assert {row["kind"] for row in alone.rows()} == {"train", "eval"}
    assert {row["kind"] for row in watched.rows()} >= {"decay", "decay-role"}
    assert [row["loss"] for row in watched.rows("train")] == [row["loss"] for row in alone.rows("train")]
    weights = [
        (run.checkpoints / f"step-{STEPS:08d}" / "model.safetensors").read_bytes() for run in (watched, alone)
    ]  # fmt: skip
    assert weights[0] == weights[1]
