"""What decays, as this repository means it: run with `pytest`, after `pip install weightdecay`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from train import build, train


def test_our_optimizer_decays_as_we_mean(weightdecay_audit: Any) -> None:
    model, optimizer = build(decay_by_dimensions=False)
    weightdecay_audit(model, optimizer, weight_decay=0.1, policy="default")


@pytest.mark.weightdecay_audit(at_step=2)
def test_training_as_it_was_published_lives_with_its_decaying_gains() -> None:
    """The gains decay, as in the weights that we have released: `audits/` holds that, and nothing else may join."""
    train(*build(), steps=3)
