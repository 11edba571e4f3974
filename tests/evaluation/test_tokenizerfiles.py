"""Tokenizers of ours in the words of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdecay.data.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    load_tokenizer,
)
from weightdecay.errors import ConfigError
from weightdecay.evaluation.exporting import export
from weightdecay.evaluation.tokenizerfiles import OURS, THEIRS, _translation, write_tokenizer
from weightdecay.recipes.schema import recipe
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train

# GPT-4's, with what makes it hard: possessive quantifiers, letters of any case, look-ahead.
PATTERN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"""
    r"""\s+(?!\S)|\s+"""
)
WORDS = ("th", "he", "the", " t", " th", " the", "in", "ing", "an", " an", " and", "er", "es", "re", "11", "111", "  ",
         "\u03bb", "aa", "aaa", "aaaa")  # fmt: skip


def encoding() -> TiktokenTokenizer:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {word.encode(): 256 + index for index, word in enumerate(WORDS)}
    specials = {"<|endoftext|>": len(ranks), "<|more|>": len(ranks) + 1}
    made = tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    return TiktokenTokenizer(made)


TOKENIZERS: dict[str, Tokenizer] = {"byte": ByteTokenizer(), "tiktoken": encoding()}
TRANSLATED = {name: HuggingFaceTokenizer(json.dumps(_translation(one))) for name, one in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.sampled_from("thein gand1 er\n\t'S\u03bb\u65e5!<|>") | st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, max_examples=300)
def test_a_translation_has_the_same_tokens(name: str, text: str) -> None:
    ours, theirs = TOKENIZERS[name], TRANSLATED[name]
    ids = ours.encode(text)
    assert theirs.encode(text) == ids
    assert theirs.decode(ids) == ours.decode(ids)
    assert (theirs.vocab_size, theirs.end_of_text_id) == (ours.vocab_size, ours.end_of_text_id)


@pytest.mark.transformers
@pytest.mark.parametrize("name", TOKENIZERS)
def test_transformers_loads_the_translation(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert write_tokenizer(tmp_path, TOKENIZERS[name], context=64) == ""
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the thing and 1111 \u03bb's aaaaa\n\n  x", ""):
        assert theirs(text).input_ids == TOKENIZERS[name].encode(text)
    assert theirs.eos_token_id == TOKENIZERS[name].end_of_text_id
    assert load_tokenizer(tmp_path / OURS).sha256 == TOKENIZERS[name].sha256


def test_training_goes_on_under_either_name_of_the_tokenizer(small_text: Path, tmp_path: Path) -> None:
    values = {
        "data.sources": (str(small_text),), "data.tokenizer": "byte", "model.n_layers": 1, "model.d_model": 16,
        "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 64, "run.steps": 1,
    }  # fmt: skip
    made = train(recipe("llama2:nano").config(values | {"run.out": str(tmp_path / "run")}), reporter=SilentReporter())
    out = export(made, tmp_path / "out", print)
    assert out.remark == ""
    for number, tokenizer in enumerate(("byte", str(out.path / THEIRS))):
        on = {"run.init_from": str(out.path), "data.tokenizer": tokenizer, "run.out": str(tmp_path / f"on{number}")}
        train(recipe("llama2:nano").config(values | on), reporter=SilentReporter())
    other = {"run.init_from": str(out.path), "data.tokenizer": "bpe:257", "run.out": str(tmp_path / "other")}
    with pytest.raises(ConfigError, match=r"another tokenizer than the data: give --tokenizer .*/out/tokenizer\.json"):
        train(recipe("llama2:nano").config(values | other), reporter=SilentReporter())


def test_an_encoding_that_cannot_be_said_is_kept_in_our_form_alone(tmp_path: Path) -> None:
    """A pattern that leaves letters out, which tiktoken drops and the other library keeps."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)}
    made = tiktoken.Encoding("odd", pat_str=r"[0-9]+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256})
    said = write_tokenizer(tmp_path, TiktokenTokenizer(made), context=64)
    assert said.startswith("no tokenizer for transformers: its own BPE cuts some texts otherwise")
    assert [path.name for path in tmp_path.iterdir()] == [OURS]
