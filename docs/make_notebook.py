"""Run the notebook that `examples/which_of_my_parameters_decay.py` is written as, and keep what it printed.

python docs/make_notebook.py     writes examples/which_of_my_parameters_decay.ipynb, and a page of the same for the site
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
from figures import DOCS
from nbclient import NotebookClient

SCRIPT = DOCS.parent / "examples" / "which_of_my_parameters_decay.py"


def as_page(notebook: Any) -> str:
    """Text, code and printed output as Markdown."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        if printed.strip():
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    notebook = jupytext.read(SCRIPT)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(SCRIPT.parent)}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # the same at each run
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)  # when it ran
    Path(SCRIPT.with_suffix(".ipynb")).write_text(jupytext.writes(notebook, fmt="ipynb") + "\n", encoding="utf-8")
    (DOCS / f"{SCRIPT.stem}.md").write_text(as_page(notebook), encoding="utf-8")


if __name__ == "__main__":
    main()
