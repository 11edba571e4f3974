"""An audit for people: a table for a terminal of any width, with the code that mends below, and Markdown."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightdecay.auditing.findings import Finding
from weightdecay.auditing.result import Audit
from weightdecay.errors import printable
from weightdecay.planning.patterns import alike, pattern_of

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_ROOM_FOR_AMOUNTS = 80  # columns
_PATTERNS = 4


def patterns(names: Sequence[str]) -> str:
    """Names that differ in their indices alone, as one; a few of many."""
    found = [pattern_of(group) for group in alike(names, lambda name: name, lambda _: None)]
    more = len(found) - _PATTERNS
    return printable(", ".join(found[:_PATTERNS]) + (f" … and {more} more" if more > 0 else ""))


def show(audit: Audit, console: Console) -> None:
    """Print an audit: the table, then each finding with the code that mends it."""
    width = console.width
    if audit.findings:
        console.print(_grid(audit, width))
    for number, finding in enumerate(audit.findings, 1):
        for said in _story(number, finding, width):
            # No line of code is broken or cut: it is to be pasted.
            console.print(said, soft_wrap=True)
    for line in _remarks(audit):
        console.print(_filled(line, width, style="dim"), soft_wrap=True)
    console.print(Text(audit.summary(), style="bold" if audit.ok else "bold red"))


def _grid(audit: Audit, width: int) -> Table:
    has_amounts = width >= _ROOM_FOR_AMOUNTS
    grid = Table(title=Text("what decays otherwise than asked"), title_justify="left", box=box.SIMPLE_HEAD,
                 pad_edge=False, collapse_padding=True)  # fmt: skip
    grid.add_column("", no_wrap=True)
    grid.add_column("severity", no_wrap=True)
    grid.add_column("code", no_wrap=True)
    grid.add_column("parameters", justify="right", no_wrap=True)
    if has_amounts:
        grid.add_column("asked → done", no_wrap=True)
    grid.add_column("tensors", overflow="fold")
    for number, finding in enumerate(audit.findings, 1):
        cells = [
            Text(str(number)),
            Text(finding.severity, _STYLES[finding.severity]),
            Text(finding.code),
            Text(f"{finding.elements:,}" if finding.elements else ""),
            *([Text(_amounts(finding))] if has_amounts else []),
            Text(patterns(finding.tensors)),
        ]
        grid.add_row(*cells)
    return grid


def _amounts(finding: Finding) -> str:
    if finding.asked is None or finding.realised is None:
        return ""
    return f"{finding.asked:.1e} → {finding.realised:.1e}"


def _story(number: int, finding: Finding, width: int) -> Iterator[Text]:
    yield _filled(f"{number}. {finding.code}: {finding.title}", width, style=_STYLES[finding.severity])
    for said in (finding.detail, _why(finding)):
        if said:
            yield _filled(said, width, indent="   ")
    if finding.fix:
        yield Text(textwrap.indent(printable(finding.fix), "       "), style="green")
    yield Text("")


def _filled(said: str, width: int, *, indent: str = "", style: str = "") -> Text:
    return Text(
        textwrap.fill(printable(said), width, initial_indent=indent, subsequent_indent=indent or "   "), style=style
    )


def _why(finding: Finding) -> str:
    return f"{finding.why} ({finding.source})" if finding.why and finding.source else finding.why


def _remarks(audit: Audit) -> list[str]:
    said = [printable(remark) for remark in audit.remarks]
    if audit.unknown:
        said.append(f"unknown role, and so not judged by it: {patterns(audit.unknown)}")
    said += [f"ignored: {count} × {code}" for code, count in audit.ignored.items()]
    return said


def table_text(audit: Audit, width: int = 100) -> str:
    """The table as plain text."""
    out = io.StringIO()
    show(audit, Console(file=out, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def markdown(audit: Audit) -> str:
    """The audit as Markdown."""
    lines = [f"**{_plain(audit.summary())}**", ""]
    if audit.findings:
        lines += ["| severity | code | parameters | asked → done | tensors |", "|---|---|---:|---|---|"]
        lines += [
            f"| {one.severity} | `{one.code}` | {one.elements:,} | {_amounts(one)} | {_plain(patterns(one.tensors))} |"
            for one in audit.findings
        ]
    for one in audit.findings:
        lines += ["", f"**`{one.code}`** {_plain(one.title)}"]
        for said in (one.detail, _why(one)):
            lines += ["", _plain(said)] if said else []
        if one.fix:
            lines += ["", "```python", one.fix, "```"]
    lines += ["", *(f"- {_plain(said)}" for said in _remarks(audit))] if _remarks(audit) else []
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    escaped = "".join(f"\\{c}" if c in "\\`*_|<>[]" else c for c in printable(text))
    return escaped.replace("\n", " ")
