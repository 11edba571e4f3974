"""`weightdecay data prepare` and `weightdecay data inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from weightdecay.cli.flags import Argument, Choice, Folder, Name, NameOrFile, Sources, Switch, Text, raise_together
from weightdecay.cli.output import console, note, print_json
from weightdecay.cli.status_line import status_line
from weightdecay.errors import did_you_mean, printable

ENCODING_ERRORS = ("strict", "replace")
MISSING_TEXT = ("refuse", "skip")


@dataclass(frozen=True)
class Prepare:
    """Text to token shards, in bounded memory; without sources, this Python's standard library."""

    sources: Argument[Sources] = ()
    """Files, folders (their text, Markdown, source code, JSON lines and parquet, also packed), globs, - for stdin, or
    hf:NAME. Of .json, .csv and .tsv that are named themselves each row is a document."""
    out: Folder = ""
    """A new directory. (required)"""
    tokenizer: NameOrFile = "bpe:4096"
    """byte, bpe:N, tiktoken:NAME, or a tokenizer.json."""
    text_key: Name = "text"
    """The field that holds the text, in JSON lines and tables; a.b looks into objects."""
    missing_text: Choice = "refuse"
    """refuse (stop at a row without text) or skip (count and go on)."""
    separator: Text = ""
    """What ends a document within a text, like <|endoftext|>; without it a file is one document."""
    encoding_errors: Choice = "strict"
    """strict (stop at a byte that is not UTF-8) or replace (count and go on)."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from weightdecay.training.preflight import missing_names

        faults = [] if self.out else ["--out is missing: name a new directory for the shards"]
        choices = (
            ("--encoding-errors", self.encoding_errors, ENCODING_ERRORS),
            ("--missing-text", self.missing_text, MISSING_TEXT),
        )
        faults += [
            f"{flag} {value}: {did_you_mean(value, known)}" for flag, value, known in choices if value not in known
        ]
        raise_together([*faults, *missing_names({"data.tokenizer": self.tokenizer, "data.sources": self.sources})])

        from pathlib import Path

        from weightdecay.data.prepare import prepare_text

        errors: Any = self.encoding_errors
        missing: Any = self.missing_text
        note(f"reading {' '.join(self.sources) or 'the standard library'}")
        with status_line(quiet=self.json) as progress:
            prepared = prepare_text(
                self.sources,
                Path(self.out),
                self.tokenizer,
                text_key=self.text_key,
                encoding_errors=errors,
                missing_text=missing,
                separator=self.separator,
                progress=progress,
            )
        for remark in prepared.remarks():
            note(remark)
        return Inspect(self.out, json=self.json).run()


@dataclass(frozen=True)
class Inspect:
    """What is in a directory of token shards; every byte is compared with its hash."""

    directory: Argument[Folder]
    """As `data prepare` made it."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from pathlib import Path

        from weightdecay.data.prepare import inspect

        found = inspect(Path(self.directory))
        prepared = found.prepared
        document = {
            "directory": str(prepared.path),
            "name": prepared.name,
            "sources": list(prepared.sources),
            "corpus_sha256": prepared.corpus_sha256,
            "tokenizer_sha256": found.tokenizer_sha256,
            "vocab_size": prepared.tokenizer.vocab_size,
            "summary": {**vars(prepared.summary), "held_out_share": prepared.summary.held_out_share},
            "fidelity": {**vars(prepared.fidelity), "loses_text": prepared.fidelity.loses_text},
            "training": {**vars(found.training), "sample": found.training_sample},
            "held_out": {**vars(found.held_out), "sample": found.held_out_sample},
        }
        if self.json:
            print_json(document)
        else:
            _print_table(document)
        return 0


@dataclass(frozen=True)
class Data:
    """Text to token shards (`data prepare`), and what is in them (`data inspect`)."""

    action: Annotated[
        Annotated[Prepare, tyro.conf.subcommand("prepare")] | Annotated[Inspect, tyro.conf.subcommand("inspect")],
        tyro.conf.arg(name=""),
    ]

    @property
    def json(self) -> bool:
        return self.action.json

    def run(self) -> int:
        return self.action.run()


def _print_table(document: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for key, value in document.items():
        for part, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(inner, dict):
                inner = ", ".join(f"{name} {count:,}" for name, count in inner.items())
            text = (
                f"{inner:,}" if isinstance(inner, int) else f"{inner:.4f}" if isinstance(inner, float) else str(inner)
            )
            table.add_row(f"{key} {part}".strip(), Text(printable(text)))
    console().print(table)
