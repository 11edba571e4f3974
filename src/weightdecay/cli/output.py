"""What commands print: people's text or one JSON document, and errors. User text is never read as markup."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from weightdecay.cli import streams
from weightdecay.errors import OutputError, WeightDecayError, printable

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
"""Of the documents that commands print; it rises where a key goes or changes its meaning, not where one is added."""


def console(*, stderr: bool = False, lasting: bool = False) -> Console:
    """Where people read: as wide as the terminal; in a file or pipe, as COLUMNS says or wide enough for a plan.

    Args:
        lasting: what is said there is not the command's result, which goes on without when it cannot be written.
    """
    from weightdecay.training.progress import LastingConsole, lasting_console, terminal_settings

    if lasting:
        return lasting_console(stderr=stderr)
    stream = sys.stderr if stderr else sys.stdout
    return LastingConsole(stderr=stderr, highlight=False, **terminal_settings(stream))


def print_json(document: Any) -> None:
    """The one document of `--json`; one that is no list says the version of its form."""
    if isinstance(document, dict):
        document = {"schema_version": SCHEMA_VERSION, **document}
    print_document(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def print_document(text: str) -> None:
    """The one document of `--json`, which is JSON already."""
    kept = streams.kept_document()
    if kept is None:  # called by other Python than our command's
        sys.stdout.write(text)
    else:
        kept.text = text


def report_error(error: WeightDecayError) -> int:
    """Every fault on its own line on stderr; with `--json` also as the document. Returns the exit code."""
    with contextlib.suppress(OutputError, BrokenPipeError):  # there is nobody left to tell
        for fault in error.faults:
            note(f"error: {fault}")
    if streams.kept_document() is not None:
        print_error_document(type(error).__name__, error.faults, error.exit_code)
    return error.exit_code


def print_error_document(kind: str, faults: list[str], exit_code: int) -> None:
    """What `--json` prints in the place of a result."""
    print_json({"error": kind, "faults": faults, "exit_code": exit_code})


def note(message: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(printable(message) + "\n")
