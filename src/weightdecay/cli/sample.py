"""`weightdecay sample`."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass

from weightdecay.cli.flags import Argument, Count, Number, Run, Switch, Text, raise_together, whole_number
from weightdecay.cli.output import note, print_json
from weightdecay.errors import printable


@dataclass(frozen=True)
class Sample:
    """Continue a text with a trained run's model."""

    run_directory: Argument[Run]
    """The run, as `train` made it."""
    prompt: Text = ""
    """Text to continue; empty begins a new document."""
    max_tokens: Count = "200"
    """Tokens to draw at most."""
    temperature: Number = "0.8"
    """0 always takes the likeliest token."""
    top_k: Count = "50"
    """Draw from so many likeliest tokens; 0 from all."""
    seed: Count = "0"
    """The same seed draws the same text."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        faults: list[str] = []
        max_tokens, top_k, seed = (
            whole_number(flag, text, faults)
            for flag, text in (("--max-tokens", self.max_tokens), ("--top-k", self.top_k), ("--seed", self.seed))
        )
        temperature = _temperature(self.temperature, faults)
        raise_together(faults)

        from weightdecay import runs
        from weightdecay.training.sampling import continuation, load

        trained = load(runs.Run.open(self.run_directory), note)
        pieces = continuation(
            trained, self.prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        if self.json:
            print_json({"step": trained.step, "prompt": self.prompt, "continuation": "".join(pieces), "seed": seed})
            return 0
        for piece in itertools.chain([self.prompt], pieces):
            sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return 0


def _temperature(text: str, faults: list[str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0):
        faults.append(f"--temperature {text}: must be a number of at least 0")
    return value
