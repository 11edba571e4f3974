"""Write the page and the pictures of studies that were carried out.

python docs/make_studies.py STUDY…      directories that `weightdecay study` made; each becomes docs/studies/NAME.md
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import DOCS, PICTURES, table

from weightdecay.runs import read_json

# What a page says of the pictures it shows, in order; the report of the study has all of them.
SHOWN = {
    "lambda": ("loss-over-lambda", "held-out-loss-over-the-run", "gap-over-lambda", "best-lambda-and-batch"),
    "memorization": ("exposure-at-one-training-loss", "exposure-at-equal-fit", "loss-by-regulariser"),
    "decoupling": ("loss-over-rate-and-lambda-1", "loss-over-rate-and-lambda-3"),
    "selective": ("loss-by-policy", "loss-by-norm"),
    "equilibrium": ("spread-of-rotation", "rotating-as-told"),
    "timescale": ("loss-at-equal-product", "loss-at-equal-rate"),
    "schedule": ("norm-at-the-end", "loss-by-schedule"),
    "downstream": ("val-bits-per-byte-over-lambda", "finetuned-loss-over-lambda", "compressed-bits-over-lambda"),
}

TOLD = ("run.steps", "run.batch_tokens", "optimizer.lr", "model.n_layers", "model.d_model", "model.vocab_size")


def main(places: list[str]) -> int:
    if not places:
        print(__doc__, file=sys.stderr)
        return 2
    for place in map(Path, places):
        study, results = read_json(place / "study.json"), read_json(place / "results.json")
        drawn = _draw(place, study["study"])
        page = DOCS / "studies" / f"{study['study']}.md"
        page.write_text(_page(study, results, drawn), encoding="utf-8")
        print(f"wrote {page.relative_to(DOCS.parent)} and {len(drawn)} pictures")
    return 0


def _draw(place: Path, name: str) -> dict[str, str]:
    """The pictures of the page, by name: their files."""
    drawn = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "weightdecay", "report", str(place), "--out", f"{folder}/page.html"]
        subprocess.run([*command, "--pictures", folder], check=True, stdout=subprocess.DEVNULL)
        for picture in SHOWN[name]:
            drawn[picture] = f"study-{name}-{picture}.svg"
            svg = (Path(folder) / f"{picture}.svg").read_text(encoding="utf-8")
            (PICTURES / drawn[picture]).write_text(svg.rstrip() + "\n", encoding="utf-8")
    return drawn


def _page(study: dict[str, Any], results: dict[str, Any], drawn: dict[str, str]) -> str:
    pictures = {picture["id"]: picture for picture in results["pictures"]}
    shown = [f"![{pictures[name]['alt']}](../pictures/{file})" for name, file in drawn.items()]
    claims = [(one["claim"], f"**{one['verdict']}**", one["sentence"]) for one in results["verdicts"]]
    parts = [
        f"# {study['title']}",
        f"**Question.** {study['question']}",
        f"**What people say.** {study['belief']}",
        f"**Answer, as measured here.** {results['answer']}",
        *shown,
        "## Claims, and what came of them",
        table(("claim", "this study", "measured"), claims),
        "## What was run",
        _run(study, results),
        "\n".join(f"- {sentence}" for sentence in study["protocol"]),
        "## What can't be concluded",
        "\n".join(f"- {sentence}" for sentence in results["limits"]),
        "## Again",
        f"```\n{_command(study)}\nweightdecay report studies/{study['study']} --out {study['study']}.html\n```",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _run(study: dict[str, Any], results: dict[str, Any]) -> str:
    counted = sum(run["counted"] for run in results["runs"])
    size = {"quick": "the quick size (`--quick`)", "full": "the full size", "large": "the large size"}[study["scale"]]
    environments = (
        f"{one.get('cuda') or one['processor']} with torch {one['torch']}" for one in results["environments"]
    )
    machines = ", ".join(dict.fromkeys(environments))
    given = ", ".join(f"{key} = {study['settings'][key]}" for key in TOLD if key in study["settings"])
    unfinished = "" if results["complete"] else f" {len(results['runs']) - counted} runs were not made."
    return (
        f"{counted} runs of {study['recipe']} at {size}, seeds {', '.join(map(str, study['seeds']))}, "
        f"{study['started'][:10]}, on {machines}.{unfinished} Common settings: {given}."
    )


def _command(study: dict[str, Any]) -> str:
    size = {"quick": " --quick", "full": "", "large": " --scale"}[study["scale"]]
    return f"weightdecay study {study['study']}{size} --out studies/{study['study']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
