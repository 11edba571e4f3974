"""Files as streams of documents: text, JSON lines and parquet, plain or gzipped, and Hugging Face datasets.

Nothing here holds more than a block of a text file, a line of JSON or a batch of parquet rows, whatever the file's
size. Text leaves with its newlines as "\\n" and without a byte-order mark; what is not UTF-8 stops with the file and
the byte, or is replaced and counted.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from weightdecay.errors import DamagedError, DataError, MissingExtraError, did_you_mean

EncodingErrors = Literal["strict", "replace"]

BLOCK_BYTES = 1 << 18

_REPLACEMENT = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """

    path: str
    read: Callable[[], Iterator[Block]]

    @classmethod
    def from_text(cls, path: str, text: str, replaced: int = 0) -> Document:
        """A document that is at hand as a whole."""
        return cls(path, lambda: iter([Block(text, replaced)]))

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


@dataclass(frozen=True)
class TextFile:
    """A file that is one document."""

    path: Path
    name: str
    errors: EncodingErrors = "strict"

    def documents(self) -> Iterator[Document]:
        yield Document(self.name, self._read)

    def _read(self) -> Iterator[Block]:
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        offset, rest, at_end = 0, b"", False
        with _opened(self.path) as file:
            while not at_end:
                data = file.read(BLOCK_BYTES)
                at_end = not data
                raw = rest + data
                # A character that a block's end cuts in two waits for the next block.
                usable = len(raw) if at_end else _whole_characters(raw)
                block = _decode(raw[:usable], self.errors, str(self.path), offset)
                text = block.text.removeprefix("\ufeff") if offset == 0 else block.text
                yield Block(newlines.decode(text, final=at_end), block.replaced)
                offset, rest = offset + usable, raw[usable:]


@dataclass(frozen=True)
class _Rows:
    """A file whose rows hold documents under `text_key`."""

    path: Path
    name: str
    text_key: str = "text"
    errors: EncodingErrors = "strict"


class JsonLines(_Rows):
    """A JSON object a line."""

    def documents(self) -> Iterator[Document]:
        offset = 0
        with _opened(self.path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    block = self._parse(line, number, offset)
                    yield Document.from_text(f"{self.name}:{number}", block.text, block.replaced)
                offset += len(line)

    def _parse(self, line: bytes, number: int, offset: int) -> Block:
        where = f"{self.path}, line {number}"
        decoded = _decode(line, self.errors, where, offset)
        try:
            row = json.loads(decoded.text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); each line must be one JSON object") from None
        block = _text_of(row, self.text_key, self.errors, where)
        return Block(block.text, decoded.replaced + block.replaced)


class Parquet(_Rows):
    """A parquet file with a column of texts."""

    def documents(self) -> Iterator[Document]:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingExtraError(f"reading {self.path}", "datasets") from None
        try:
            with parquet.ParquetFile(self.path) as file:
                columns = file.schema_arrow.names
                if self.text_key not in columns:
                    raise DataError(_no_text_key(self.text_key, columns, str(self.path)))
                number = 0
                for batch in file.iter_batches(batch_size=256, columns=[self.text_key]):
                    for row in batch.to_pylist():
                        number += 1
                        block = _text_of(row, self.text_key, self.errors, f"{self.path}, row {number}")
                        yield Document.from_text(f"{self.name}:{number}", block.text, block.replaced)
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DamagedError(f"{self.path}: cannot be read as parquet: {error}") from None


@dataclass(frozen=True)
class HubDataset:
    """The rows of a Hugging Face dataset's `train` split, streamed: `NAME` or `NAME:CONFIGURATION`, or a folder."""

    name: str
    text_key: str = "text"
    errors: EncodingErrors = "strict"

    def documents(self) -> Iterator[Document]:
        try:
            import datasets
        except ImportError:
            raise MissingExtraError(f"reading hf:{self.name}", "datasets") from None
        name, _, configuration = self.name.partition(":")
        try:
            rows = iter(datasets.load_dataset(name, configuration or None, split="train", streaming=True))
            for number, row in enumerate(rows, start=1):
                block = _text_of(row, self.text_key, self.errors, f"hf:{self.name}, row {number}")
                yield Document.from_text(f"hf:{self.name}:{number}", block.text, block.replaced)
        except DataError:
            raise
        except Exception as error:  # the hub client raises many kinds, none of a common class
            raise DataError(f"hf:{self.name} cannot be read: {type(error).__name__}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, gunzipped when its name ends so; what goes wrong while reading names the file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]  # GzipFile reads like any binary file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedError(f"{path}: damaged gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


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


def _decode(raw: bytes, errors: EncodingErrors, where: str, offset: int) -> Block:
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
    return Block(text, text.count(_REPLACEMENT) - raw.count(_REPLACEMENT.encode()))


def _text_of(row: Any, text_key: str, errors: EncodingErrors, where: str) -> Block:
    """The document in a row. JSON can spell half a surrogate pair, which no encoding holds: an error or a U+FFFD."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with the key '{text_key}', found {type(row).__name__}")
    if text_key not in row:
        raise DataError(_no_text_key(text_key, row, where))
    text = row[text_key]
    if not isinstance(text, str):
        raise DataError(f"{where}: '{text_key}' must be a string, found {type(text).__name__}")
    replaced = 0
    if surrogate := _SURROGATE.search(text):
        if errors == "strict":
            raise DataError(
                f"{where}: '{text_key}' holds a lone surrogate (\\u{ord(surrogate[0]):04x}) at character "
                f"{surrogate.start()}; mend the row, or replace it with --encoding-errors replace"
            )
        text, replaced = _SURROGATE.subn(_REPLACEMENT, text)
    return Block(text.replace("\r\n", "\n").replace("\r", "\n"), replaced)


def _no_text_key(text_key: str, keys: Any, where: str) -> str:
    return f"{where}: no key '{text_key}'; {did_you_mean(text_key, map(str, keys))}; choose with --text-key"
