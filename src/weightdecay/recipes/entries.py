"""What a recipe file may hold: values with source and status, sources with how they were read, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from weightdecay.declared.fields import CLOSED, Number, Read, Text
from weightdecay.declared.reading import Fault, attempt
from weightdecay.declared.values import said
from weightdecay.recipes.moved import as_spelt_now

STATUSES = {
    "confirmed": "read in the primary source",
    "assumed": "not read there: not stated, or known from memory or at second hand; the source says which",
    "unpublished": "never published; the source is whose number it is",
    "contradicted": "the primary source says otherwise; the note says what",
}
READ = {
    "opened": "the file itself, at the commit that is named",
    "text": "the text of the paper, in copies that public repositories hold; not its PDF",
    "no": "not read here; nothing is confirmed by it",
}

Said = Annotated[str, Read(said), MinLen(1)]


def _with_reference(entry: Any) -> Any:
    """A source of which nothing but its reference is said."""
    return {"reference": entry} if isinstance(entry, str) else entry


@dataclass(frozen=True)
class Source:
    """A paper or a repository, and how it was read."""

    __pydantic_config__ = CLOSED

    reference: Said
    """In full."""
    read: Literal["opened", "text", "no"] = "opened"
    """How it was read."""


@dataclass(frozen=True)
class Sourced:
    """One value, where it comes from, and how sure that is."""

    __pydantic_config__ = CLOSED

    value: Any
    """As TOML has it."""
    status: Literal["confirmed", "assumed", "unpublished", "contradicted"]
    """How sure it is."""
    source: Said
    """Begins with the name of one of the file's sources, or says whose choice it is."""
    note: Text = ""
    """What else a reader must know."""


@dataclass(frozen=True)
class Brief:
    """A row of the table that people copy, and what is behind it."""

    __pydantic_config__ = CLOSED

    value: Number
    """λ as the table has it."""
    published: Text
    """λ as it is published, in words."""
    source: Text
    """Paper and section, or repository and path."""
    says: Text
    """What that source says."""
    check: Text
    """Where a reader sees it in a minute."""


Tables = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one size of a system adds to what all share."""

    __pydantic_config__ = CLOSED

    scaling: Text = ""
    """How a size that was never published was derived."""
    parameters: Number = 0.0
    """The published count."""
    model: Tables = field(default_factory=dict)
    """Values of the section of that name."""
    data: Tables = field(default_factory=dict)
    """Values of the section of that name."""
    optimizer: Tables = field(default_factory=dict)
    """Values of the section of that name."""
    schedule: Tables = field(default_factory=dict)
    """Values of the section of that name."""
    run: Tables = field(default_factory=dict)
    """Values of the section of that name."""
    as_published: Tables = field(default_factory=dict)
    """What to take instead where the published form differs."""


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe file."""

    __pydantic_config__ = CLOSED

    title: Text = ""
    """The system's name as people write it."""
    differs: Text = ""
    """What of the published system is not built here."""
    extends: Text = ""
    """A system whose recipe this one adds to and overrides."""
    brief: Brief | None = None
    """The system's row in the table that people copy."""
    sources: dict[str, Annotated[Source, Read(_with_reference)]] = field(default_factory=dict)
    """Short name of each source: its full reference, and how it was read."""
    common: Tables = field(default_factory=dict)
    """What all sizes share."""
    as_published: Tables = field(default_factory=dict)
    """What to take instead where the published form differs."""
    sizes: dict[str, Size] = field(default_factory=dict)
    """The sizes; the first is taken where none is named."""


def source_of(value: Sourced, sources: Mapping[str, Source]) -> Source | None:
    """The source whose name a value's source begins with, if one does."""
    names = [name for name in sources if value.source.startswith(name)]
    return sources[max(names, key=len)] if names else None


def values_in(tables: Tables, where: str, sources: Mapping[str, Source], faults: list[Fault]) -> dict[str, Sourced]:
    """Tables `section.key = { value, status, source }` as `section.key` to value, in today's spelling."""
    values: dict[str, Sourced] = {}
    for key, entry in _entries(tables, ""):
        place = f"{where}.{key}"
        found, wrong = attempt(Sourced, entry, place) if isinstance(entry, dict) else (None, [])
        faults += wrong
        if not isinstance(entry, dict):
            faults.append(Fault("wrong", place, f"{place}: must be {{ value = …, status = …, source = … }}"))
        if found is None:
            continue
        values |= {name: replace(found, value=value) for name, value in as_spelt_now({key: found.value}).items()}
        source = source_of(found, sources)
        if source and source.read == "no" and found.status == "confirmed":
            words = f"{place}: confirmed, but its source was not read: {source.reference}"
            faults.append(Fault("wrong", place, words))
    return values


def _entries(tables: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Every `section.key` and what stands there: the first table on the way down that holds more than tables."""
    for name, entry in tables.items():
        if isinstance(entry, dict) and (not above or all(isinstance(item, dict) for item in entry.values())):
            yield from _entries(entry, f"{above}{name}.")
        else:
            yield f"{above}{name}", entry
