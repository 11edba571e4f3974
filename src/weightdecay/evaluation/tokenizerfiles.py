"""A run's tokenizer as the files that transformers loads.

Bytes and tiktoken's encodings are no `tokenizer.json` of the `tokenizers` library, but can be said as byte-level BPEs:
bytes are a vocabulary without merges; an encoding merges whatever pair makes the token of the lowest rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weightdecay.data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    HuggingFaceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    load_tokenizer,
)
from weightdecay.errors import DataError

THEIRS, OURS = "tokenizer.json", "weightdecay_tokenizer.json"
# Said by both before a translation is trusted.
_SAMPLE = (
    "", " ", "The end.\n\n  It's 3,141.59 — isn't it?\r\n\tdef f(x): return x**2  # λ ≠ 0 \n",
    "日本語, emoji 👩‍👩‍👧 and ﬁ",
    "a" * 50 + "ZZZ!!!???", END_OF_TEXT, "".join(map(chr, range(1, 600))),
)  # fmt: skip


def write_tokenizer(path: Path, tokenizer: Tokenizer, context: int) -> str:
    """Write `tokenizer.json` and its settings.

    A tokenizer of ours stands beside its translation, so that it is still known by its name.

    Args:
        path: an existing directory.
        context: the longest text that the model takes, in tokens.

    Returns:
        Why transformers has no such tokenizer; empty where it has.
    """
    translated = tokenizer
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        (path / OURS).write_text(tokenizer.to_json(), encoding="utf-8")
        try:
            translated = HuggingFaceTokenizer(json.dumps(_translation(tokenizer), ensure_ascii=False))
        except DataError as error:
            return f"no tokenizer for transformers: {error}"
        if any(tokenizer.encode(text) != translated.encode(text) for text in _SAMPLE):
            return f"no tokenizer for transformers: its own BPE cuts some texts otherwise; {OURS} is for weightdecay"
    (path / THEIRS).write_text(translated.to_json(), encoding="utf-8")
    end = translated.decode([translated.end_of_text_id])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return ""


def tokenizers_of(path: Path) -> dict[str, Tokenizer]:
    """The tokenizer of a directory in each form in which it lies there, by the file's name."""
    return {name: load_tokenizer(path / name) for name in (THEIRS, OURS) if (path / name).is_file()}


def _translation(tokenizer: Tokenizer) -> dict[str, Any]:
    """The same tokenizer in the words of the `tokenizers` library.

    Raises:
        DataError: one that is neither bytes nor an encoding.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if isinstance(tokenizer, ByteTokenizer):
        ranks, specials, pre_tokenizer = {bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256}, byte_level
    elif isinstance(tokenizer, TiktokenTokenizer):
        ranks, specials = tokenizer.ranks, tokenizer.special_tokens
        split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    else:
        raise DataError(f"{type(tokenizer).__name__} has no counterpart in the tokenizers library")
    letters = _letters_of_bytes()
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    model = {
        "type": "BPE",
        "vocab": {spelt[token]: rank for token, rank in ranks.items()},
        "merges": [[spelt[left], spelt[right]] for left, right in _merges(ranks)],
        "ignore_merges": True,  # a piece that is a token is that token
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": content, **plain} for content, index in sorted(specials.items(), key=_index)]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, the one of the lowest rank first."""
    return [
        (token[:cut], token[cut:])
        for token in sorted(ranks, key=lambda token: ranks[token])
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]


def _letters_of_bytes() -> list[str]:
    """GPT-2's alphabet, in which each byte is one visible character.

    Reference: openai/gpt-2 `src/encoder.py`, bytes_to_unicode.
    """
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]


def _index(special: tuple[str, int]) -> int:
    return special[1]
