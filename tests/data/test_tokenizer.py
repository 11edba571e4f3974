from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data.corpus import Corpus, open_corpus
from weightdecay.data.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    load_tokenizer,
)
from weightdecay.data.tokenizer_specs import make_tokenizer
from weightdecay.errors import DamagedError, DataError, MissingExtraError

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text("<|endoftx>\n '0aλ😀")


@pytest.fixture(scope="session")
def tiktoken_bytes() -> TiktokenTokenizer:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return TiktokenTokenizer(
        tiktoken.Encoding("tiny", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 258})
    )


@pytest.fixture(params=["byte", "bpe", "tiktoken"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte":
        return ByteTokenizer()
    chosen: Tokenizer = request.getfixturevalue("bpe" if request.param == "bpe" else "tiktoken_bytes")
    return chosen


def test_every_text_comes_back_and_no_text_ends_itself(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths()
    assert lengths is not None
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.end_of_text_id] == 0

    @given(text=texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_of_text_id not in ids
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        assert lengths[np.array(ids, np.int64)].sum() == len(text.encode())
        assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]

    check()


def test_the_name_of_the_end_of_text_is_ordinary_text(tokenizer: Tokenizer) -> None:
    for text in ("<|endoftext|>", "a<|endoftext|>b", "</|endoftext|>", " <|endoftext|> ", "</s><s>[EOS]"):
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_text_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_end_of_text_is_shown_when_decoded(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one"), tokenizer.end_of_text_id, *tokenizer.encode("λ"), tokenizer.end_of_text_id]
    assert tokenizer.decode(ids) == "one<|endoftext|>λ<|endoftext|>"


def test_a_saved_tokenizer_is_the_same_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "run" / "tokenizer.json"
    tokenizer.save(path)
    restored = load_tokenizer(path)
    assert type(restored) is type(tokenizer)
    assert restored.sha256 == tokenizer.sha256
    assert (restored.vocab_size, restored.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)
    text = "The decay of the weights: 0.1·η, <|endoftext|>\n"
    assert restored.encode(text) == tokenizer.encode(text)
    restored.save(path)
    assert load_tokenizer(path).sha256 == tokenizer.sha256
    assert make_tokenizer(str(path)).sha256 == tokenizer.sha256


def test_half_a_surrogate_pair_is_refused_by_name(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="character 2: a lone surrogate"):
        tokenizer.encode("ab\udc80")


def test_different_tokenizers_have_different_names(bpe: Tokenizer, tiktoken_bytes: Tokenizer, books: Path) -> None:
    corpus = open_corpus([str(books)])
    cache = books.parent / "cache"
    others = [make_tokenizer(spec, corpus, cache_dir=cache).sha256 for spec in ("byte", "bpe:300", "bpe:301")]
    assert len({*others, bpe.sha256, tiktoken_bytes.sha256}) == 5


def test_bpe_has_the_size_asked_for_or_what_the_text_gives(books: Path, tmp_path: Path) -> None:
    corpus = open_corpus([str(books)])
    assert make_tokenizer("bpe:257", corpus, cache_dir=tmp_path).vocab_size == 257
    assert make_tokenizer("bpe:280", corpus, cache_dir=tmp_path).vocab_size == 280
    assert 280 < make_tokenizer("bpe:100000", corpus, cache_dir=tmp_path).vocab_size < 600


def test_bpe_learns_from_the_training_part_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    head, tail = "common words of a text\n" * 1000, "zyxwvut\n" * 100
    path.write_text(head + tail)
    corpus = open_corpus([str(path)])
    assert "zyxwvut" in next(corpus.held_out()).text
    vocabulary = json.loads(make_tokenizer("bpe:400", corpus, cache_dir=tmp_path).to_json())["model"]["vocab"]
    assert "Ġwords" in vocabulary
    assert not any("zy" in token for token in vocabulary)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_bpe_is_the_same_in_another_process_with_any_number_of_threads(
    threads: str, books: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from weightdecay.data.corpus import open_corpus; "
        "from weightdecay.data.tokenizer_specs import make_tokenizer; "
        "print(make_tokenizer('bpe:400', open_corpus([sys.argv[1]]), cache_dir=Path(sys.argv[2])).sha256)"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
    there = subprocess.run(
        [sys.executable, "-c", script, str(books), str(tmp_path / "there")],
        capture_output=True, text=True, check=True, env=environment,
    ).stdout.strip()  # fmt: skip
    assert make_tokenizer("bpe:400", open_corpus([str(books)]), cache_dir=tmp_path / "here").sha256 == there


def test_a_trained_tokenizer_is_taken_from_the_cache_and_a_damaged_one_is_trained_again(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus([str(books)])
    first = make_tokenizer("bpe:300", corpus, cache_dir=tmp_path)
    (cached,) = (tmp_path / "tokenizers").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "training", lambda _self: pytest.fail("trained although it is cached"))
        assert make_tokenizer("bpe:300", corpus, cache_dir=tmp_path).sha256 == first.sha256
    cached.write_bytes(cached.read_bytes()[:100])
    assert make_tokenizer("bpe:300", corpus, cache_dir=tmp_path).sha256 == first.sha256
    assert load_tokenizer(cached).sha256 == first.sha256


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe:256", "N from 257"),
        ("bpe:2000000", "to 1048576"),
        ("bpe:9" + "9" * 5000, "to 1048576"),
        ("bpe:", "N from 257"),
        ("bpe:4k", "N from 257"),
        ("bpe:-5", "N from 257"),
        ("bytes", "did you mean 'byte'"),
        ("sentencepiece", "known are: .*byte"),
        ("gone/tokenizer.json", "no such file"),
        ("", "unknown tokenizer ''"),
        ("tiktoken:gpt3", "did you mean 'gpt2'"),
        ("bpe:300", "trained on a corpus, and none was given"),
    ],
)
def test_a_specification_of_nothing_is_refused(spec: str, message: str) -> None:
    if spec.startswith("tiktoken"):
        pytest.importorskip("tiktoken")
    with pytest.raises(DataError, match=message):
        make_tokenizer(spec)


def test_a_tiktoken_name_whose_files_cannot_be_had_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there, whatever the network
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(DataError, match="TIKTOKEN_CACHE_DIR"):
        make_tokenizer("tiktoken:cl100k_base")


def test_a_missing_library_is_named_by_its_extra(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(MissingExtraError, match=re.escape("weightdecay[tiktoken]")):
        make_tokenizer("tiktoken:gpt2", open_corpus([str(books)]), cache_dir=tmp_path)


def test_bytes_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert make_tokenizer("byte").encode("λ") == [0xCE, 0xBB]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", DamagedError, "not JSON"),
        ("[1]", DataError, "not a tokenizer.json"),
        ('{"format": "weightdecay-byte", "version": 2}', DataError, "newer weightdecay"),
        ('{"format": "weightdecay-tiktoken", "version": 1}', DamagedError, "damaged"),
        ('{"model": {}}', DataError, "not a tokenizer.json"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(
    content: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        load_tokenizer(path)


def test_foreign_tokenizers_that_cannot_do_the_work_are_refused(bpe: Tokenizer) -> None:
    pipeline = json.loads(bpe.to_json())
    with pytest.raises(DataError, match="no end-of-text token"):
        HuggingFaceTokenizer(json.dumps({**pipeline, "added_tokens": []}))
    with pytest.raises(DataError, match=r"model\.dropout"):
        HuggingFaceTokenizer(json.dumps({**pipeline, "model": {**pipeline["model"], "dropout": 0.1}}))


def test_a_foreign_tokenizer_is_taken_as_it_is_but_cuts_and_adds_nothing(bpe: Tokenizer) -> None:
    """Truncation, padding and the tokens a post-processor adds have no place in a stream of text."""
    pipeline = json.loads(bpe.to_json())
    pipeline["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pipeline["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 5, "pad_type_id": 0,
        "pad_token": "x",
    }  # fmt: skip
    end = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    pipeline["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {"<|endoftext|>": end},
    }  # fmt: skip
    foreign = HuggingFaceTokenizer(json.dumps(pipeline))
    for text in ("hi", "a text of more than four tokens, however it is cut\n" * 10):
        assert foreign.encode(text) == bpe.encode(text)


def test_bytes_of_a_token_are_not_known_where_the_text_is_changed_first(bpe: Tokenizer) -> None:
    pipeline = json.loads(bpe.to_json())
    assert HuggingFaceTokenizer(json.dumps({**pipeline, "normalizer": {"type": "NFC"}})).byte_lengths() is None
