"""A file's bytes as UTF-8, whatever it is compressed or encoded with: told by what it holds, not by how it is called.

gzip, bzip2 and xz are unpacked; UTF-16 and UTF-32 are told by their byte-order mark. What is neither text nor one of
these is refused, since it would otherwise be learnt from as noise: by its own name, or for its control characters.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from weightdecay.errors import DamagedError, DataError

EncodingErrors = Literal["strict", "replace"]

COMPRESSED_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}

_SNIFFED_BYTES = 4096
# Whole magic numbers, for the first bytes of some are words that a text may begin with: gzip's method is always 8, and
# a level and the mark of a block, or of an empty end, follow bzip2's name.
_BZIP2 = tuple(b"BZh%d" % level + mark for level in range(1, 10) for mark in (b"1AY&SY", b"\x17rE8P\x90"))
_UNPACKERS: dict[str, tuple[tuple[bytes, ...], Callable[[IO[bytes]], Any]]] = {
    "gzip": ((b"\x1f\x8b\x08",), lambda file: gzip.GzipFile(fileobj=file)),
    "bzip2": (_BZIP2, bz2.BZ2File),
    "xz": ((b"\xfd7zXZ\x00",), lzma.LZMAFile),
}
_NOT_UNPACKED = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard: unpack it with `zstd -d`",
    b"%PDF-": "a PDF: take its text out first",
    b"PAR1": "a parquet file: end its name with .parquet",
}
_TAR, _TAR_AT = b"ustar", 257
# Zero and what else no text holds: all but the tabulators, the ends of lines and pages, and the escape of a terminal's
# colours. Of a program, a picture or an unmarked UTF-16 that happens to be UTF-8, they are far more than a tenth.
_CONTROL = bytes([*range(0x09), *range(0x0E, 0x1B), *range(0x1C, 0x20), 0x7F])
_CONTROL_SHARE, _FEW_CONTROL = 0.1, 64
# Longest first: UTF-16's mark begins UTF-32's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

# What cannot be decoded goes on as a byte that no UTF-8 has, so that it is found, or counted, where bytes are read.
codecs.register_error("weightdecay.undecodable", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked and as UTF-8; what goes wrong while it is read names the file.

    Raises:
        DataError: it cannot be read, or is of a kind that is no text.
        DamagedError: what it was compressed with finds it damaged.
    """
    packed_with = ""
    try:
        with path.open("rb") as file:
            head = _peeked(file)
            _refuse_what_is_no_text(path, head)
            packed_with = _compression(path, head)
            if packed_with:
                unpacked = io.BufferedReader(_UNPACKERS[packed_with][1](file))
                with unpacked:
                    yield _as_utf8(unpacked, path)
            else:
                yield _as_utf8(file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DamagedError(f"{path}: damaged {packed_with} file: {error}") from None
    except OSError as error:
        if packed_with and error.errno is None:  # bzip2's way to say so
            raise DamagedError(f"{path}: damaged {packed_with} file: {error}") from None
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def control_characters(text: bytes) -> int:
    """How many bytes of a text are characters that no text holds."""
    return len(text) - len(text.translate(None, _CONTROL))


def plain_size(path: Path) -> int | None:
    """The file's bytes; None if it is packed by its name, or not there any longer."""
    try:
        return None if path.suffix.lower() in COMPRESSED_SUFFIXES else path.stat().st_size
    except OSError:
        return None


def _peeked(file: Any) -> bytes:
    head: bytes = file.peek(_SNIFFED_BYTES)
    return head[:_SNIFFED_BYTES]


def _compression(path: Path, head: bytes) -> str:
    """What the file is compressed with; a name that promises it is believed, so that its damage is told."""
    for name, (magic, _) in _UNPACKERS.items():
        if head.startswith(magic):
            return name
    return COMPRESSED_SUFFIXES.get(path.suffix.lower(), "") if head else ""


def _as_utf8(file: Any, path: Path) -> IO[bytes]:
    head = _peeked(file)
    _refuse_what_is_no_text(path, head)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            file.read(len(mark))
            return io.BufferedReader(_Transcoded(file, encoding))
    if packed := next((name for name, (magic, _) in _UNPACKERS.items() if head.startswith(magic)), ""):
        raise DataError(f"{path}: compressed more than once, inside with {packed}: unpack it")
    if found := _wide_encoding(head):
        raise DataError(
            f"{path}: zeros between its letters, as in {found} without a byte-order mark: "
            f"convert it with `iconv -f {found} -t UTF-8`"
        )
    if (control := control_characters(head)) > max(_FEW_CONTROL, _CONTROL_SHARE * len(head)):
        raise DataError(
            f"{path}: {control:,} of its first {len(head):,} bytes are control characters, as in a file that is no "
            "text, or in UTF-16 without a byte-order mark: name what holds text, or convert it to UTF-8"
        )
    result: IO[bytes] = file
    return result


def _refuse_what_is_no_text(path: Path, head: bytes) -> None:
    kinds = (what for magic, what in _NOT_UNPACKED.items() if head.startswith(magic))
    what = "a tar archive: unpack it" if head[_TAR_AT:].startswith(_TAR) else next(kinds, "")
    if what:
        raise DataError(f"{path}: is no text, but {what}")


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 that does not say so, by where its zeros are: hardly any at one place, many at all others."""
    if len(head) < 16:  # too little to tell from
        return ""
    for name, width, letter in (("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3), ("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1)):
        zeros = [head[place::width].count(0) / len(head[place::width]) for place in range(width)]
        if zeros.pop(letter) < 0.05 and min(zeros) > 0.4:
            return name
    return ""


class _Transcoded(io.RawIOBase):
    """The text of a file in another encoding, as UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)("weightdecay.undecodable")
        self._rest = b""
        self._at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and not self._at_end:
            data = self._file.read(io.DEFAULT_BUFFER_SIZE)
            self._at_end = not data
            self._rest = self._decoder.decode(data, final=self._at_end).encode("utf-8", "surrogateescape")
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
