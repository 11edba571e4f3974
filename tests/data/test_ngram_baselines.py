from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from weightdecay.data.prepare import Prepared


@pytest.fixture(scope="module")
def baselines() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "ngram_baselines.py"
    spec = importlib.util.spec_from_file_location("ngram_baselines", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_follows_any_token_has_probabilities_that_sum_to_one(baselines: ModuleType) -> None:
    training = np.random.default_rng(0).integers(0, 9, 200) ** 2 // 9  # 8 ids of 10, unevenly
    bigrams = baselines.Bigrams(training, 10)
    for before in range(10):
        text = np.stack([np.full(10, before), np.arange(10)], axis=1).flatten()
        assert bigrams.probabilities(text, 0.75)[::2].sum() == pytest.approx(1)
    assert baselines.unigram(training, 10).sum() == pytest.approx(1)


def test_a_bigram_is_counted_as_by_hand(baselines: ModuleType) -> None:
    """0 is followed by 1 twice and by 2 once: P(1 | 0) = (2 − D) / 3 + 2 D / 3 · P(1), P(1) = (2 + 1) / (6 + 3)."""
    bigrams = baselines.Bigrams(np.array([0, 1, 0, 1, 0, 2]), 3)
    assert bigrams.probabilities(np.array([0, 1]), 0.5) == pytest.approx([1.5 / 3 + 2 * 0.5 / 3 * (3 / 9)])
    assert bigrams.probabilities(np.array([2, 1]), 0.5) == pytest.approx([3 / 9])  # 2 was followed by nothing


def test_context_is_worth_three_quarters_of_a_bit_per_byte_on_the_standard_library(
    baselines: ModuleType, prepared: Prepared
) -> None:
    """On CPython 3.11.7: 2.705 and 1.919; other versions are other text."""
    unigram, bigram = baselines.unigram_bits_per_byte(prepared), baselines.bigram_bits_per_byte(prepared)
    assert unigram == pytest.approx(2.70, abs=0.1)
    assert bigram == pytest.approx(1.92, abs=0.1)
