"""`weightdecay sample`."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdecay.cli.flags import Argument, Choice, Count, File, Number, Run, Switch, Text, raise_together, whole_number
from weightdecay.cli.output import note, print_json
from weightdecay.declared import values
from weightdecay.errors import ConfigError, printable

if TYPE_CHECKING:
    from weightdecay.evaluation.trained import Trained

_HELP = "a line is continued; /new begins a new document, /quit or the end of input leaves"


@dataclass(frozen=True)
class Sample:
    """Continue a text with a trained model."""

    model: Argument[Run]
    """A run, one of its checkpoints, or an exported or Hugging Face directory."""
    prompt: Text = ""
    """Text to continue, or - to read it from stdin; empty begins a new document."""
    prompt_file: File = ""
    """A file that holds the text to continue."""
    interactive: Switch = False
    """Continue line after line, each with all that was said before."""
    checkpoint: Choice = "newest"
    """Of a run: newest, best (lowest held-out loss), or the number of a step."""
    max_tokens: Count = "200"
    """Tokens to draw at most; in an interactive talk, after each line."""
    temperature: Number = "0.8"
    """0 always takes the likeliest token."""
    top_k: Count = "50"
    """Draw from so many likeliest tokens; 0 from all."""
    top_p: Number = "1"
    """Draw from the fewest likeliest tokens whose probabilities add up to this; 1 from all."""
    seed: Count = "0"
    """The same seed draws the same text."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        faults: list[str] = []
        max_tokens = whole_number("--max-tokens", self.max_tokens, faults)
        top_k = whole_number("--top-k", self.top_k, faults)
        seed = whole_number("--seed", self.seed, faults, read=values.seed)
        temperature = _number("--temperature", self.temperature, faults, "a number of at least 0", lambda x: x >= 0)
        top_p = _number("--top-p", self.top_p, faults, "a number over 0 and at most 1", lambda x: 0 < x <= 1)
        if self.prompt and self.prompt_file:
            faults.append("--prompt and --prompt-file are two texts: give one")
        if self.interactive and (self.json or self.prompt == "-"):
            faults.append("--interactive reads lines from stdin and answers there: leave out --json and --prompt -")
        raise_together(faults)
        prompt = self._prompt()

        from pathlib import Path

        from weightdecay.evaluation.sampling import continuation
        from weightdecay.evaluation.trained import find, load

        trained = load(find(Path(self.model), note, self.checkpoint), note)
        drawn: dict[str, Any] = {
            "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed
        }  # fmt: skip
        if self.interactive:
            return _talk(trained, prompt, drawn)
        pieces = continuation(trained, prompt, **drawn)
        if self.json:
            print_json({"step": trained.step, "prompt": prompt, "continuation": "".join(pieces), "seed": seed})
            return 0
        _write(itertools.chain([prompt], pieces))
        return 0

    def _prompt(self) -> str:
        from pathlib import Path

        where = self.prompt_file or ("stdin" if self.prompt == "-" else "")
        try:
            if self.prompt_file:
                raw = Path(self.prompt_file).read_bytes()
            elif self.prompt == "-":
                raw = sys.stdin.buffer.read()
            else:
                return self.prompt
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error) from None
        except OSError as error:
            raise ConfigError(f"--prompt-file {where}: cannot be read: {error.strerror or error}") from None


def _not_utf8(where: str, error: UnicodeDecodeError) -> ConfigError:
    return ConfigError(f"{where}: not UTF-8 at byte {error.start}: convert it")


def _talk(trained: Trained, text: str, drawn: dict[str, Any]) -> int:
    """Line after line from stdin, until it ends; what the model has said stays part of the text."""
    from weightdecay.evaluation.sampling import continuation

    note(_HELP)
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise _not_utf8("stdin", error) from None
        if not line or line.strip() == "/quit":
            return 0
        if line.strip() == "/new":
            text = ""
            continue
        text += line
        said = _write(continuation(trained, text, **drawn))
        text += said if said.endswith("\n") else said + "\n"
        drawn["seed"] = (drawn["seed"] + 1) % 2**64  # or the same line would always be answered alike


def _write(pieces: Iterable[str]) -> str:
    """As they come, made harmless on a terminal; a newline at the end."""
    written = []
    for piece in pieces:
        written.append(piece)
        sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(written)


def _number(flag: str, text: str, faults: list[str], words: str, holds: Any) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and holds(value)):
        faults.append(f"{flag} {text}: must be {words}")
    return value
