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
from weightdecay.data.rows import columns_by_delimiter
from weightdecay.errors import DataError

STDIN = "-"

# The first line of a table is no longer than this.
_OF_A_TABLE = 1 << 16


def stdin_file(text_key: str) -> tuple[Path, str]:
    """Where stdin's text lies for as long as this process lives, and the suffix that a file like it would have.

    `.jsonl` and `.csv` where the first line has this key, or this column beside others; else `.txt`.

    Raises:
        DataError: a terminal, where nothing would come, or one of several processes, of which one alone has a stdin.
    """
    path = _kept()
    with opened(path) as file:
        first = file.readline(_OF_A_TABLE)
        if first.lstrip(b" \t\xef\xbb\xbf").startswith(b"{"):  # a document of any length
            first += b"" if first.endswith(b"\n") else file.readline()
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        tables = columns_by_delimiter(first.decode("utf-8-sig", errors="replace")).values()
        return path, ".csv" if any(text_key in names and len(names) > 1 for names in tables) else ".txt"
    return path, ".jsonl" if isinstance(row, dict) and text_key.partition(".")[0] in row else ".txt"


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
