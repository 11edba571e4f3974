"""What a command reads and writes: streams that may be full or closed, and stdout kept free for one document."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from weightdecay.errors import OutputError


class Outlet(io.TextIOBase):
    """A stream whose faults are errors of ours. A pipe that its reader closed stays what it is to Python."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            give_up(self._stream)
            raise OutputError(f"{self._name} cannot be written: {error.strerror or error}") from error

    # rich and tyro ask a stream what it is; io.TextIOBase would answer in its place.
    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Document:
    """The one document of `--json`, written at the end: whatever else was printed has gone to stderr."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text = ""

    def write(self) -> None:
        """Raises OutputError where it cannot."""
        if self.text:
            self._stream.write(self.text)
            self._stream.flush()


_kept: list[Document] = []


def kept_document() -> Document | None:
    """The document of the command that runs with `--json`; None where none does."""
    return _kept[-1] if _kept else None


@contextmanager
def checked() -> Iterator[None]:
    """stdin there; stdout and stderr there, checked, and able to show any text in some form."""
    before = sys.stdin, sys.stdout, sys.stderr
    strict = [(stream, stream.errors) for stream in before[1:] if isinstance(stream, io.TextIOWrapper)]
    if sys.stdin is None:  # the caller has closed it; first, since what is opened next would get its number
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    sys.stdout = cast(TextIO, Outlet(_opened(sys.stdout, 1), "stdout"))
    sys.stderr = cast(TextIO, Outlet(_opened(sys.stderr, 2), "stderr"))
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for stream, errors in strict:
            stream.reconfigure(errors=errors)


@contextmanager
def one_document() -> Iterator[Document]:
    """stdout kept for one document: a module's own prints, and those of libraries in C, go to stderr meanwhile."""
    with _diverted_stdout() as stdout:
        document = Document(stdout)
        _kept.append(document)
        try:
            yield document
        finally:
            _kept.remove(document)


@contextmanager
def _diverted_stdout() -> Iterator[TextIO]:
    """Yields what stdout was while everything that is written to it goes to stderr."""
    stdout = sys.stdout
    stdout.flush()
    if not _is_descriptor(stdout, 1):  # a caller within Python has put another stream there
        sys.stdout = sys.stderr
        try:
            yield stdout
        finally:
            sys.stdout = stdout
        return

    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w", encoding=stdout.encoding, errors="backslashreplace") as stream:
        try:
            yield cast(TextIO, Outlet(stream, "stdout"))
        finally:
            stdout.flush()
            os.dup2(kept, 1)


def give_up(stream: TextIO) -> None:
    """Nothing more is written there: Python would complain about what it still holds at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stream in memory has no descriptor, and needs none
        return


def _opened(stream: TextIO | None, descriptor: int) -> TextIO:
    """The stream; where the caller has closed it, one that cannot be written.

    Its number must be taken in any case: the next file to be opened would get it, and the prints of others with it.
    """
    if stream is None:
        nowhere = os.open(os.devnull, os.O_RDONLY)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a terminal without λ still shows the rest
    return stream


def _is_descriptor(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False
