"""Files and datasets whose rows are documents: JSON lines, JSON, CSV, parquet, and Hugging Face datasets.

Nothing here holds more than a line, a row or a batch of rows, one document of JSON aside.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from weightdecay.data.opening import opened, plain_size
from weightdecay.data.reading import REPLACEMENT, Block, Document, HowToRead, decoded
from weightdecay.errors import DamagedError, DataError, MissingExtraError, did_you_mean

_SURROGATE = re.compile("[\ud800-\udfff]")
# The csv module stops at fields of 131,072 characters unless it is told; a document may be longer.
_LONGEST_FIELD = (1 << 31) - 1


@dataclass(frozen=True)
class _Rows:
    """A file whose rows hold documents."""

    path: Path
    name: str
    how: HowToRead = field(default_factory=HowToRead)

    def size(self) -> int | None:
        return plain_size(self.path)

    def _document(self, number: int, row: Any, where: str, replaced: int = 0) -> Document:
        return _document_of(f"{self.name}:{number}", row, self.how, where, replaced)


class JsonLines(_Rows):
    """A JSON object a line."""

    def documents(self) -> Iterator[Document]:
        offset = 0
        with opened(self.path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._parsed(line, number, offset)
                offset += len(line)

    def _parsed(self, line: bytes, number: int, offset: int) -> Document:
        where = f"{self.path}, line {number}"
        text = decoded(line, self.how.encoding_errors, where, offset)
        try:
            row = json.loads(text.text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); each line must be one JSON object") from None
        return self._document(number, row, where, text.replaced)


class Json(_Rows):
    """One JSON document: a list of objects, an object with such a list (`rows.text`), or one object.

    A file of JSON lines that is called .json is read as what it is.
    """

    def documents(self) -> Iterator[Document]:
        if self._is_json_lines():
            yield from JsonLines(self.path, self.name, self.how).documents()
            return
        with opened(self.path) as file:
            text = decoded(file.read(), self.how.encoding_errors, str(self.path), 0)
        try:
            document = json.loads(text.text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}: not JSON: {error}") from None

        head, _, rest = self.how.text_key.partition(".")
        rows: list[Any] = document if isinstance(document, list) else [document]
        key = self.how.text_key
        if isinstance(document, dict) and rest and isinstance(document.get(head), list):
            rows, key = document[head], rest
        how = HowToRead(key, self.how.encoding_errors, self.how.missing_text)
        for number, row in enumerate(rows, start=1):
            # What was replaced in the file is told once, with its first row.
            replaced = text.replaced if number == 1 else 0
            yield _document_of(f"{self.name}:{number}", row, how, f"{self.path}, item {number}", replaced)

    def _is_json_lines(self) -> bool:
        """Whether the first line is an object by itself and others follow."""
        with opened(self.path) as file:
            first, second = file.readline(), file.readline()
        try:
            return bool(second.strip()) and isinstance(json.loads(first.decode("utf-8-sig")), dict)
        except (ValueError, RecursionError):
            return False


def columns_by_delimiter(first: str, declared: str = ",") -> dict[str, list[str]]:
    """What a table's first line names: by what was declared, and by what spreadsheets write, too, and call CSV."""
    return {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in (declared, *";\t,")}


@dataclass(frozen=True)
class Delimited(_Rows):
    """A table of characters, its columns named in the first line, as spreadsheets write it (RFC 4180)."""

    delimiter: str = ","

    def documents(self) -> Iterator[Document]:
        csv.field_size_limit(_LONGEST_FIELD)
        errors = "strict" if self.how.encoding_errors == "strict" else "surrogateescape"
        number = 0
        with opened(self.path) as file:
            lines = io.TextIOWrapper(cast(io.BufferedReader, file), "utf-8-sig", errors=errors, newline="")
            try:
                first = lines.readline()
                delimiter = self._delimiter_of(first)
                # Strict: a quote without its other half would swallow all rows after it.
                reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
                columns = next(reader, [])
                if columns and (count := columns.count(self.how.text_key)) != 1:
                    if count:
                        raise DataError(f"{self.path}: {count} columns are named '{self.how.text_key}': rename one")
                    raise DataError(_no_text_key(self.how.text_key, columns, str(self.path)))
                for number, fields in enumerate(reader, start=1):
                    if fields:
                        yield self._row(number, columns, fields)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.path}: not UTF-8 after row {number} ({error.reason}); convert the file, or replace what "
                    "cannot be read with --encoding-errors replace"
                ) from None
            except csv.Error as error:
                raise DataError(
                    f"{self.path}, row {number + 1}: cannot be read as a table: {error}; a field with quotes stands in "
                    "quotes, each of its own twice"
                ) from None
            finally:
                lines.detach()  # whoever opened the file closes it

    def _delimiter_of(self, first: str) -> str:
        """That under which the first line names the column; where none does, that of the most columns, to be named."""
        columns = columns_by_delimiter(first, self.delimiter)
        naming = (delimiter for delimiter, names in columns.items() if self.how.text_key in names)
        return next(naming, max(columns, key=lambda delimiter: len(columns[delimiter])))

    def _row(self, number: int, columns: list[str], fields: list[str]) -> Document:
        where = f"{self.path}, row {number}"
        if len(fields) > len(columns):  # the rest of a text after a comma would be lost
            raise DataError(
                f"{where}: {len(fields)} fields, and the first line names {len(columns)} columns: quote fields that "
                "hold what stands between fields"
            )
        return self._document(number, dict(zip(columns, fields, strict=False)), where)


class Parquet(_Rows):
    """A parquet file with a column of texts."""

    def size(self) -> int | None:
        return None  # compressed, column by column

    def documents(self) -> Iterator[Document]:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingExtraError(f"reading {self.path}", "datasets") from None
        key = self.how.text_key
        try:
            with parquet.ParquetFile(self.path) as file:
                columns = file.schema_arrow.names
                column = key if key in columns else key.partition(".")[0]
                if column not in columns:
                    raise DataError(_no_text_key(key, columns, str(self.path)))
                number = 0
                for batch in file.iter_batches(batch_size=256, columns=[column]):
                    for row in batch.to_pylist():
                        number += 1
                        yield self._document(number, row, f"{self.path}, row {number}")
        except PermissionError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DamagedError(f"{self.path}: cannot be read as parquet: {error}") from None


@dataclass(frozen=True)
class HubDataset:
    """The rows of a Hugging Face dataset's `train` split, streamed: `NAME` or `NAME:CONFIGURATION`, or a folder."""

    name: str
    how: HowToRead = field(default_factory=HowToRead)

    def size(self) -> int | None:
        return None

    def documents(self) -> Iterator[Document]:
        try:
            import datasets
        except ImportError:
            raise MissingExtraError(f"reading hf:{self.name}", "datasets") from None
        name, _, configuration = self.name.partition(":")
        try:
            rows = iter(datasets.load_dataset(name, configuration or None, split="train", streaming=True))
            for number, row in enumerate(rows, start=1):
                yield _document_of(f"hf:{self.name}:{number}", row, self.how, f"hf:{self.name}, row {number}")
        except DataError:
            raise
        except Exception as error:  # the hub client raises many kinds, none of a common class
            raise DataError(f"hf:{self.name} cannot be read: {type(error).__name__}: {error}") from error


def _document_of(path: str, row: Any, how: HowToRead, where: str, replaced: int = 0) -> Document:
    """The document in a row; a row without text is refused, or lacks it if the user has said that it may."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with the key '{how.text_key}', found {type(row).__name__}")
    found = _look_up(row, how.text_key)
    if isinstance(found, _Absent) or found is None:
        if how.missing_text == "skip":
            return Document(path, lambda: iter([Block("", replaced)]), lacks_text=True)
        if isinstance(found, _Absent):
            raise DataError(_no_text_key(how.text_key, found.keys, where) + _SKIP)
        raise DataError(f"{where}: '{how.text_key}' is null{_SKIP}")
    if not isinstance(found, str):
        raise DataError(f"{where}: '{how.text_key}' must be a string, found {type(found).__name__}")
    block = _unicode(found, how, where)
    return Document.from_text(path, block.text, replaced + block.replaced)


_SKIP = ", or leave such rows out with --missing-text skip"


@dataclass(frozen=True)
class _Absent:
    """A key that is not there, and those beside which it was looked for."""

    keys: list[str]


def _look_up(row: dict[str, Any], key: str) -> Any:
    """What a row holds under `a.b`: under that very name if it is there, else under `b` of the object under `a`."""
    if key in row:
        return row[key]
    head, dot, rest = key.partition(".")
    if dot and isinstance(row.get(head), dict) and not isinstance(found := _look_up(row[head], rest), _Absent):
        return found
    if dot and head in row and row[head] is None:
        return None
    return _Absent([f"{name}.{inner}" for name, value in row.items() if isinstance(value, dict) for inner in value]
                   + [str(name) for name in row])  # fmt: skip


def _unicode(text: str, how: HowToRead, where: str) -> Block:
    """JSON can spell half a surrogate pair, which no encoding holds: an error or a U+FFFD."""
    replaced = 0
    if surrogate := _SURROGATE.search(text):
        if how.encoding_errors == "strict":
            raise DataError(
                f"{where}: '{how.text_key}' holds a lone surrogate (\\u{ord(surrogate[0]):04x}) at character "
                f"{surrogate.start()}; mend the row, or replace it with --encoding-errors replace"
            )
        text, replaced = _SURROGATE.subn(REPLACEMENT, text)
    return Block(text.replace("\r\n", "\n").replace("\r", "\n"), replaced)


def _no_text_key(text_key: str, keys: list[str], where: str) -> str:
    return f"{where}: no key '{text_key}'; {did_you_mean(text_key, keys)}; choose with --text-key"
