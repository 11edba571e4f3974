"""Values that a declared field cannot hold, made from what it says of itself."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from typing import Any

from annotated_types import Ge, Gt, Interval, Le, Lt

from weightdecay.declared.fields import alternatives, choices, dataclass_of, item_of


def wrong_values(hint: Any) -> Iterator[tuple[str, Any]]:
    """A kind of fault, and a value that has it."""
    kinds = alternatives(hint)
    if names := choices(hint):
        yield "a choice that is none", "zz-no-such"
        yield "a misspelt choice", names[0][:-1] if len(names[0]) > 3 else names[0] + "q"
        yield "a number for a choice", 3
        return
    if float in kinds or int in kinds:
        yield "text for a number", "fast"
        yield "a truth value for a number", True
        yield "no number", math.nan
        yield "no number, as text", "nan"
        yield "without end", math.inf
        yield "a list for a number", [1]
        yield "a table for a number", {"value": 1}
        if float not in kinds:
            yield "a fraction for a whole number", 1.5
        yield from (("out of range", value) for value in out_of_range(hint))
    elif bool in kinds:
        yield "a word for a truth value", "perhaps"
        yield "a number for a truth value", 2
        yield "a list for a truth value", [True]
    elif str in kinds:
        yield "a number for text", 3
        yield "a list for text", ["a"]
        yield "text that no file can hold", "caf\udce9"
    elif typing.get_origin(kinds[0]) is tuple:
        yield "a table for a list", {"a": 1}
        yield "a number for a list", 3
        yield "a list of tables in lists", [[{}]]
        if dataclass_of(item_of(hint)):
            yield "a row without what it needs", [{}]
            yield "a row with what is none of it", [{"no-such": 1}]
    else:
        raise AssertionError(f"no wrong value is known here of {hint}")


def out_of_range(hint: Any) -> Iterator[float]:
    """Numbers just outside a field's bounds."""
    for bound in _bounds(hint):
        match bound:
            case Ge(ge=edge):
                yield float(edge) - 1  # type: ignore[arg-type]
            case Gt(gt=edge) | Lt(lt=edge):
                yield float(edge)  # type: ignore[arg-type]
            case Le(le=edge):
                yield float(edge) + 1  # type: ignore[arg-type]


def _bounds(hint: Any) -> Iterator[Any]:
    for member in typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ():
        if isinstance(member, Interval):
            yield from member
        elif isinstance(member, Ge | Gt | Le | Lt):
            yield member
        else:
            yield from _bounds(member)
