"""Text files as streams of documents; `rows.py` reads the kinds that hold a document a row.

Nothing here holds more than a block of a file, or one of its documents where a separator tells them apart, whatever
the file's size. Text leaves with its newlines as "\\n" and without a byte-order mark; what is not UTF-8 stops with the
file and the byte, or is replaced and counted.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from weightdecay.data.opening import EncodingErrors, opened, plain_size
from weightdecay.errors import DataError

MissingText = Literal["refuse", "skip"]

BLOCK_BYTES = 1 << 18

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class HowToRead:
    """What a user can say about reading.

    Attributes:
        text_key: the field of a row that holds its text; `a.b` looks into objects.
        encoding_errors: "strict", or "replace" to put U+FFFD, counted, in the place of what is not UTF-8.
        missing_text: "refuse" a row without text, or "skip" and count it.
        separator: what stands between the documents of one text; empty for none.
    """

    text_key: str = "text"
    encoding_errors: EncodingErrors = "strict"
    missing_text: MissingText = "refuse"
    separator: str = ""


class Block(NamedTuple):
    """A stretch of a document's text, and how many undecodable places in it became U+FFFD."""

    text: str
    replaced: int = 0


@dataclass(frozen=True)
class Document:
    """One text that stands apart from the others; read again from its source each time it is asked for.

    Args:
        path: its name within the corpus, POSIX; a row of a file is `file:line`.
        read: opens the text anew and streams it.
        lacks_text: this row has none, and was let pass.
    """

    path: str
    read: Callable[[], Iterator[Block]]
    lacks_text: bool = False

    @classmethod
    def from_text(cls, path: str, text: str, replaced: int = 0) -> Document:
        """A document that is at hand as a whole."""
        return cls(path, lambda: iter([Block(text, replaced)]))

    def telling(self, told: Callable[[int], None]) -> Document:
        """The same, and `told` of each stretch's length as it is read."""

        def read() -> Iterator[Block]:
            for block in self.read():
                yield block
                told(len(block.text))

        return Document(self.path, read, self.lacks_text)

    def blocks(self) -> Iterator[str]:
        """The text in stretches of any length that do not outgrow memory."""
        return (block.text for block in self.read() if block.text)

    @property
    def text(self) -> str:
        """The whole text in memory."""
        return "".join(self.blocks())


class Source(Protocol):
    """Something that documents come from, in an order that is always the same."""

    def documents(self) -> Iterator[Document]: ...

    def size(self) -> int | None:
        """About how many bytes of text it holds, from its file's; None where a file does not tell."""


@dataclass(frozen=True)
class TextFile:
    """A file that is one document."""

    path: Path
    name: str
    errors: EncodingErrors = "strict"

    def documents(self) -> Iterator[Document]:
        yield Document(self.name, self._read)

    def size(self) -> int | None:
        return plain_size(self.path)

    def _read(self) -> Iterator[Block]:
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        offset, rest, at_end = 0, b"", False
        with opened(self.path) as file:
            while not at_end:
                data = file.read(BLOCK_BYTES)
                at_end = not data
                raw = rest + data
                # A character that a block's end cuts in two waits for the next block.
                usable = len(raw) if at_end else _whole_characters(raw)
                block = decoded(raw[:usable], self.errors, str(self.path), offset)
                text = block.text.removeprefix("\ufeff") if offset == 0 else block.text
                yield Block(newlines.decode(text, final=at_end), block.replaced)
                offset, rest = offset + usable, raw[usable:]


@dataclass(frozen=True)
class Separated:
    """Another source's documents, each cut at a separator; newlines around a cut go with it.

    What lies between two separators is held in memory, as a row of JSON is.
    """

    source: Source
    separator: str

    def documents(self) -> Iterator[Document]:
        for document in self.source.documents():
            if document.lacks_text:
                yield document
                continue
            for number, (text, replaced) in enumerate(self._parts(document), start=1):
                yield Document.from_text(f"{document.path}#{number}", text, replaced)

    def size(self) -> int | None:
        return self.source.size()

    def _parts(self, document: Document) -> Iterator[Block]:
        """Those that are not empty; what was replaced is told with the part in which its block ends."""
        pending, searched, replaced = "", 0, 0
        for block in document.read():
            pending += block.text
            replaced += block.replaced
            while (at := pending.find(self.separator, searched)) >= 0:
                part, pending, searched = pending[:at].strip("\n"), pending[at + len(self.separator) :], 0
                if part:
                    yield Block(part, replaced)
                    replaced = 0
            # A separator that a block's end cuts in two is found with the next block.
            searched = max(0, len(pending) - len(self.separator) + 1)
        if (part := pending.strip("\n")) or replaced:
            yield Block(part, replaced)


def _whole_characters(raw: bytes) -> int:
    """How many bytes of `raw` end with a whole UTF-8 character: all but up to three at the end."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) - back if back < length else len(raw)
        if byte < 0x80:
            break
    return len(raw)


def decoded(raw: bytes, errors: EncodingErrors, where: str, offset: int) -> Block:
    """Bytes as text; `offset` is where in the file they begin."""
    try:
        return Block(raw.decode())
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(
                f"{where}: not UTF-8 at byte {offset + error.start} ({error.reason}); "
                "convert the file, or replace what cannot be read with --encoding-errors replace"
            ) from None
    text = raw.decode(errors="replace")
    # UTF-8 finds its place again at every lead byte, so a true U+FFFD in the file is never part of an error.
    return Block(text, text.count(REPLACEMENT) - raw.count(REPLACEMENT.encode()))
