"""Text that comes through stdin, kept in a file: a corpus is read more than once."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from weightdecay.data.opening import opened
from weightdecay.errors import DataError

STDIN = "-"


def stdin_file(text_key: str) -> tuple[Path, bool]:
    """Where stdin's text lies for as long as this process lives, and whether it is JSON lines with this key.

    Raises:
        DataError: a terminal, where nothing would come, or one of several processes, of which one alone has a stdin.
    """
    path = _kept()
    try:
        with opened(path) as file:
            row = json.loads(file.readline())
    except (ValueError, RecursionError):
        return path, False
    return path, isinstance(row, dict) and text_key.partition(".")[0] in row


@cache
def _kept() -> Path:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(
            "-: several processes cannot read one stdin: prepare it first, with weightdecay data prepare - --out DIR"
        )
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("-: stdin is a terminal: pipe a text into it, or name a file")

    folder = tempfile.mkdtemp(prefix="weightdecay-stdin-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "stdin")
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path
