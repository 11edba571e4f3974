"""`weightdecay report`."""

from __future__ import annotations

from dataclasses import dataclass

from weightdecay.cli.flags import Argument, Choice, File, Folder, Paths, Switch, raise_together
from weightdecay.cli.output import console, note, print_json
from weightdecay.errors import did_you_mean, printable

_FORMATS = ("html", "md")


@dataclass(frozen=True)
class Report:
    """One self-contained page of a run, several runs or a study: the answer with its uncertainty, and the plots."""

    directories: Argument[Paths]
    """Run directories, folders that hold runs, or one study's directory; finished or not."""
    out: File = ""
    """The page. Default: report.html in the one directory that is given, or here."""
    format: Choice = ""
    """html (one file that needs no network) or md (with its pictures beside it). Default: as --out ends, or html."""
    pictures: Folder = ""
    """Write each plot there as SVG, too."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from pathlib import Path

        form = self.format or ("md" if self.out.endswith((".md", ".markdown")) else "html")
        faults = [] if form in _FORMATS else [f"--format {form}: {did_you_mean(form, _FORMATS)}"]
        raise_together(faults)

        from weightdecay.reporting.report import report

        written = report(
            [Path(name) for name in self.directories],
            Path(self.out) if self.out else None,
            format="md" if form == "md" else "html",
            pictures=Path(self.pictures) if self.pictures else None,
        )
        page = written.page
        if self.json:
            print_json(
                {
                    "out": str(written.out),
                    "bytes": written.size,
                    "title": page.title,
                    "asked": page.asked,
                    "answer": page.answer,
                    "findings": [vars(finding) for finding in page.findings],
                    "plots": [figure.picture.id for figure in page.figures()],
                    "pictures": [str(path) for path in written.pictures],
                }
            )
            return 0
        from rich.text import Text

        console().print(Text(printable(page.answer)))
        for finding in page.findings:
            note(f"{finding.severity}: {finding.title}{': ' if finding.text else ''}{finding.text}")
        console().print(Text(printable(f"\n{written.out}: {written.size / 1e6:.2f} MB")), soft_wrap=True)
        return 0
