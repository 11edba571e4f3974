"""What a finished training shows last: its result, its curve, a sample, and what one might do next."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from weightdecay.cli.output import note
from weightdecay.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from weightdecay.runs import Run

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 60
_SAMPLE_TOKENS = 120


def show_last_screen(run: Run, out: Console) -> None:
    """Print it; the sample takes a second or two."""
    from rich.text import Text

    from weightdecay.evaluation.sampling import continuation
    from weightdecay.evaluation.trained import load

    trained = load(run, note)
    text = "".join(continuation(trained, "", max_tokens=_SAMPLE_TOKENS, temperature=0.8, top_k=50, seed=0))
    out.print(Text("\nA sample, from an empty prompt:", style="bold"))
    out.print(Text(printable(text)))
    for line in _result(run.summary() or {}):
        out.print(Text(f"\n{line}", style="bold"))
    losses = [row["loss"] for row in run.rows("train") if row.get("loss") is not None]
    if len(losses) > 1:
        out.print(Text(f"training loss  {losses[0]:.2f} {curve(losses)} {losses[-1]:.2f} nats a token"))

    path = shlex.quote(printable(str(run.path)))
    out.print(Text(f"\nThe run is in {path}, its curve in {path}/loss.svg. Next:"), soft_wrap=True)
    beginning = "The " if run.config().data.sources else "def "  # the text that is there by itself is Python
    extra = "" if find_spec("altair") else "; needs pip install 'weightdecay[report]'"
    for command, what in (
        (f'weightdecay sample {path} --prompt "{beginning}"', "more text, from your own beginning"),
        (f"weightdecay report {path}", f"all of it as one page: plots, plan, sources, findings{extra}"),
        (f"weightdecay plan {path} --against transformers", "which of its weights decayed, and who differs"),
        (f"weightdecay eval {path} --data FILE", "its loss on a text of yours"),
    ):
        out.print(Text(f"  {command}   # {what}"), soft_wrap=True)


def _result(summary: dict[str, Any]) -> Iterator[str]:
    bits, loss = summary.get("val_bits_per_byte"), summary.get("val_loss")
    if bits is not None:
        yield f"held-out text: {bits:.3f} bits per byte after {summary['steps']:,} steps ({summary['tokens']:,} tokens)"
    elif loss is not None:
        yield f"held-out text: {loss:.3f} nats a token after {summary['steps']:,} steps ({summary['tokens']:,} tokens)"


def curve(values: Sequence[float], width: int = _CURVE_WIDTH) -> str:
    """Values as bars of eight heights, means of as many neighbours as it takes."""
    columns = min(width, len(values))
    edges = [round(index * len(values) / columns) for index in range(columns + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    heights = [(mean - low) / (high - low) if high > low else 0.0 for mean in means]
    return "".join(_BARS[round(height * (len(_BARS) - 1))] for height in heights)
