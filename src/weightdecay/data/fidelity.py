"""How much of a text survives its tokenizer: text -> tokens -> text, and the share of unknown tokens.

A tokenizer that turns what it does not know into one token makes a text easier to predict than it is. The loss over
its tokens is then no measure of the text, and bits per byte, which compares tokenizers, would praise the worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weightdecay.data.tokenizer import Tokenizer

# Of a piece so many tokens are turned back, of a document so many pieces are tried, and so many documents in a row.
_SAMPLE_TOKENS = 512
_PIECES, _DOCUMENTS = 64, 256


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


class Trials(NamedTuple):
    """Pieces of text whose tokens were turned back, how many came back as another text, and the first of these."""

    tried: int = 0
    changed: int = 0
    first_change: tuple[str, ...] = ()


def is_tried(document: int, piece: int) -> bool:
    """Whether a piece of a document, both counted from 0, is one whose tokens are turned back.

    Of 256 documents in a row, then of every second of 256 more, every fourth …: late documents are seen, at a bounded
    cost.
    """
    among = document < 20 * _DOCUMENTS and document % (1 << (document // _DOCUMENTS)) == 0
    return among and piece < _PIECES


def trials(tokenizer: Tokenizer, encoded: Iterable[tuple[str, Sequence[int]]]) -> Trials:
    """What comes back of pieces of text from the beginnings of their tokens."""
    changes = [_change(tokenizer, text, ids) for text, ids in encoded]
    found = [change for change in changes if change]
    return Trials(len(changes), len(found), found[0] if found else ())


def _change(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> tuple[str, ...]:
    """What a text has and what became of it, some characters of each, where they part; empty if they do not."""
    back = tokenizer.decode(ids[:_SAMPLE_TOKENS])
    if len(ids) > _SAMPLE_TOKENS:
        back = back.rstrip("\ufffd")  # the tokens may end within a character
        text = text[: len(back)]
    if back == text:
        return ()
    parting = (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b)
    start = max(0, next(parting, min(len(text), len(back))) - 8)
    return text[start : start + 24], back[start : start + 24]


class FidelityProbe:
    """Measures while a corpus is written as tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._unknown_id = tokenizer.unknown_id
        self._n_tokens = self._unknown = 0
        self._trials = Trials()

    def count(self, tokens: npt.ArrayLike, found: Trials) -> None:
        """Tokens as they are written, and what was tried of their text."""
        ids = np.asarray(tokens)
        self._n_tokens += ids.size
        if self._unknown_id is not None:
            self._unknown += int((ids == self._unknown_id).sum())
        before = self._trials
        self._trials = Trials(
            before.tried + found.tried, before.changed + found.changed, before.first_change or found.first_change
        )

    def result(self) -> Fidelity:
        """What was found so far."""
        return Fidelity(self._n_tokens, self._unknown, *self._trials)
