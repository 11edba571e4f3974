"""`weightdecay export`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from weightdecay.cli.flags import Argument, Choice, Folder, Name, Run, Switch, raise_together
from weightdecay.cli.output import console, note, print_json
from weightdecay.errors import did_you_mean

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Export:
    """Write a trained model as config.json, safetensors and tokenizer, for Hugging Face transformers."""

    model: Argument[Run]
    """A run, one of its checkpoints, or an exported directory (to have it in another dtype)."""
    out: Argument[Folder]
    """Where to write; empty or not there yet."""
    checkpoint: Choice = "newest"
    """Of a run: newest, best (lowest held-out loss), or the number of a step."""
    dtype: Choice = "float32"
    """What the weights are rounded to: float32, bfloat16 or float16."""
    shard_size: Name = "5GB"
    """The most that one file of weights holds; in KB, MB or GB. Memory is needed for about one of them."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from pathlib import Path

        from rich.text import Text

        from weightdecay.evaluation.exporting import DTYPES, export

        faults: list[str] = []
        if self.dtype not in DTYPES:
            faults.append(f"--dtype {self.dtype}: {did_you_mean(self.dtype, DTYPES)}")
        shard_bytes = _bytes("--shard-size", self.shard_size, faults)
        raise_together(faults)
        made = export(
            Path(self.model), Path(self.out), note, dtype=self.dtype, shard_bytes=shard_bytes, which=self.checkpoint
        )
        if self.json:
            print_json({"out": str(made.path), **{key: value for key, value in vars(made).items() if key != "path"}})
            return 0
        out = console()
        kind = made.architecture or "weightdecay's own format"
        step = f", step {made.step}" if made.step is not None else ""
        files = f"{len(made.files)} files of weights" if len(made.files) > 1 else made.files[0]
        out.print(Text(f"{made.path}: {kind}{step}, {made.dtype}, {files}"), soft_wrap=True)
        if made.remark:
            out.print(Text(made.remark), soft_wrap=True)
        return 0


def _bytes(flag: str, text: str, faults: list[str]) -> float:
    """A size like 5GB or 500MB, or a number of bytes, as transformers reads them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)?", text.strip().upper())
    if not found or not float(found[1]):
        faults.append(f"{flag} {text}: must be a size over 0 like 5GB, 500MB or 1000000")
        return 0.0
    return float(found[1]) * _UNITS[found[2] or ""]
