"""What the entries of a recipe file hold: a value with its source and status, a source with how it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightdecay.errors import did_you_mean
from weightdecay.recipes.settings import SECTIONS, known_keys, read_values

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

# Where in the file, as a dotted path, and what is wrong there.
Faults = list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """A paper or a repository, and how it was read: one of READ."""

    reference: str
    read: str = "opened"


@dataclass(frozen=True)
class Sourced:
    """One value, where it comes from, and how sure that is."""

    value: Any
    status: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Brief:
    """A row of the table that people copy, and what is behind it.

    Attributes:
        value: λ as the table has it.
        published: λ as it is published, in words.
        source: paper and section, or repository and path.
        says: what that source says.
        check: where a reader sees it in a minute.
    """

    value: float
    published: str
    source: str
    says: str
    check: str


def sources_in(entries: Any, faults: Faults) -> dict[str, Source]:
    """The table [sources]: a text, or `{ reference = …, read = … }`, for each name."""
    found = {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        place = f"sources.{name}"
        try:
            found[name] = Source(entry) if isinstance(entry, str) else Source(**entry)
        except TypeError:
            faults.append((place, f"{place}: must be a text or {{ reference = …, read = … }}"))
            continue
        if found[name].read not in READ:
            faults.append((place, f"{place}: read '{found[name].read}': {did_you_mean(str(found[name].read), READ)}"))
    return found


def source_of(value: Sourced, sources: Mapping[str, Source]) -> Source | None:
    """The source whose name a value's source begins with, if one does."""
    names = [name for name in sources if value.source.startswith(name)]
    return sources[max(names, key=len)] if names else None


def brief_in(entry: Any, faults: Faults) -> Brief | None:
    """The table [brief], if there is one."""
    if not isinstance(entry, dict):
        return None
    try:
        return Brief(**entry)
    except TypeError:
        faults.append(("brief", "brief: must have value, published, source, says and check"))
        return None


def values_in(
    sections: Mapping[str, Any], where: str, sources: Mapping[str, Source], faults: Faults
) -> dict[str, Sourced]:
    """Tables `section.key = { value, status, source }` as `section.key` to value."""
    values = {}
    for section, entries in sections.items():
        if section not in SECTIONS or not isinstance(entries, dict):
            known = did_you_mean(section, SECTIONS)
            faults.append((f"{where}.{section}", f"{where}: unknown section '{section}': {known}"))
            continue
        for name, entry in entries.items():
            key, place = f"{section}.{name}", f"{where}.{section}.{name}"
            if wrong := _value_faults(key, entry):
                faults += [(place, f"{place}: {fault}") for fault in wrong]
                continue
            values[key] = Sourced(**{**entry, "value": read_values({key: entry["value"]})[0][key]})
            source = source_of(values[key], sources)
            if source and source.read == "no" and entry["status"] == "confirmed":
                faults.append((place, f"{place}: confirmed, but its source was not read: {source.reference}"))
    return values


def _value_faults(key: str, entry: Any) -> list[str]:
    if key not in known_keys():
        return [f"unknown key: {did_you_mean(key, known_keys())}"]
    if not isinstance(entry, dict) or not {"value", "status", "source"} <= entry.keys():
        return ["must be { value = …, status = …, source = … }"]
    faults = read_values({key: entry["value"]})[1]
    if entry["value"] != entry["value"]:  # TOML's nan, which inside means a λ that is still open
        faults.append(f"{key} = nan: must be a number")
    if entry["status"] not in STATUSES:
        faults.append(f"status '{entry['status']}': {did_you_mean(str(entry['status']), STATUSES)}")
    fields = ("value", "status", "source", "note")
    faults += [f"unknown entry '{name}': {did_you_mean(name, fields)}" for name in entry if name not in fields]
    if not str(entry["source"]).strip():
        faults.append("the source is empty")
    return faults
