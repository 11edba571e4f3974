"""What a run says of itself before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

import weightdecay
from weightdecay.training import briefing
from weightdecay.training.setup import set_up


def said(text: Path, **changes: float) -> str:
    values = {"run.steps": 4, "data.sources": [str(text)], "data.tokenizer": "byte", "run.batch_tokens": 512}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return "\n".join(briefing._decay(set_up(weightdecay.recipe("gpt3:nano").config(values))))


@pytest.mark.parametrize("lr", [0.0, 1e-3])
def test_a_learning_rate_of_zero_is_remarked_upon(small_text: Path, lr: float) -> None:
    assert ("at a learning rate of 0 nothing is learnt" in said(small_text, optimizer__lr=lr)) == (lr == 0)


@pytest.mark.parametrize("key", ["optimizer__lr", "optimizer__weight_decay"])
def test_where_nothing_decays_nothing_is_said_to_be_forgotten(small_text: Path, key: str) -> None:
    told = said(small_text, **{key: 0.0})
    assert "without gradients 100.0 % of a weight would be left; no update is ever forgotten" in told
    assert "half of an update is forgotten in" in said(small_text)
