"""Canaries: their null by simulation, extraction by a reader who knows them, and how they are planted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from weightdecay.data.prepare import Prepared
from weightdecay.data.shards import open_shard
from weightdecay.data.tokenizer import ByteTokenizer
from weightdecay.errors import DataError
from weightdecay.studies.canaries import (
    NULL_EXPOSURE,
    CanaryPlan,
    exposures,
    make_canaries,
    memorised,
    null_exposure,
)
from weightdecay.studies.texts import TextPlan, make_texts

PLAN = CanaryPlan(repeats=(0, 1, 3), per_cell=4, references=15)
WORDS = [
    " ".join(words)
    for words in np.random.default_rng(0).permuted(
        [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"] * 40
    ).reshape(-1, 12)
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 360 words, many of which become tokens."""
    folder = tmp_path_factory.mktemp("words")
    for part in range(10):
        (folder / f"{part}.txt").write_text("\n".join(WORDS[part::10]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def texts(words: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    plans = {"main": TextPlan(60_000, tokenizer="bpe:800"), "planted": TextPlan(of_main=True, canaries=PLAN)}
    return make_texts(tmp_path_factory.mktemp("made"), plans, [str(words)])


def test_a_canary_that_was_never_planted_has_one_over_ln_2_on_average() -> None:
    generator = np.random.default_rng(3)
    n, references = 200_000, 1_023
    # A rank among equals: each canary with references of its own, as independent trials need.
    ranks = generator.integers(1, references + 2, n)
    simulated = np.log2(references + 1) - np.log2(ranks)
    assert simulated.mean() == pytest.approx(null_exposure(references), abs=4 * NULL_EXPOSURE / math.sqrt(n))
    assert simulated.std() == pytest.approx(NULL_EXPOSURE, rel=0.02)
    assert null_exposure(10**6) == pytest.approx(NULL_EXPOSURE, abs=1e-4)


def test_exposure_over_losses_from_one_distribution_has_that_mean() -> None:
    generator = np.random.default_rng(4)
    means = [exposures(generator.normal(size=50), generator.normal(size=511)).mean() for _ in range(2_000)]
    # 50 canaries share 511 references, so that the spread is a little wider than 1/(ln 2 · √50).
    assert np.mean(means) == pytest.approx(null_exposure(511), abs=0.02)
    assert np.std(means) == pytest.approx(NULL_EXPOSURE * math.sqrt(1 / 50 + 1 / 511), rel=0.1)


def test_exposure_by_hand() -> None:
    references = np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert exposures(np.asarray([0.5, 1.5, 3.5, 9.0]), references).tolist() == [3.0, 2.0, 1.0, 0.0]


class Knows(nn.Module):
    """A reader who has learnt some rows by heart, and else finds every token alike."""

    def __init__(self, rows: np.ndarray, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rows, self.vocab_size = rows.tolist(), vocab_size

    def forward(self, tokens_BT: Tensor) -> Tensor:
        logits = torch.zeros(*tokens_BT.shape, self.vocab_size)
        for b, row in enumerate(tokens_BT.tolist()):
            for known in self.rows:
                if row[1:] == known[:-1]:
                    for t, token in enumerate(known):
                        logits[b, t, token] = 9.0
        return logits


def test_who_knows_a_canary_by_heart_has_the_highest_exposure_and_continues_it_and_no_other(
    texts: dict[str, Prepared],
) -> None:
    tokenizer = texts["main"].tokenizer
    canaries = make_canaries(PLAN, tokenizer)
    half = np.concatenate([canaries.cells[3], canaries.cells[1][:2]])

    found = memorised(Knows(half, tokenizer.vocab_size), canaries, tokenizer.end_of_text_id)

    assert found[3].exposure == math.log2(16)
    assert found[3].extracted == {8: 1.0, 16: 1.0, 32: 1.0}
    assert found[1].extracted == {8: 0.5, 16: 0.5, 32: 0.5}
    assert found[0].extracted == {8: 0.0, 16: 0.0, 32: 0.0}


def test_a_continuation_counts_only_if_every_token_of_it_is_the_likeliest(texts: dict[str, Prepared]) -> None:
    tokenizer = texts["main"].tokenizer
    canaries = make_canaries(PLAN, tokenizer)
    rows = canaries.cells[3].copy()
    rows[:, 20] = (rows[:, 20] + 1) % tokenizer.vocab_size  # within the 8 after the first 16; not after 8, nor after 32

    class Recites(Knows):
        def forward(self, tokens_BT: Tensor) -> Tensor:
            one_hot = torch.eye(self.vocab_size)[torch.tensor(self.rows)]
            return one_hot.repeat(-(-len(tokens_BT) // len(self.rows)), 1, 1)[: len(tokens_BT)]

    found = memorised(Recites(rows, tokenizer.vocab_size), canaries, tokenizer.end_of_text_id)
    assert found[3].extracted == {8: 1.0, 16: 0.0, 32: 1.0}


def test_canaries_are_the_same_each_time_and_made_of_whole_words(texts: dict[str, Prepared]) -> None:
    tokenizer = texts["main"].tokenizer
    once, again = (make_canaries(PLAN, tokenizer) for _ in range(2))
    assert np.array_equal(once.references, again.references)
    row = once.cells[1][0].tolist()
    assert tokenizer.encode(tokenizer.decode(row)) == row
    everything = np.concatenate([*once.cells.values(), once.references])
    assert len({tuple(each) for each in everything.tolist()}) == len(everything)


def test_bytes_have_no_words_to_make_canaries_of() -> None:
    with pytest.raises(DataError, match="whole words"):
        make_canaries(PLAN, ByteTokenizer())


def test_every_copy_lies_in_the_training_part_and_the_held_out_part_is_untouched(texts: dict[str, Prepared]) -> None:
    main, planted = texts["main"], texts["planted"]
    tokens = np.asarray(planted.training.tokens).tolist()
    said = ",".join(map(str, tokens))
    canaries = make_canaries(PLAN, main.tokenizer)

    for repeats, rows in canaries.cells.items():
        for row in rows.tolist():
            assert said.count(",".join(map(str, row))) == repeats
    assert np.array_equal(planted.held_out.tokens, main.held_out.tokens)
    assert planted.held_out_bytes() == main.held_out_bytes()
    assert planted.corpus_sha256 != main.corpus_sha256
    assert len(tokens) == len(main.training.tokens) + PLAN.planted * len(canaries.references[0])


def test_without_its_canaries_the_planted_text_is_the_main_text(texts: dict[str, Prepared]) -> None:
    main, planted = texts["main"], texts["planted"]
    said = "," + ",".join(map(str, np.asarray(planted.training.tokens).tolist())) + ","
    for row in make_canaries(PLAN, main.tokenizer).copies():
        said = said.replace("," + ",".join(map(str, row.tolist())) + ",", ",", 1)
    assert said.strip(",") == ",".join(map(str, np.asarray(main.training.tokens).tolist()))


def test_a_text_with_more_documents_keeps_the_held_out_part_and_never_trains_on_it(words: Path, tmp_path: Path) -> None:
    plans = {"main": TextPlan(20_000, tokenizer="bpe:800"), "more": TextPlan(of_main=True, more_bytes=20_000)}
    made = make_texts(tmp_path, plans, [str(words)])
    main, more = made["main"], made["more"]

    assert np.array_equal(more.held_out.tokens, main.held_out.tokens)
    assert more.training.header.n_bytes >= main.training.header.n_bytes + 20_000
    held_out = main.tokenizer.decode(np.asarray(main.held_out.tokens)[:60].tolist())
    assert held_out not in more.tokenizer.decode(np.asarray(more.training.tokens).tolist())
    assert open_shard(more.training.path).header.n_tokens == len(more.training.tokens)


def test_a_text_that_is_too_small_is_said_with_what_is_needed(words: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"this study needs 9,000,000: give more with --data"):
        make_texts(tmp_path, {"main": TextPlan(9_000_000, tokenizer="byte")}, [str(words)])
