"""The notebook, its page and the script that both are made from hold the same code, and the script runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "which_of_my_parameters_decay.py"


def cells() -> list[str]:
    """The code of each cell."""
    parts = SCRIPT.read_text(encoding="utf-8").split("\n# %%")[1:]
    return [part.strip() for part in parts if not part.startswith(" [markdown]")]


def test_the_notebook_and_its_page_hold_the_scripts_code() -> None:
    notebook = json.loads(SCRIPT.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert ["".join(c["source"]).strip() for c in notebook["cells"] if c["cell_type"] == "code"] == cells()
    page = (ROOT / "docs" / f"{SCRIPT.stem}.md").read_text(encoding="utf-8")
    assert [block.partition("\n```")[0].strip() for block in page.split("```python\n")[1:]] == cells()


@pytest.mark.long
def test_the_script_runs_and_tells_the_two_apart() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    assert "nothing decays otherwise than asked" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("λ = 3.0: everything − plan = +")
