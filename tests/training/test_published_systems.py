"""Each system of the brief trains as itself at `nano`, on the standard library; minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import Command
from weightdecay.recipes.schema import recipe
from weightdecay.runs import Run

pytestmark = pytest.mark.long

SYSTEMS = ["gpt2", "gpt3", "llama1", "llama2", "palm", "grok1", "mistral", "mixtral"]
SHORT = ["--steps", "500", "--batch-tokens", "1024", "--set", "run.eval_every=500", "--set", "run.eval_tokens=131072"]


@pytest.mark.parametrize("system", [*SYSTEMS, "palm as published"])
def test_a_system_of_the_brief_learns_as_itself(system: str, weightdecay: Command, tmp_path: Path) -> None:
    """A unigram model of these tokens has about 2.7 bits per byte."""
    name, _, form = system.partition(" ")
    chosen = recipe(f"{name}:nano")
    expected = chosen.as_published() if form else chosen
    done = weightdecay(
        "train", chosen.name, "--out", tmp_path / "run", "--json", *SHORT, *(["--as-published"] if form else []),
        timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["val_bits_per_byte"] <= 2.4
    run = Run.open(tmp_path / "run")
    written, wanted = run.config(), expected.config()
    assert written.optimizer == wanted.optimizer
    assert written.model == wanted.model
    plan = json.loads((run.path / "plan.json").read_text())
    assert {tensor["multiplier"] for tensor in plan["tensors"]} <= {0.0, 1.0}
    rows = list(run.rows("train"))
    assert {row["weight_decay"] for row in rows} == {wanted.optimizer.weight_decay}
    if form:
        assert all(row["decay_per_step"] == pytest.approx(row["lr"] ** 2, abs=1e-12) for row in rows)
    else:
        assert all(row["decay_per_step"] == pytest.approx(row["lr"] * row["weight_decay"]) for row in rows)
