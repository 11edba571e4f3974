"""Runs that were really trained, small ones, and a study's directory; each test changes a copy of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL
from weightdecay import cli


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, small_text: Path) -> Path:
    """A folder of runs: two λ with two seeds each, and one of another text.

    One was trained, the others are what it left, as other settings could have left it: a report reads files.
    """
    folder = tmp_path_factory.mktemp("trained")
    first = folder / "λ0-seed0"
    arguments = ["train", "gpt3:nano", "--data", str(small_text), "--steps", "12", "--out", str(first), *SMALL]
    with pytest.raises(SystemExit) as leaving:
        cli.main(
            [*arguments, "--set", "run.eval_every=4", "--set", "run.monitor_every=3", "--weight-decay", "30", "--json"]
        )
    assert leaving.value.code == 0

    for name, seed, λ, shift in (("λ0-seed1", 1, 0, 0.01), ("λ30-seed0", 0, 30, -0.2), ("λ30-seed1", 1, 30, -0.18)):
        other(
            first,
            folder / name,
            {"weight_decay = 30.0": f"weight_decay = {λ:.1f}", "seed = 0": f"seed = {seed}"},
            shift,
        )
    other(first, folder / "other", {}, 1.0, corpus_sha256="of another text")
    (first / "run.toml").write_text(
        (first / "run.toml").read_text().replace("weight_decay = 30.0", "weight_decay = 0.0")
    )
    return folder


def other(run: Path, to: Path, settings: dict[str, str], shift: float, **environment: str) -> None:
    """A run with other settings, losses and environment."""
    copied(run, to)
    text = (run / "run.toml").read_text()
    for old, new in settings.items():
        assert text.count(f"\n{old}\n") == 1
        text = text.replace(f"\n{old}\n", f"\n{new}\n")
    (to / "run.toml").write_text(text)
    keys = ("loss", "val_loss", "val_bits_per_byte")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    moved = [row | {key: row[key] + shift for key in keys if row.get(key) is not None} for row in rows]
    (to / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
    known = json.loads((run / "environment.json").read_text())
    (to / "environment.json").write_text(json.dumps(known | environment))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run to change."""
    return copied(trained / "λ30-seed0", tmp_path / "run")


def copied(run: Path, to: Path) -> Path:
    """A run elsewhere, without its checkpoints."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints", ".lock"))
    return to


def picture(**changes: Any) -> dict[str, Any]:
    """A picture as a study's results have it."""
    data = [{"λ": λ, "loss": 2 + (λ - 3) ** 2 / 100, "low": 1.9, "high": 2.6, "arm": f"λ = {λ}"} for λ in (0, 1, 3, 10)]
    made: dict[str, Any] = {
        "id": "loss",
        "title": "Held-out loss against λ",
        "subtitle": "3 seeds",
        "alt": "Lowest at 3.",
        "kind": "points",
        "x": {"field": "λ", "label": "weight decay λ", "scale": "symlog", "constant": 0.05},
        "y": {"field": "loss", "label": "held-out loss", "unit": "bits per byte"},
        "low": "low",
        "high": "high",
        "data": data,
    }
    return made | changes


def results(**changes: Any) -> dict[str, Any]:
    """A study's results."""
    made: dict[str, Any] = {
        "schema_version": 1,
        "complete": True,
        "answer": "λ = 3 is best, by 0.35 (95 % interval 0.33 to 0.37, 3 seeds).",
        "verdicts": [{"claim": "0.1 is right", "verdict": "not shown", "sentence": "It differs by −0.04."}],
        "limits": ["One text."],
        "runs": [
            {"name": "a-seed0", "arm": "a", "seed": 0, "status": "finished", "counted": True, "values": {"loss": 1.5}},
            {"name": "b-seed0", "arm": "b", "seed": 0, "status": "diverged", "counted": False, "why": "not finite"},
        ],
        "environments": [{"processor": "example", "threads": 1, "runs": 2}],
        "metrics": {"loss": {"label": "held-out loss", "unit": "nats"}},
        "groups": [{"arm": "a", "metric": "loss", "n": 1, "mean": 1.5, "std": None, "interval": None}],
        "comparisons_counted": 1,
        "comparisons": [
            {"metric": "loss", "arm": "b", "against": "a", "n": 3, "difference": -0.35, "interval": [-0.37, -0.33],
             "simultaneous": [-0.38, -0.32], "p_holm": 0.002, "test": "paired t", "verdict": "too few seeds"}
        ],
        "pictures": [picture()],
    }  # fmt: skip
    return made | changes


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study's directory, with other results where they are given."""

    def made(asked: dict[str, Any] | None = None, **changes: Any) -> Path:
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        question = {"schema_version": 1, "study": "lambda", "question": "Which λ is best?", "seeds": [0, 1, 2]}
        (folder / "study.json").write_text(json.dumps(question | (asked or {})))
        (folder / "results.json").write_text(json.dumps(results(**changes)))
        return folder

    return made
