"""`weightdecay eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdecay.cli.flags import (
    Argument,
    Choice,
    Count,
    Name,
    Run,
    Sources,
    Switch,
    Text,
    raise_together,
    whole_number,
)
from weightdecay.cli.output import console, note, print_json
from weightdecay.errors import ConfigError, did_you_mean, printable

if TYPE_CHECKING:
    from weightdecay.evaluation.loss import Text as Judged
    from weightdecay.evaluation.loss import TextLoss
    from weightdecay.evaluation.tasks import TaskResult
    from weightdecay.evaluation.trained import Stored

_CHOICES = {"encoding_errors": ("strict", "replace"), "missing_text": ("refuse", "skip")}
_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Eval:
    """The loss of a trained model on its run's held-out text, or on any other; with --tasks what it can do with it."""

    model: Argument[Run]
    """A run, one of its checkpoints, or an exported or Hugging Face directory."""
    data: Sources = ()
    """Files, folders, globs, - for stdin or hf:NAME, all of it; or a directory of `data prepare`, its held-out part.
    Default: the held-out part of the run's own data."""
    checkpoint: Choice = "newest"
    """Of a run: newest, best (lowest held-out loss), or the number of a step."""
    tokens: Count = ""
    """Only the first so many; default: all, of the run's own text as many as it was judged by."""
    dtype: Choice = ""
    """Of the matrix products: float32 or bfloat16; default: the run's, or float32."""
    text_key: Name = "text"
    """The field that holds the text, in JSON lines and tables; a.b looks into objects."""
    missing_text: Choice = "refuse"
    """refuse (stop at a row without text) or skip (count and go on)."""
    separator: Text = ""
    """What ends a document within a text, like <|endoftext|>."""
    encoding_errors: Choice = "strict"
    """strict (stop at a byte that is not UTF-8) or replace (count and go on)."""
    tasks: Switch = False
    """Also pose tasks made of the text: close the bracket, recall the name, choose the true continuation of four."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        faults = [
            f"--{name.replace('_', '-')} {value}: {did_you_mean(value, known)}"
            for name, known in _CHOICES.items()
            if (value := getattr(self, name)) not in known
        ]
        if self.dtype and self.dtype not in _DTYPES:
            faults.append(f"--dtype {self.dtype}: {did_you_mean(self.dtype, _DTYPES)}")
        limit = whole_number("--tokens", self.tokens, faults, least=1) if self.tokens else None
        raise_together(faults)

        from pathlib import Path

        import torch

        from weightdecay.evaluation.loss import loss_on, own_text, text_of
        from weightdecay.evaluation.trained import find, load

        stored = find(Path(self.model), note, self.checkpoint)
        if not self.data and stored.run is None:
            raise ConfigError(f"{self.model}: is no run, so it has no text of its own: name one with --data")
        trained = load(stored, note)
        if self.data:
            text = text_of(self._settings(), trained.tokenizer, limit)
        else:
            assert stored.run is not None
            text = own_text(stored.run, trained.tokenizer)
            limit = limit or stored.run.config().run.eval_tokens
        dtype = self.dtype or (stored.run.config().run.dtype if stored.run else "float32")
        found = loss_on(trained, text, max_tokens=limit, dtype=getattr(torch, dtype))
        solved = None
        if self.tasks:
            from weightdecay.evaluation.tasks import solve

            solved = solve(trained, text)
        if self.json:
            print_json(_document(stored, text, found, dtype) | ({} if solved is None else _tasks_document(solved)))
        else:
            _tell(stored, text, found)
            if solved is not None:
                _tell_tasks(solved)
        return 0

    def _settings(self) -> Any:
        from weightdecay.recipes.settings import DataSettings

        names = ("text_key", "missing_text", "separator", "encoding_errors")
        return DataSettings(sources=self.data, **{name: getattr(self, name) for name in names})


def _document(stored: Stored, text: Judged, found: TextLoss, dtype: str) -> dict[str, Any]:
    return {
        "model": str(stored.path),
        "step": stored.step,
        "text": {"name": text.name, "sha256": text.sha256, "part": text.part, "tokens": len(text.tokens)},
        "tokens": found.tokens,
        "dtype": dtype,
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "fidelity": {**vars(text.fidelity), "loses_text": text.fidelity.loses_text},
        "remarks": list(text.remarks),
    }


def _tell(stored: Stored, text: Judged, found: TextLoss) -> None:
    from rich.text import Text as Line

    for remark in (*text.remarks, text.fidelity.remark()):
        if remark:
            note(remark)
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.3f} bits per byte"
    step = f", step {stored.step}" if stored.step is not None else ""
    of = f"the held-out part of {text.name}" if text.part == "held out" else text.name
    line = f"{stored.path}{step}: loss {found.loss:.4f}, perplexity {found.perplexity:.2f}{bits}"
    line += f" on {found.tokens:,} tokens of {of}"
    console().print(Line(printable(line)), soft_wrap=True)


def _tasks_document(solved: list[TaskResult]) -> dict[str, Any]:
    return {"tasks": [{**vars(result), "share": result.share} for result in solved]}


def _tell_tasks(solved: list[TaskResult]) -> None:
    from rich.table import Table

    table = Table()
    for name in ("task", "solved", "of", "share", "95 % interval", "by chance"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for result in solved:
        share, interval = "–", "the text poses none"
        if result.share is not None and result.interval is not None:
            share = f"{100 * result.share:.1f} %"
            interval = f"{100 * result.interval[0]:.1f} to {100 * result.interval[1]:.1f} %"
        chance = f"{100 * result.chance:.0f} %"
        table.add_row(result.name, str(result.right), str(result.items), share, interval, chance)
    console().print(table)
