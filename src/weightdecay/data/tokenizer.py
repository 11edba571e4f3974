"""Text to token ids and back, exactly.

    from pathlib import Path
    from weightdecay.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path("runs/first/tokenizer.json"))
    tokenizer.decode(tokenizer.encode("λ")) == "λ"

The end-of-text token stands between documents and is put there by us alone: "<|endoftext|>" in a text is nine ordinary
words and signs, or a text could end itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightdecay.data.pieces import ANYWHERE, Cuts, cuts_of_pattern, cuts_of_pipeline
from weightdecay.errors import DamagedError, DataError, MissingExtraError
from weightdecay.storage import whole_file

END_OF_TEXT = "<|endoftext|>"

# The special tokens that published tokenizers end a document with, the likeliest first.
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|end▁of▁sentence|>", "<eos>", "</s>", "[EOS]")


class Tokenizer(ABC):
    """Text to ids below `vocab_size` and back; the same text gives the same ids, always.

    Args:
        vocab_size: ids are 0 … vocab_size − 1.
        end_of_text_id: the token that ends a document; no text is ever encoded to it.
        unknown_id: the token that stands for what the vocabulary has no token for; None if all text has tokens.
        cuts: where a text may be cut so that the tokens of its pieces are the tokens of the whole; None if nowhere.
    """

    vocab_size: int
    end_of_text_id: int
    unknown_id: int | None = None
    cuts: Cuts | None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without an end-of-text token."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 by themselves show as U+FFFD."""

    @abstractmethod
    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """How many bytes of text each id stands for, [vocab_size], end-of-text 0; None where that is not fixed."""

    @abstractmethod
    def to_json(self) -> str:
        """All of it as text, for `load_tokenizer`."""

    @cached_property
    def sha256(self) -> str:
        """Names the tokenizer: tokens written with one are meaningless to another."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes `tokenizer.json`, whole or not at all."""
        with whole_file(path) as file:
            file.write(self.to_json().encode())


class ByteTokenizer(Tokenizer):
    """A token a byte of UTF-8, and 256 for the end of a text."""

    vocab_size = 257
    end_of_text_id = 256
    cuts = ANYWHERE

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(_utf8(text)) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        parts, start = [], 0
        for end, token in enumerate([*ids, self.end_of_text_id]):
            if token == self.end_of_text_id:
                parts.append(bytes(ids[start:end]).decode(errors="replace"))
                start = end + 1
        return END_OF_TEXT.join(parts)

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        lengths = np.ones(self.vocab_size, np.int64)
        lengths[self.end_of_text_id] = 0
        return lengths

    def to_json(self) -> str:
        return json.dumps({"format": "weightdecay-byte", "version": 1})


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` of the `tokenizers` library, ours or anyone's.

    Args:
        json_text: the file's content; its hash names the tokenizer.
        where: what to call it in errors.

    Raises:
        DataError: not such a file, without an end-of-text token, or one that is not the same each time (dropout).
    """

    def __init__(self, json_text: str, where: str = "tokenizer.json") -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{where}: not a tokenizer.json of the tokenizers library: {error}") from None
        self._json_text = json_text
        self._pipeline: dict[str, Any] = json.loads(json_text)
        if self._pipeline["model"].get("dropout"):
            raise DataError(f"{where}: drops merges at random, so no text has fixed tokens; set model.dropout to null")
        self._tokenizer.encode_special_tokens = True  # special tokens in a text are ordinary text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_text_id = self._end_of_text(vocabulary, where)
        unknown = _unknown_id(self._pipeline["model"], vocabulary)
        # GPT-2's file names its end of text here, too, which bytes never need.
        self.unknown_id = None if unknown == self.end_of_text_id else unknown
        self.cuts = cuts_of_pipeline(self._pipeline)

    def _end_of_text(self, vocabulary: dict[str, int], where: str) -> int:
        special = {token["content"] for token in self._pipeline["added_tokens"] if token["special"]}
        for name in _KNOWN_ENDS:
            if name in special:
                return vocabulary[name]
        raise DataError(
            f"{where}: has no end-of-text token to stand between documents; add one of "
            f"{', '.join(_KNOWN_ENDS)} to it as a special token"
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            _utf8(text)
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library has no class of its own for it
            raise DataError(
                f"the tokenizer has no tokens for some of the text ({error}): give it an unknown token or the bytes to "
                "fall back on, or take another, like bpe:4096"
            ) from None
        return [one.ids for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        if (self._pipeline["decoder"] or {}).get("type") != "ByteLevel" or self._pipeline["normalizer"]:
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, index in self._pipeline["model"]["vocab"].items():
            lengths[index] = len(token)  # the byte-level alphabet spells every byte as one character
        for token in self._pipeline["added_tokens"]:
            lengths[token["id"]] = len(token["content"].encode())
        lengths[self.end_of_text_id] = 0
        return lengths

    def to_json(self) -> str:
        return self._json_text


class TiktokenTokenizer(Tokenizer):
    """An encoding of the `tiktoken` library; saved as a whole, so that a run needs no download to be read.

    Args:
        encoding: a `tiktoken.Encoding`.
    """

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.end_of_text_id = encoding.eot_token
        self.cuts = cuts_of_pattern(self.pattern)

    @property
    def ranks(self) -> dict[bytes, int]:
        """Each token's bytes and id, which is also its place among the merges."""
        ranks: dict[bytes, int] = self._encoding._mergeable_ranks
        return ranks

    @property
    def special_tokens(self) -> dict[str, int]:
        """Those that no text is encoded to."""
        tokens: dict[str, int] = self._encoding._special_tokens
        return tokens

    @property
    def pattern(self) -> str:
        """The regular expression that cuts a text into pieces."""
        pattern: str = self._encoding._pat_str
        return pattern

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            _utf8(text)
        return [self._encoding.encode_ordinary(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._encoding.decode(list(ids))
        return text

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, index in self.ranks.items():
            lengths[index] = len(token)
        return lengths

    def to_json(self) -> str:
        ranks = {base64.b64encode(token).decode(): rank for token, rank in self.ranks.items()}
        return json.dumps(
            {
                "format": "weightdecay-tiktoken",
                "version": 1,
                "name": self._encoding.name,
                "pattern": self.pattern,
                "special_tokens": self.special_tokens,
                "ranks": ranks,
            }
        )


def _unknown_id(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    """The token that a model of the `tokenizers` library puts in the place of what it does not know."""
    if (index := model.get("unk_id")) is not None:  # Unigram counts
        return int(index)
    name = model.get("unk_token")  # BPE, WordPiece and WordLevel call it by name
    return vocabulary.get(name) if name is not None else None


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from the `tokenizer.json` of a run, of prepared data or of anyone.

    Raises:
        DataError: there is no such file, or it is of an unknown kind.
        DamagedError: the file is not JSON.
    """
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DamagedError(f"{path}: damaged, not JSON: {error}") from None
    written_as = content.get("format", "") if isinstance(content, dict) else ""
    if written_as.startswith("weightdecay-") and content.get("version") != 1:
        raise DataError(f"{path}: written by a newer weightdecay (format version {content.get('version')}); update it")
    if written_as == "weightdecay-byte":
        return ByteTokenizer()
    if written_as == "weightdecay-tiktoken":
        return TiktokenTokenizer(_restored_encoding(content, path))
    return HuggingFaceTokenizer(text, str(path))


def _restored_encoding(content: dict[str, Any], path: Path) -> Any:
    try:
        import tiktoken
    except ImportError:
        raise MissingExtraError(f"the tokenizer {path}", "tiktoken") from None
    try:
        return tiktoken.Encoding(
            content["name"],
            pat_str=content["pattern"],
            mergeable_ranks={base64.b64decode(token): rank for token, rank in content["ranks"].items()},
            special_tokens=content["special_tokens"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text is not Unicode at character {error.start}: a lone surrogate, which has no bytes"
        ) from None
