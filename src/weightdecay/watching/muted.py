"""What a program's own step prints, it prints when the program makes it, and not in each trial of an audit, too."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def muted() -> Iterator[None]:
    """In here this thread's words to stdout and stderr are lost; those of other threads are not."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (None if stream is None else _Muted(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class _Muted:
    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return len(text)
        written: int = self._stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
