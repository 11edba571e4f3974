"""Draw the pictures of report.md from a run that is trained for it (minutes), and write what its page says."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from figures import DOCS, PICTURES, write_block

from weightdecay.reporting.report import page_of
from weightdecay.reporting.svg import standalone

RUN = DOCS.parent / "build" / "report" / "run"
SETTINGS = [
    "--weight-decay",
    "3",
    "--lr",
    "4e-3",
    "--steps",
    "200",
    "--batch-tokens",
    "1024",
    "--tokenizer",
    "bpe:1024",
]
SHOWN = ("loss", "weight-rms")


def train() -> None:
    """About a megabyte of the standard library; a run that is there already is left as it is."""
    text = Path(sysconfig.get_paths()["stdlib"]) / "[a-d]*.py"
    command = [
        sys.executable,
        "-m",
        "weightdecay",
        "train",
        "gpt3:nano",
        "--data",
        str(text),
        *SETTINGS,
        "--out",
        str(RUN),
    ]
    subprocess.run([*command, "--dtype", "float32", "--json"], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    train()
    page = page_of([RUN])
    for figure in page.figures():
        if figure.picture.id in SHOWN:
            name = f"report-{figure.picture.id}.svg"
            (PICTURES / name).write_text(standalone(figure.picture), encoding="utf-8")
            print(f"pictures/{name}: drawn")
    findings = [f"- {finding.severity}: {finding.title}" for finding in page.findings]
    said = f"> {page.answer}\n\nand finds:\n\n" + "\n".join(findings) if findings else f"> {page.answer}"
    write_block("report.md", "answer", said)


if __name__ == "__main__":
    main()
