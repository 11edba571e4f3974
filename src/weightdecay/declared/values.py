"""Values as people give them, in TOML, in Python or as the text of a flag, read as what a field holds; and back."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from numbers import Real
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"([+-]?[\d._]+(?:e[+-]?\d+)?)([kMGBT]?)", re.IGNORECASE)
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


# Each raises ValueError where a value cannot be read; what was expected instead is said by `fields.expected`.
def number(value: Any) -> float:
    """A finite number; as text also `1_000`, `5M` or `1.5k`."""
    if isinstance(value, str):
        value = _number_in(value)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def whole_number(value: Any) -> int:
    """A number without a fraction, however it is written; of 64 bits, which is what TOML and tensors hold."""
    return _whole(value, below=2**63)


def seed(value: Any) -> int:
    """A whole number that torch's generators take: of 64 bits without a sign, one more than other numbers have."""
    return _whole(value, below=2**64)


def _whole(value: Any, below: int) -> int:
    if isinstance(value, str):
        value = _number_in(value)
    # A whole number stands as it is: a float would round a large one.
    found = value if isinstance(value, int) and not isinstance(value, bool) else number(value)
    if found != int(found) or abs(found) >= below:
        raise ValueError(value)
    return int(found)


def quantity(number: float) -> str:
    """12,300,000 as `12.3M`; infinity as `endless`."""
    if math.isinf(number):
        return "endless"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _number_in(text: str) -> int | float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    try:  # in decimals: 4.1 times a million is a whole number, which in floats it is not
        exact = Decimal(match[1].replace("_", "")) * _SIZES[match[2].lower()]
    except ArithmeticError:
        raise ValueError(text) from None
    return int(exact) if abs(exact) < 2**64 and exact % 1 == 0 else float(exact)


def switch(value: Any) -> bool:
    """True or false, as text also yes or no, 1 or 0."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError(value)


def text(value: Any) -> str:
    """Text, or a path; bytes of a path that are not UTF-8 are refused, since no TOML can hold them."""
    if not isinstance(value, str | Path):
        raise ValueError(value)
    str(value).encode()
    return str(value)


def path(value: Any) -> str:
    """A path, or a name that stands for one; `~` within quotes as a shell reads it without them."""
    return with_home(text(value))


def with_home(path: str) -> str:
    """`~/x` with the home that it names; as it is where a file is called so, or nobody's home is known."""
    if not path.startswith("~") or os.path.lexists(path):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def said(value: Any) -> str:
    """Text without the space around it."""
    return text(value).strip()


def texts(value: Any) -> tuple[Any, ...]:
    """A list, one text, or a text that is a list in TOML."""
    if isinstance(value, Path) or (isinstance(value, str) and not value.lstrip().startswith("[")):
        return (value,)
    return rows(value)


def rows(value: Any) -> tuple[Any, ...]:
    """A list, or a text that is one in TOML, as `--set` gives it."""
    if isinstance(value, str):
        value = tomllib.loads(f"value = {value}")["value"]
    if not isinstance(value, list | tuple):
        raise ValueError(value)
    return tuple(value)


def plain(value: Any) -> Any:
    """A value as TOML and JSON have it: tables, lists, numbers, texts; what is None is left out of its table."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def pairs(instance: Any) -> dict[str, Any]:
    """A dataclass as dotted paths and plain values; what is None is left out."""
    return flat(plain(instance))


def flat(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Tables as dotted paths and values; lists stay as they are."""
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def nested(given: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Dotted paths and values as the tables that they stand for, beside what is there at the start."""
    tables: dict[str, Any] = dict(start or {})
    for key, value in given.items():
        *above, name = key.split(".")
        table = tables
        for step in above:
            inner = table.setdefault(step, {})
            if not isinstance(inner, dict):  # a value where a table should be, which reading will refuse
                break
            table = inner
        else:
            table[name] = value
    return tables
