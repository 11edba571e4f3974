"""Audit every exhibit, wrong and mended, and print what was said of it.

python -m examples.museum               exit 1 if an exhibit is not called by its name
python -m examples.museum --svg FILE    and the table as a picture
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from examples.museum.collection import exhibits
from examples.museum.exhibit import Exhibit, Loop
from rich.console import Console
from rich.table import Table
from rich.text import Text

import weightdecay
from weightdecay.auditing.findings import Finding

WIDTH = 138
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def audited(loop: Loop) -> Sequence[Finding]:
    findings: Sequence[Finding] = weightdecay.audit(loop.model, loop.optimizer, **loop.asked).findings
    return findings


def named(exhibit: Exhibit, findings: Sequence[Finding]) -> Finding | None:
    """The finding that calls the bug by its name, on the tensors that have it."""
    for finding in findings:
        called = (finding.code, finding.severity) == (exhibit.code, exhibit.severity)
        if called and set(exhibit.tensors) <= set(finding.tensors):
            return finding
    return None


def serious(findings: Sequence[Finding]) -> list[str]:
    return sorted({finding.code for finding in findings if finding.severity != "note"})


def faults(exhibit: Exhibit, wrong: Sequence[Finding], mended: Sequence[Finding]) -> list[str]:
    """What is not as the exhibit says; one bug has one name, and the mended loop has none."""
    found = []
    if named(exhibit, wrong) is None:
        found.append(f"no {exhibit.severity} {exhibit.code!r} on {', '.join(exhibit.tensors)}")
    if more := [code for code in serious(wrong) if code != exhibit.code]:
        found.append(f"also called {', '.join(more)}")
    if named(exhibit, mended) is not None or serious(mended):
        found.append(f"mended, it is still called {', '.join(serious(mended) or [exhibit.code])}")
    return found


def row(exhibit: Exhibit) -> tuple[list[Text], list[str]]:
    wrong, mended = audited(exhibit.wrong()), audited(exhibit.mended())
    finding, rest = named(exhibit, wrong), serious(mended)
    found = (f"{finding.severity}: {finding.code}", STYLES[finding.severity]) if finding else ("not found", "bold red")

    # Text, never markup: what stands in an exhibit is printed as it is.
    cells = [
        Text.assemble((exhibit.project, "bold"), " ", (exhibit.place.split(" ")[0], f"dim link {exhibit.reference}")),
        Text(exhibit.bug),
        Text(*found),
        Text(amounts(finding) if finding else ""),
        Text(", ".join(rest), "bold red") if rest else Text("ok", "green"),
    ]
    return cells, [f"{exhibit.project}: {fault}" for fault in faults(exhibit, wrong, mended)]


def amounts(finding: Finding) -> str:
    """What was asked of a step and what it does, as shares of the weights."""
    return "" if finding.asked is None or finding.realised is None else f"{finding.asked:.2g} → {finding.realised:.2g}"


def table(rows: Sequence[Sequence[Text]]) -> Table:
    made = Table(title="Decay bugs of public projects, rebuilt and audited")
    for title in ("project", "what went wrong", "the audit says", "asked → realised", "mended"):
        made.add_column(title)
    for cells in rows:
        made.add_row(*cells)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", type=Path, help="write the table as a picture")
    svg: Path | None = parser.parse_args(arguments).svg

    torch.set_num_threads(1)  # tensors this small lose time to a second thread
    rows = [row(exhibit) for exhibit in exhibits()]
    wrong = [fault for _, said in rows for fault in said]
    shown = table([cells for cells, _ in rows])
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(shown)
    for fault in wrong:
        console.print(Text(fault, style="red"))
    print(f"{sum(not said for _, said in rows)} of {len(rows)} exhibits are called by their names")

    if svg is not None and not wrong:
        picture = Console(record=True, width=WIDTH, file=io.StringIO())
        picture.print(shown)
        picture.save_svg(str(svg), title="make museum")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
