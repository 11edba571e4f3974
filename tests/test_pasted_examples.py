"""Every example of a docstring or a page can be pasted as it stands, by who has a model and a loop."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a reader has already; nanoGPT's `configure_optimizers`, into which a page's lines go, has the last three.
READERS = {"model", "optimizer", "batches", "self", "weight_decay", "learning_rate"}
# Examples that want files, training or half a gigabyte: only their names are looked at here.
TOO_MUCH = ("data/", "integrations/", "models/", "optim/state/migrate", "training/")
_SECTIONS = ("Args:", "Attributes:", "Raises:", "Reference:", "Returns:")
_PUBLIC_CALL = re.compile(r"\b(" + "|".join(name for name in weightdecay.__all__ if name[0] != "_") + r")\(")


def indented(docstring: str) -> Iterator[str]:
    """The indented blocks of a docstring but for those of its sections."""
    block: list[str] = []
    in_section = False
    for line in [*docstring.splitlines(), "end"]:
        if line.startswith("    ") or (block and not line.strip()):
            block += [] if in_section else [line]
            continue
        if block:
            yield textwrap.dedent("\n".join(block)).strip()
        block = []
        in_section = line.strip() in _SECTIONS if line.strip() else in_section


def is_code(block: str) -> bool:
    """Whether a block is Python rather than an equation; what cannot be parsed but calls us is code that is broken."""
    try:
        tree = ast.parse(block.replace("…", "..."))
    except SyntaxError:
        return _PUBLIC_CALL.search(block) is not None
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def documented(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """The name and docstring of a module, of its classes and functions, and of theirs; nothing else is looked at."""
    if text := ast.get_docstring(node):
        yield getattr(node, "name", ""), text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from documented(child)


def of_docstrings() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "src" / "weightdecay").rglob("*.py")):
        place = path.relative_to(ROOT / "src" / "weightdecay").as_posix()
        for name, text in documented(ast.parse(path.read_text(encoding="utf-8"))):
            blocks = [block for block in indented(inspect.cleandoc(text)) if is_code(block)]
            found |= {f"{place} {name} {index}": block for index, block in enumerate(blocks)}
    return found


def of_pages() -> dict[str, list[str]]:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
    return {
        name: found for name, text in texts.items() if (found := re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    }


DOCSTRINGS, ON_PAGES = of_docstrings(), of_pages()


def unknown_names(code: str, known: set[str]) -> set[str]:
    """Names that code reads and that neither it nor its reader has; what it binds is added to `known`."""
    assert "…" not in code, "an ellipsis cannot be pasted"
    tree = ast.parse(code)
    bound: set[str] = set()
    read: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add((asname or name).partition(".")[0])
    known |= bound
    return read - known - set(vars(builtins))


@pytest.mark.parametrize("place", DOCSTRINGS)
def test_an_example_of_a_docstring_brings_its_imports(place: str) -> None:
    assert unknown_names(DOCSTRINGS[place], set(READERS)) == set()


@pytest.mark.parametrize("page", ON_PAGES)
def test_the_examples_of_a_page_bring_their_imports(page: str) -> None:
    known = set(READERS)
    for block in ON_PAGES[page]:
        assert unknown_names(block, known) == set(), block


@pytest.mark.parametrize("place", [place for place in DOCSTRINGS if not place.startswith(TOO_MUCH)])
def test_an_example_of_a_docstring_runs(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1)
    model(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    names: dict[str, Any] = {"model": model, "optimizer": optimizer, "batches": [torch.randn(4, 6) for _ in range(3)]}
    exec(compile(DOCSTRINGS[place], place, "exec"), names)


def test_examples_are_found() -> None:
    assert len(DOCSTRINGS) >= 12
    assert {"README.md", "docs/plan.md", "docs/rules.md", "docs/resume.md", "examples/README.md"} <= ON_PAGES.keys()
    assert unknown_names("import a.b as c\nc(d)", set()) == {"d"}
