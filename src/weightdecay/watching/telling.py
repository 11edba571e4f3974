"""What is said on the terminal: past the program's own streams, which it may have replaced or closed."""

from __future__ import annotations

import contextlib
import os
import shutil

from weightdecay.errors import printable

_WIDTH = 120  # where there is no terminal that says


def say(text: str) -> None:
    """Some lines, on stderr."""
    with contextlib.suppress(OSError):  # nobody listens: the program goes on
        rest = f"{text}\n".encode(errors="backslashreplace")
        while rest:
            rest = rest[os.write(2, rest) :]


def tell(message: str) -> None:
    """One line that says who speaks."""
    say(f"weightdecay watch: {printable(message)}")


def is_terminal() -> bool:
    try:
        return os.isatty(2)
    except OSError:
        return False


def width() -> int:
    """As wide as the terminal; elsewhere as COLUMNS says."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    return shutil.get_terminal_size((_WIDTH, 24)).columns if is_terminal() else _WIDTH
