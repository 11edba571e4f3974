"""Draw the README's pictures from the real thing: the plan of gpt2:124m, and a training of gpt3:nano (minutes).

python docs/make_pictures.py            both
python docs/make_pictures.py RUN.txt    the training from a transcript that `weightdecay train` printed
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from weightdecay.models.decoder import GPT
from weightdecay.planning.plan import plan
from weightdecay.planning.render import PlanTable
from weightdecay.recipes.schema import recipe

PICTURES = Path(__file__).parent / "pictures"
WIDTH = 118


def draw_plan() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    one = recipe("gpt2:124m")
    with torch.device("meta"):
        model = GPT(one.model)
    decided = plan(model, weight_decay=one.config().optimizer.peak_weight_decay)
    console.print(PlanTable(decided))
    console.print(Text(str(decided.summary())))
    console.save_svg(str(PICTURES / "plan.svg"), title="weightdecay plan gpt2:124m")


def draw_training(transcript: str) -> None:
    """What was printed, without the plan's table (it has its own picture) and with the sample's first lines."""
    lines = transcript.splitlines()
    start = next(n for n, line in enumerate(lines) if "do not" in line and "decay," in line)
    sample = next(n for n, line in enumerate(lines) if line.startswith("A sample"))
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in [*lines[start : sample + 14], "…"]:
        console.print(Text(line), soft_wrap=False)
    console.save_svg(str(PICTURES / "training.svg"), title="weightdecay train gpt3:nano")


def trained() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "weightdecay", "train", "gpt3:nano", "--out", f"{folder}/run"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    draw_plan()
    draw_training(Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else trained())


if __name__ == "__main__":
    main()
