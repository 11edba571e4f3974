"""`weightdecay export`."""

from __future__ import annotations

from dataclasses import dataclass

from weightdecay.cli.flags import Argument, Folder, Switch
from weightdecay.cli.output import console, note, print_json


@dataclass(frozen=True)
class Export:
    """Write a run's model as config.json, safetensors and tokenizer, for Hugging Face transformers."""

    run_directory: Argument[Folder]
    """The run, as `train` made it."""
    out: Argument[Folder]
    """Where to write; empty or not there yet."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from pathlib import Path

        from rich.text import Text

        from weightdecay.runs import Run
        from weightdecay.training.exporting import export

        made = export(Run.open(self.run_directory), Path(self.out), note)
        if self.json:
            print_json(
                {"out": str(made.path), "step": made.step, "architecture": made.architecture, "remark": made.remark}
            )
            return 0
        out = console()
        kind = made.architecture or "weightdecay's own format"
        out.print(Text(f"{made.path}: {kind}, step {made.step}"), soft_wrap=True)
        if made.remark:
            out.print(Text(made.remark), soft_wrap=True)
        return 0
