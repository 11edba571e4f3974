from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.ngram_baselines import bigram_bits_per_byte
from tests.commands import Command
from weightdecay.data.prepare import prepared_for


@pytest.mark.long
def test_the_demo_learns_more_than_which_token_follows_which(weightdecay: Command, tmp_path: Path) -> None:
    """gpt3:nano on the standard library, minutes: below 2.1 bits per byte, and below an interpolated bigram model."""
    done = weightdecay("train", "gpt3:nano", "--out", tmp_path / "run", "--json", timeout=3600)
    assert done.returncode == 0, done.stderr
    reached = json.loads(done.stdout)["summary"]["val_bits_per_byte"]
    assert reached <= 2.1
    assert reached < bigram_bits_per_byte(prepared_for())
