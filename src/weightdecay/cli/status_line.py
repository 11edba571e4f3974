"""A line on the terminal that tells how far long work is, and goes when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weightdecay.errors import printable

Progress = Callable[[str, int, int | None], None]

_EVERY_S = 0.1
_CLEARED = "\r\x1b[K"


@contextmanager
def status_line(*, quiet: bool) -> Iterator[Progress | None]:
    """For `progress` of `data.prepare`; None where nobody looks: `quiet`, or stderr is no terminal."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return

    from shutil import get_terminal_size

    from weightdecay.training.progress import data_line

    stage, began, last = "", 0.0, 0.0

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal stage, began, last
        now = time.monotonic()
        if what != stage:
            stage, began, last = what, now, 0.0
        if now - last >= _EVERY_S:
            last = now
            line = printable(data_line(what, done, total, now - began))
            sys.stderr.write(_CLEARED + line[: get_terminal_size().columns - 1])
            sys.stderr.flush()

    try:
        yield progress
    finally:
        sys.stderr.write(_CLEARED)
        sys.stderr.flush()
