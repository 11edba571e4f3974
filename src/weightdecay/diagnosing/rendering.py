"""A diagnosis for people, in a terminal of any width."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightdecay.diagnosing.diagnosis import Diagnosis
from weightdecay.errors import printable
from weightdecay.monitoring.alarms import Alarm
from weightdecay.monitoring.rows import Row
from weightdecay.planning.patterns import alike, pattern_of

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_WIDE = 100  # columns
_PATTERNS = 4


def show(found: Diagnosis, console: Console) -> None:
    """Print it: where each role is, then what is wrong."""
    width = console.width
    console.print(Text(printable(_head(found)), style="bold"), soft_wrap=True)
    if found.roles:
        console.print(_table(found.roles, width))
    for number, finding in enumerate(found.findings, 1):
        for line in _story(number, finding, width):
            console.print(line, soft_wrap=True)
    for remark in found.remarks:
        console.print(_filled(remark, width, style="dim"), soft_wrap=True)
    if not found.findings:
        console.print(Text("nothing is wrong with its decay, as far as its rows tell", style="bold"))


def text(found: Diagnosis, width: int = 120) -> str:
    """The same as plain text."""
    out = io.StringIO()
    show(found, Console(file=out, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _head(found: Diagnosis) -> str:
    said = f"{found.run}: {found.status}, step {found.step:,} of {found.steps:,}; {found.optimizer}"
    if found.decay_total is not None:
        said += f"; Σ of the decay per step {found.decay_total:.3g}"
    if found.within is not None:
        said += f"; {found.within:.0%} of hidden matrices turn as expected (last quarter)"
    return said


def _table(roles: Sequence[Row], width: int) -> Table:
    """Seen beside expected; a narrow terminal has the norms and angles alone."""
    wide = width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("role", overflow="fold")
    columns = ["tensors", "rms", "(expected)", "angle", "(expected)"]
    columns += ["decay asked", "done", "half-life", "to equilibrium"] if wide else []
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for row in roles:
        cells = [
            str(row["tensors"]),
            _number(row["weight_rms"]),
            _number(_either(row, "rms")),
            _number(row["angle"]),
            _number(_either(row, "angle")),
        ]
        if wide:
            memory = row["memory_tokens"]
            cells += [
                _number(row["decay_requested"]),
                _number(row["decay_realised"]),
                "" if memory is None else f"{memory:.3g} tokens",
                _when(row["steps_to_equilibrium"]),
            ]
        table.add_row(Text(printable(row["role"])), *map(Text, cells))
    return table


def _either(row: Row, of: str) -> float | None:
    """Where the schedule leads, or where the present numbers would."""
    expected: float | None = row[f"expected_{of}"]
    settled: float | None = row[f"equilibrium_{of}"]
    return settled if expected is None else expected


def _when(steps: float | None) -> str:
    return "" if steps is None else "there" if steps == 0 else f"{steps:,.0f} steps"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _story(number: int, finding: Alarm, width: int) -> list[Text]:
    said = [_filled(f"{number}. {finding.code}: {finding.title}", width, style=_STYLES[finding.severity])]
    where = f"at step {finding.step:,}" + (f": {_names(finding.tensors)}" if finding.tensors else "")
    said += [_filled(part, width, indent="   ") for part in (finding.detail, where) if part]
    return said


def _names(names: Sequence[str]) -> str:
    """Names that differ in their indices alone as one; a few of many."""
    found = [pattern_of(group) for group in alike(names, lambda name: name, lambda _: None)]
    more = len(found) - _PATTERNS
    return ", ".join(found[:_PATTERNS]) + (f" … and {more} more" if more > 0 else "")


def _filled(said: str, width: int, *, indent: str = "", style: str = "") -> Text:
    lines = textwrap.fill(printable(said), width, initial_indent=indent, subsequent_indent=indent or "   ")
    return Text(lines, style=style)
