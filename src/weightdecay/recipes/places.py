"""Where in a TOML file each key stands, so that a fault can be told with its line."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_KEY = re.compile(r"""^\s*([\w.'"-]+(?:\s*\.\s*[\w.'"-]+)*)\s*=""")


def lines_of_keys(text: str) -> dict[str, int]:
    """`table.key` to the number of its line, counted from 1; tables by their own name.

    A file that tomllib has read is taken for granted; a key inside an inline table has its table's line.
    """
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("["):
            table = _dotted(line)
            lines.setdefault(table, number)
        elif found := _KEY.match(line):
            key = _dotted(found[1] + " = 0")
            lines.setdefault(f"{table}.{key}" if table else key, number)
    return lines


def _dotted(line: str) -> str:
    """The path that a line of TOML opens or sets, without quotes."""
    value: Any
    try:
        value = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ""
    path = []
    while isinstance(value, dict) and value:
        key = next(iter(value))
        path.append(key)
        value = value[key]
    return ".".join(path)
