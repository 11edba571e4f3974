from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdecay.data import pieces as pieces_module
from weightdecay.data.corpus import Corpus
from weightdecay.data.pieces import ANYWHERE, Cuts, cuts_of_pattern, pieces
from weightdecay.data.tokenizer import HuggingFaceTokenizer, TiktokenTokenizer, Tokenizer

# Everything a splitting expression could trip over at a cut: spaces of every kind, signs, contractions, marks, digits.
snippets = st.sampled_from(
    [
        *"ab1;'(\u0301字²_/",
        *["\n", "\n\n", " \n", "\n ", "\t\n", "\n\t", "  ", "\u00a0", "\u2028", "\x85", "\x1c", "\x1f\n", "\x0b", "\r"],
        *[
            "'s",
            "'LL",
            "x\n",
            ";\n",
            ";\n\n",
            "1\n",
            "字\n",
            "é\n",
            "e\u0301\n",
            "'\n",
            "/\n",
            "_\n",
            "𝟘\n",
            "<|endoftext|>",
        ],
        *["the ", " the", "return x\n    ", "def "],
    ]
)
texts = st.lists(snippets, max_size=40).map("".join)


def blocks_of(text: str, size: int) -> Iterable[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def tokens_by_pieces(tokenizer: Tokenizer, text: str, size: int, block: int) -> list[int]:
    cut = list(pieces(blocks_of(text, block), tokenizer.cuts, size=size, longest=10_000))
    assert "".join(cut) == text
    return [token for piece in tokenizer.encode_batch(cut) for token in piece]


@cache
def split_by(pattern: str, bpe: Tokenizer, normalizer: str | None = None) -> HuggingFaceTokenizer:
    """Our merges behind another tokenizer's splitting expression."""
    pipeline = json.loads(bpe.to_json())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pipeline["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    pipeline["normalizer"] = normalizer and {"type": normalizer}
    return HuggingFaceTokenizer(json.dumps(pipeline))


@cache
def tiktoken_of(pattern: str, bpe: Tokenizer) -> TiktokenTokenizer:
    """Our merges in the other library: its ranks are our ids but one, the end of text being ours at 0."""
    tiktoken = pytest.importorskip("tiktoken")
    alphabet = {character: byte for byte, character in _byte_alphabet().items()}
    vocabulary = json.loads(bpe.to_json())["model"]["vocab"]
    ranks = {bytes(alphabet[c] for c in token): index - 1 for token, index in vocabulary.items() if index}
    special = {"<|endoftext|>": len(ranks)}
    return TiktokenTokenizer(tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special))


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's spelling of every byte as a printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


@given(text=texts, size=st.integers(1, 12), block=st.integers(1, 50))
@settings(max_examples=400)
def test_the_pieces_of_a_text_have_the_tokens_of_the_whole(bpe: Tokenizer, text: str, size: int, block: int) -> None:
    assert tokens_by_pieces(bpe, text, size, block) == bpe.encode(text)


@pytest.mark.parametrize("name", ["_LLAMA3", "_QWEN2", "_QWEN2 with NFC", "_O200K", "_CL100K", "_GPT2"])
def test_so_do_those_of_the_published_splitting_expressions(name: str, bpe: Tokenizer) -> None:
    pattern = getattr(pieces_module, name.split()[0])
    if name == "_GPT2":
        tokenizers: list[Tokenizer] = [tiktoken_of(each, bpe) for each in pattern]
    elif name in ("_CL100K", "_O200K"):
        tokenizers = [tiktoken_of(pattern, bpe)]
    else:
        tokenizers = [split_by(pattern, bpe, "NFC" if name.endswith("NFC") else None)]

    @given(text=texts, size=st.integers(1, 12), block=st.integers(1, 50))
    @settings(max_examples=200)
    def the_tokens_are_the_same(text: str, size: int, block: int) -> None:
        for tokenizer in tokenizers:
            assert tokenizer.cuts is not None
            assert tokens_by_pieces(tokenizer, text, size, block) == tokenizer.encode(text)

    the_tokens_are_the_same()


# Words and spaces no longer than three: every eight characters have the end of a word.
spaced = st.lists(
    st.tuples(st.text("ab1字é", min_size=1, max_size=3), st.text(" \t\u00a0\x1f", min_size=1, max_size=3)),
    min_size=6,
    max_size=20,
).map(lambda words: "".join(word + space for word, space in words))


@given(text=spaced, block=st.integers(1, 50))
def test_a_line_that_is_cut_at_words_has_the_tokens_of_the_whole_too(bpe: Tokenizer, text: str, block: int) -> None:
    for tokenizer in (bpe, split_by(pieces_module._LLAMA3, bpe)):
        cut = list(pieces(blocks_of(text, block), tokenizer.cuts, size=1, longest=16))
        assert all(len(piece) < 16 for piece in cut[:-1])
        assert [token for piece in tokenizer.encode_batch(cut) for token in piece] == tokenizer.encode(text)


@given(text=texts)
def test_both_libraries_give_the_same_tokens(bpe: Tokenizer, text: str) -> None:
    """Two implementations of GPT-2's tokenization, ours but for the end of text at 0 and theirs."""
    for pattern in pieces_module._GPT2:
        theirs = tiktoken_of(pattern, bpe)
        assert [token + 1 for token in theirs.encode(text)] == bpe.encode(text)
        assert theirs.decode(theirs.encode(text)) == text


def test_real_files_cut_as_they_are_in_use_have_the_tokens_of_the_whole(bpe: Tokenizer, stdlib: Corpus) -> None:
    texts = [document.text for document in stdlib.documents() if len(document.text.encode()) > 60_000]
    assert len(texts) > 15
    for text in texts[::2]:
        cut = list(pieces([text], bpe.cuts))
        assert len(cut) >= 3
        assert max(map(len, cut)) < 20_000
        assert [token for piece in bpe.encode_batch(cut) for token in piece] == bpe.encode(text)


def test_a_tokenizer_whose_splits_are_not_known_gets_whole_texts(bpe: Tokenizer) -> None:
    pipeline = json.loads(bpe.to_json())
    splits = [
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        None,
    ]
    for pre_tokenizer in splits:
        tokenizer = HuggingFaceTokenizer(json.dumps({**pipeline, "pre_tokenizer": pre_tokenizer}))
        assert tokenizer.cuts is None
    for normalizer in ({"type": "Lowercase"}, {"type": "NFKC"}):
        assert HuggingFaceTokenizer(json.dumps({**pipeline, "normalizer": normalizer})).cuts is None
    assert split_by(r"\w+|\W+", bpe).cuts is None
    assert list(pieces(["a\n" * 9, "b"], None, size=2)) == ["a\n" * 9 + "b"]
    assert list(pieces(["", ""], None)) == []


def test_a_token_added_for_texts_that_reaches_over_a_line_forbids_cuts(bpe: Tokenizer) -> None:
    pipeline = json.loads(bpe.to_json())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for changed, safe in (
        ({"content": "<x>"}, True),
        ({"content": "a\nb"}, False),
        ({"content": "y", "rstrip": True}, False),
    ):
        token = {"id": bpe.vocab_size, **plain, **changed}
        tokenizer = HuggingFaceTokenizer(json.dumps({**pipeline, "added_tokens": [*pipeline["added_tokens"], token]}))
        assert (tokenizer.cuts is not None) is safe


@given(text=st.text(), size=st.integers(1, 5), longest=st.integers(6, 12), block=st.integers(1, 20))
def test_no_piece_is_empty_or_longer_than_allowed_and_together_they_are_the_text(
    text: str, size: int, longest: int, block: int
) -> None:
    gpt2 = cuts_of_pattern(pieces_module._GPT2[0])
    assert gpt2 is not None
    for cuts in (gpt2, ANYWHERE):
        cut = list(pieces(blocks_of(text, block), cuts, size=size, longest=longest))
        assert "".join(cut) == text
        assert all(0 < len(piece) <= longest for piece in cut)


def test_a_long_line_is_cut_at_a_word_and_a_long_word_anywhere() -> None:
    cuts: Cuts | None = cuts_of_pattern(pieces_module._GPT2[0])
    first, *_ = pieces(["two words " * 20], cuts, size=10, longest=40)
    assert first == "two words two words two"
    assert list(pieces(["x" * 100], cuts, size=10, longest=40)) == ["x" * 40, "x" * 40, "x" * 20]
