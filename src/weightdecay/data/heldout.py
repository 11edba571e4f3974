"""Which part of a corpus is held out: about 5 % of its bytes, whole documents where that can be had.

Documents are taken in the order of a salted hash of their path, each one that fits, until 5 % of the bytes are
reached and never more than 6 %. Counting documents instead would swing: of the standard library's files a random
twentieth is anything from 1 to 16 % of the bytes. Where whole documents cannot give 2.5 % (one large file, or a
handful of them), the last 5 % of every document is held out instead, cut at a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weightdecay.data.reading import Block, Document

TARGET_SHARE = 0.05
LARGEST_SHARE = 0.06
SMALLEST_SHARE_OF_WHOLE_DOCUMENTS = 0.025

# With this salt the documents whose hash lies in the lowest 5 % hold 5.0 to 5.2 % of the standard library's bytes in
# CPython 3.10.13, 3.11.7, 3.12.1, 3.13.0 and Debian's 3.11.2, so nearly the same files are held out in all of them;
# `pydoc_data/topics.py`, 7 to 8 % of the bytes and unlike the rest, is for training.
SALT = "weightdecay held-out 146"

# How far behind the 95 % mark a line's end is looked for, in characters.
LINE_SEARCH = 1 << 16

TRAINING, HELD_OUT, EMPTY = 0, 1, 2


def split_key(path: str) -> int:
    """64 bits of the salted hash of a document's path, the order in which documents are held out."""
    salted = f"{SALT}\0{path}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(salted).digest()[:8], "big")


@dataclass(frozen=True)
class Split:
    """The side of each document of a corpus, in the corpus's order; rows added since it was made are left out.

    Args:
        sides: a byte a document.
        tails: where whole documents are not held out, the character at which each document's last part may begin,
            and its length in characters.
    """

    sides: bytes
    tails: Sequence[tuple[int, int]] | None = None

    def documents(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Those that are not empty."""
        return (document for document, side in zip(documents, self.sides, strict=False) if side != EMPTY)

    def training(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents, or the parts of them, that are learnt from."""
        return self._part(documents, TRAINING)

    def held_out(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents, or the parts of them, that are not."""
        return self._part(documents, HELD_OUT)

    def _part(self, documents: Iterator[Document], wanted: int) -> Iterator[Document]:
        for index, (document, side) in enumerate(zip(documents, self.sides, strict=False)):
            if side == EMPTY:
                continue
            if self.tails is None:
                if side == wanted:
                    yield document
            elif wanted == HELD_OUT or self.tails[index][0]:
                yield _part_of(document, *self.tails[index], tail=wanted == HELD_OUT)


def choose_split(keys: Sequence[int], n_bytes: Sequence[int], n_characters: Sequence[int]) -> Split:
    """The split of a corpus whose documents have these keys and sizes; at least one of them is not empty."""
    total = sum(n_bytes)
    sides = bytearray(TRAINING if size else EMPTY for size in n_bytes)
    held_out = 0
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        if held_out >= TARGET_SHARE * total:
            break
        if n_bytes[index] and held_out + n_bytes[index] <= LARGEST_SHARE * total:
            sides[index] = HELD_OUT
            held_out += n_bytes[index]
    if held_out >= SMALLEST_SHARE_OF_WHOLE_DOCUMENTS * total:
        return Split(bytes(sides))
    return Split(
        bytes(TRAINING if size else EMPTY for size in n_bytes),
        [(length - max(1, round(TARGET_SHARE * length)), length) for length in n_characters],
    )


def _part_of(document: Document, mark: int, length: int, tail: bool) -> Document:
    def read() -> Iterator[Block]:
        return (Block(text) for text, in_tail in _cut(document.blocks(), mark, length) if in_tail is tail)

    return Document(document.path, read)


def _cut(blocks: Iterator[str], mark: int, length: int) -> Iterator[tuple[str, bool]]:
    """The text with each stretch marked as tail or not: the tail begins after the first line's end at or past `mark`.

    Without a line's end near by, or when the text is over after it, the tail begins at `mark` itself.
    """
    position, pending, in_tail = 0, "", False
    for block in blocks:
        if in_tail:
            yield block, True
            continue
        pending += block
        if position + len(pending) <= mark:
            yield pending, False
            position, pending = position + len(pending), ""
            continue
        if (head := mark - position) > 0:
            yield pending[:head], False
            position, pending = mark, pending[head:]
        if len(pending) >= LINE_SEARCH or mark + len(pending) >= length:
            line = pending.find("\n", 0, LINE_SEARCH) + 1
            if mark + line < length:
                yield pending[:line], False
                pending = pending[line:]
            yield pending, True
            in_tail = True
