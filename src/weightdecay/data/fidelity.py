"""How much of a text survives its tokenizer: text -> tokens -> text, and the share of unknown tokens.

A tokenizer that turns what it does not know into one token makes a text easier to predict than it is. The loss over
its tokens is then no measure of the text, and bits per byte, which compares tokenizers, would praise the worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weightdecay.data.reading import Block, Document
from weightdecay.data.tokenizer import Tokenizer

# Of each document so much is tried, and so much in all: a second of work at the most.
_SAMPLE_CHARACTERS = 2_048
_SAMPLES = 256


@dataclass(frozen=True)
class Fidelity:
    """What was found.

    Attributes:
        n_tokens, unknown_tokens: of the whole corpus.
        tried, changed: samples, and those of them that came back as another text.
        first_change: a text that did and what became of it, some characters of each; empty if none did.
    """

    n_tokens: int
    unknown_tokens: int
    tried: int
    changed: int
    first_change: tuple[str, ...] = ()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Fidelity:
        """What corpus.json says."""
        return cls(**{**record, "first_change": tuple(record["first_change"])})

    @classmethod
    def of_tokens(cls, tokenizer: Tokenizer, tokens: npt.NDArray[Any]) -> Fidelity:
        """As much as tokens tell without the text that they were made of."""
        unknown = 0 if tokenizer.unknown_id is None else int((tokens == tokenizer.unknown_id).sum())
        return cls(int(tokens.size), unknown, 0, 0)

    @property
    def loses_text(self) -> bool:
        """Whether bits per byte of this text would mean nothing."""
        return bool(self.unknown_tokens or self.changed)

    def remark(self) -> str:
        """What is lost, in words; empty for nothing."""
        if not self.loses_text:
            return ""
        unknown = f"{100 * self.unknown_tokens / max(1, self.n_tokens):.3g} % of the tokens are its unknown token"
        changed = f"{self.changed} of {self.tried} samples come back as another text"
        shown = " ({!r} as {!r})".format(*self.first_change) if self.first_change else ""
        said = [unknown] if self.unknown_tokens else []
        said += [changed + shown] if self.changed else []
        return f"the tokenizer loses text: {', '.join(said)}; losses are of what it keeps, without bits per byte"


class FidelityProbe:
    """Measures while a corpus is written as tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._n_tokens = self._unknown = self._tried = self._changed = 0
        self._first_change: tuple[str, ...] = ()

    def count(self, tokens: npt.ArrayLike) -> None:
        """Tokens as they are written."""
        ids = np.asarray(tokens)
        self._n_tokens += ids.size
        if (unknown := self._tokenizer.unknown_id) is not None:
            self._unknown += int((ids == unknown).sum())

    def sampled(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents; the beginnings of the first ones, and then of ever fewer, are tried as they go by."""
        for index, document in enumerate(documents):
            # 256 in a row, then every second of 256 more, every fourth …: late documents are seen, at a bounded cost.
            tried = index % (1 << (index // _SAMPLES)) == 0 if index < 20 * _SAMPLES else False
            yield self._trying(document) if tried else document

    def _trying(self, document: Document) -> Document:
        def read() -> Iterator[Block]:
            for number, block in enumerate(document.read()):
                if number < _SAMPLES // 4:
                    self._try(block.text[:_SAMPLE_CHARACTERS])
                yield block

        return Document(document.path, read)

    def _try(self, text: str) -> None:
        if not text:
            return
        self._tried += 1
        back = self._tokenizer.decode(self._tokenizer.encode(text))
        if back == text:
            return
        self._changed += 1
        if not self._first_change:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back))
            )
            start = max(0, at - 8)
            self._first_change = (text[start : start + 24], back[start : start + 24])

    def result(self) -> Fidelity:
        """What was found so far."""
        return Fidelity(self._n_tokens, self._unknown, self._tried, self._changed, self._first_change)
