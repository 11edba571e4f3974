"""A run looks at its model once, and what it trains by is what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.plan import plan
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train

SMALL = {
    "data.tokenizer": "byte", "model.context": 16, "model.d_model": 16, "model.n_heads": 2, "model.n_layers": 1,
    "model.d_ff": 32, "run.batch_tokens": 64, "run.steps": 2,
}  # fmt: skip


def config(text: Path, out: Path, **values: Any) -> TrainConfig:
    given = {key.replace("__", "."): value for key, value in values.items()}
    return recipe("gpt3:nano").config({**SMALL, "data.sources": (str(text),), "run.out": str(out), **given})


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[DecayPlan]:
    """The plans that are made, in order."""
    made: list[DecayPlan] = []

    def counted(*arguments: Any, **keywords: Any) -> DecayPlan:
        made.append(plan(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr("weightdecay.training.optimizers.plan", counted)
    return made


def test_a_run_plans_once_and_so_does_one_that_goes_on_with_other_settings(
    small_text: Path, tmp_path: Path, plans: list[DecayPlan]
) -> None:
    run = train(config(small_text, tmp_path / "run"), reporter=SilentReporter())
    assert len(plans) == 1
    assert (run.path / "plan.json").read_text(encoding="utf-8") == plans[0].to_json()

    other = config(small_text, tmp_path / "run", run__steps=4, optimizer__weight_decay=0.3)
    train(other, on_change="override", reporter=SilentReporter())
    assert [one.weight_decay for one in plans] == [0.1, 0.3]
    written = json.loads((run.path / "plan.json").read_text(encoding="utf-8"))
    assert written["weight_decay"] == 0.3
