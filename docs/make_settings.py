"""Writes docs/settings.md from the settings' own declarations: every setting, what it takes, and what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weightdecay.declared.fields import Declared, choices, dataclass_of, expected, hints, item_of, leaves
from weightdecay.declared.values import plain
from weightdecay.recipes.settings import TrainConfig, known_keys

PAGE = Path(__file__).parent / "settings.md"


def page() -> str:
    """The whole page."""
    lines = [
        "# Settings",
        "",
        "This page is made from the declarations in `src/weightdecay/recipes/` and `models/` by",
        "`docs/make_settings.py`; a test fails if they differ. A setting is given in a recipe, in a file",
        "(`train --config`), by its flag where it has one, or by `--set KEY=VALUE`.",
        "",
    ]
    rows: dict[str, Any] = {}
    for table, settings in _tables().items():
        lines += [f"## {table}", "", *_described(settings, table)]
        for found in settings:
            if row := dataclass_of(item_of(found.hint)):
                rows[row.__name__] = row
    lines += ["## Rows of lists", ""]
    for row in rows.values():
        lines += [f"### {row.__name__}", "", _first_line(row), "", *_described(leaves(row).values(), "")]
    return "\n".join(lines)


def _tables() -> dict[str, list[Declared]]:
    """Every setting by the table that it stands in."""
    tables: dict[str, list[Declared]] = {}
    for key, found in known_keys().items():
        tables.setdefault(key.rpartition(".")[0], []).append(found)
    return tables


def _described(settings: Iterable[Declared], table: str) -> list[str]:
    """A line a setting, under what its table is."""
    lines = [_first_line(_kind_of(table)), ""] if table else []
    lines += ["| setting | takes | default | |", "| --- | --- | --- | --- |"]
    for found in settings:
        name = found.key.rpartition(".")[2]
        flag = f"`--{(found.flag.name or name).replace('_', '-')}`: " if found.flag else ""
        cells = (f"`{name}`", _takes(found.hint), _default(found), flag + found.words)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _kind_of(table: str) -> Any:
    kind: Any = TrainConfig
    for step in table.split("."):
        kind = dataclass_of(hints(kind)[step])
    return kind


def _takes(hint: Any) -> str:
    if row := dataclass_of(item_of(hint)):
        return f"a list of [{row.__name__}](#{row.__name__.lower()})"
    return ", ".join(f"`{name}`" for name in choices(hint)) or expected(hint)


def _default(found: Declared) -> str:
    if found.default is dataclasses.MISSING:
        return "must be given"
    value = plain(found.default)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value not in ("", []) else "none"


def _first_line(kind: Any) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
