"""What commands print: people's text or one JSON document, and errors. User text is never read as markup."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from weightdecay.errors import WeightDecayError, printable

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
"""Of the documents that commands print; it rises where a key goes or changes its meaning, not where one is added."""
_WIDTH_OFF_TERMINAL = 140


def console(*, stderr: bool = False) -> Console:
    """Where people read: as wide as the terminal; in a file or pipe, wide enough for a plan."""
    from weightdecay.training.progress import LastingConsole

    stream = sys.stderr if stderr else sys.stdout
    return LastingConsole(stderr=stderr, highlight=False, width=None if stream.isatty() else _WIDTH_OFF_TERMINAL)


def print_json(document: Any) -> None:
    """The one document of `--json`; one that is no list says the version of its form."""
    if isinstance(document, dict):
        document = {"schema_version": SCHEMA_VERSION, **document}
    sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def report_error(error: WeightDecayError, *, as_json: bool) -> None:
    """Every fault on its own line on stderr; with `--json` also as the document on stdout."""
    for fault in error.faults:
        note(f"error: {fault}")
    if as_json:
        print_json({"error": type(error).__name__, "faults": error.faults, "exit_code": error.exit_code})


def note(message: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(printable(message) + "\n")
