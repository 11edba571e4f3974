"""Tables read as declared dataclasses by pydantic, which finds every fault at once; told in words of ours.

pydantic is imported, and its checks are built, when values are first read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from weightdecay.declared.fields import (
    ContradictionError,
    choices,
    dataclass_of,
    expected,
    hints,
    item_of,
    keys_of,
    leaves,
)
from weightdecay.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """What is wrong at one place.

    Attributes:
        kind: nothing was given where something must be; what was given is no field; it cannot be held; or values that
            are each in range do not go together.
        key: dotted path of the place; of a contradiction, of the first of its values.
        words: what is wrong, place included.
        about: the fields that it is about.
    """

    kind: Literal["missing", "unknown", "wrong", "contradiction"]
    key: str
    words: str

    about: frozenset[str] = frozenset()


class ReadError(ConfigError):
    """A table that is no such dataclass; each fault also with its place."""

    def __init__(self, found: Sequence[Fault]) -> None:
        super().__init__([fault.words for fault in found])
        self.found = list(found)


def read(kind: type[T], table: Mapping[str, Any], under: str = "") -> T:
    """A table as the dataclass that it describes.

    Args:
        under: where the table stands, `model` say, for the messages.

    Raises:
        ReadError: every key that is no field, every field without a value or with one that it cannot hold, and what
            does not go together; all at once.
    """
    found, faults = attempt(kind, table, under)
    if found is None or faults:
        raise ReadError(faults)
    return found


def attempt(kind: type[T], table: Mapping[str, Any], under: str = "") -> tuple[T | None, list[Fault]]:
    """The same, with the faults beside it instead of raised."""
    found, faults = _checked(kind, table, under)
    unread = {_field(fault.key) for fault in faults if fault.kind in ("wrong", "unknown")}
    if not unread:
        return found, faults

    # A dataclass with a value that cannot be read is not looked at as a whole: once more without such values, for what
    # does not go together among the others.
    _, others = _checked(kind, without(table, unread, f"{under}." if under else ""), under)
    told = {fault.words for fault in faults}
    return None, faults + [
        fault
        for fault in others
        if fault.kind == "contradiction" and fault.words not in told and not fault.about & unread
    ]


def _checked(kind: Any, table: Mapping[str, Any], under: str) -> tuple[Any, list[Fault]]:
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(table), []
    except ValidationError as error:
        entries = error.errors(include_url=False)

    # A value that none of several types can hold is told by pydantic once for each of them.
    once: dict[tuple[str, str], Fault] = {}
    for fault in (fault for entry in entries for fault in _told(kind, entry, under)):
        once.setdefault((fault.key, fault.words if fault.kind == "contradiction" else ""), fault)
    return None, list(once.values())


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _field(key: str) -> str:
    """The field that holds this place: of a row of a list, the list."""
    return key.partition("[")[0]


def without(table: Mapping[str, Any], keys: Set[str], above: str = "") -> dict[str, Any]:
    """A table without what stands under some dotted paths, and without tables that held nothing else."""
    kept: dict[str, Any] = {}
    for name, value in table.items():
        if f"{above}{name}" in keys:
            continue
        inner = without(value, keys, f"{above}{name}.") if isinstance(value, Mapping) else value
        if inner or not value:
            kept[name] = inner
    return kept


def _told(kind: Any, entry: Mapping[str, Any], under: str) -> Iterator[Fault]:
    """One of pydantic's faults in our words."""
    key, hint, known = _place(kind, entry["loc"], under)
    raised = entry.get("ctx", {}).get("error")
    if isinstance(raised, ContradictionError):
        for keys, words in raised.found:
            yield Fault("contradiction", keys[0], words, frozenset(keys))
        return

    match entry["type"]:
        case "missing":
            part = dataclass_of(hint)
            needed = (
                [key] if part is None else [f"{key}.{name}" for name, leaf in leaves(part).items() if leaf.required]
            )
            yield from (Fault("missing", place, f"{place} is missing") for place in needed)
        case "unexpected_keyword_argument":
            for leaf in _leaves_of(key, entry["input"]):
                yield Fault("unknown", leaf, f"unknown key '{leaf}': {did_you_mean(leaf, known)}")
        case _ if "[key]" in entry["loc"]:  # of a table whose keys are names of something
            yield Fault("unknown", key, f"unknown key '{key}': {did_you_mean(key.rpartition('.')[2], known)}")
        case _:
            value = entry["input"]
            names = choices(hint) if isinstance(value, str) else []
            wanted = did_you_mean(value, names) if names else f"must be {expected(hint)}"
            yield Fault("wrong", key, f"{key} = {_shown(value)}: {wanted}")


def _place(kind: Any, loc: Sequence[int | str], under: str) -> tuple[str, Any, Iterable[str]]:
    """Where a fault is: its dotted path, what is declared there, and the keys that could stand there."""
    key: str = under
    hint: Any = kind
    known: Iterable[str] = [f"{under}.{leaf}" if under else leaf for leaf in leaves(kind)]
    many = False  # whether it is in a row of a list or of a table, whose fields are no leaves
    for step in loc:
        part, item = dataclass_of(hint), item_of(hint)
        inside = f"{key}." if key else ""
        if isinstance(step, int):
            key, hint, many = f"{key}[{step}]", item, True
        elif part is not None:
            known = [f"{inside}{name}" for name in hints(part)] if many else known
            key, hint = f"{inside}{step}", hints(part).get(step)
        elif item is not None and step != "[key]":
            known, many = choices(keys_of(hint)), True
            key, hint = f"{inside}{step}", item
        else:
            break  # which of several types pydantic tried, in its own words
    return key, hint, known


def _leaves_of(key: str, value: Any) -> Iterator[str]:
    """The paths of what stands under a key that is unknown, so that each can be told the nearest known one."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves_of(f"{key}.{name}", item)
    else:
        yield key


def _shown(value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


_SHOWN = 80  # characters of a value that is wrong
