"""What a study's directory says: study.json, what was asked; results.json, what came of it so far.

The files are the boundary: a study that another version wrote, or that still goes on, is read as far as it is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightdecay.declared.fields import OPEN, Text
from weightdecay.declared.reading import attempt
from weightdecay.errors import ConfigError, DamagedError, printable
from weightdecay.reporting.picture import Picture, read_picture
from weightdecay.runs import Row, read_json

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the settings that are compared."""

    __pydantic_config__ = OPEN

    name: Text
    """As results call it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What it sets."""
    role: Text = ""
    """Whether others are compared with it."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was asked: study.json."""

    __pydantic_config__ = OPEN

    study: Text
    """Its name."""
    question: Text
    """What it is to tell."""
    scale: Text = ""
    """quick, full or large."""
    belief: Text = ""
    """What people say."""
    protocol: list[Text] = field(default_factory=list)
    """How it was done, in sentences."""
    command: Text = ""
    """What makes it again."""
    started: Text = ""
    """When."""
    seeds: list[int] = field(default_factory=list)
    """Of each arm."""
    arms: list[Arm] = field(default_factory=list)
    """What is compared."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What all runs share."""
    weightdecay: Text = ""
    """The version."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that people say, and what came of it."""

    __pydantic_config__ = OPEN

    claim: Text
    """What was said."""
    verdict: Text
    """shown, not shown, or too few seeds."""
    sentence: Text = ""
    """With its numbers."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A run of the study."""

    __pydantic_config__ = OPEN

    name: Text
    """Its directory's."""
    arm: Text = ""
    """Whose it is."""
    seed: int | None = None
    """Of its start and the order of its data."""
    status: Text = ""
    """finished, diverged, failed, running, stopped, waiting, or other text."""
    counted: bool = False
    """Whether it is in the means."""
    why: Text = ""
    """Why not."""
    values: dict[str, Any] = field(default_factory=dict)
    """What was measured."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One arm against another."""

    __pydantic_config__ = OPEN

    metric: Text
    """By what."""
    arm: Text
    """Which."""
    against: Text
    """With which."""
    n: int = 0
    """Pairs."""
    difference: float | None = None
    """Of the means."""
    interval: tuple[float, float] | None = None
    """At 95 %, by itself."""
    simultaneous: tuple[float, float] | None = None
    """At 95 %, all comparisons together."""
    p_holm: float | None = None
    """p, all comparisons counted."""
    test: Text = ""
    """Which test it is."""
    verdict: Text = ""
    """shown, not shown, or too few seeds."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What came of it: results.json."""

    __pydantic_config__ = OPEN

    complete: bool = False
    """Whether nothing is left to run."""
    date: Text = ""
    """When it was worked out."""
    answer: Text = ""
    """One paragraph, with its uncertainty."""
    verdicts: list[Claim] = field(default_factory=list)
    """What people say, and what came of it."""
    limits: list[Text] = field(default_factory=list)
    """What cannot be concluded."""
    runs: list[StudyRun] = field(default_factory=list)
    """All of them."""
    corpora: list[dict[str, Any]] = field(default_factory=list)
    """Which texts they read."""
    environments: list[dict[str, Any]] = field(default_factory=list)
    """What they were made on."""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Words and unit of each metric."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Means and intervals."""
    comparisons_counted: int = 0
    """How many tests were made."""
    comparisons: list[Compared] = field(default_factory=list)
    """Their outcomes."""
    pictures: list[dict[str, Any]] = field(default_factory=list)
    """Its plots."""


@dataclass(frozen=True)
class StudyRecord:
    """A study's directory.

    Attributes:
        results: empty before its first run has ended.
        failures: runs that ended badly, as failures.json names them.
    """

    path: Path
    asked: Study
    results: Results
    pictures: list[Picture]
    failures: list[Row]

    @property
    def name(self) -> str:
        return printable(self.path.resolve().name)


def is_study(path: Path) -> bool:
    """Whether a directory is a study's."""
    return (path / "study.json").is_file()


def study_of(path: Path) -> StudyRecord:
    """What the study's directory says.

    Raises:
        DamagedError: a file of it cannot be read, or is of a newer version.
    """
    asked = _read(Study, path / "study.json")
    found = path / "results.json"
    results = _read(Results, found) if found.is_file() else Results()
    failures = path / "failures.json"
    told = read_json(failures).get("failures") if failures.is_file() else []
    pictures = [read_picture(each, f"{found}: pictures[{index}]") for index, each in enumerate(results.pictures)]
    return StudyRecord(
        path, asked, results, _named_apart(pictures), [row for row in told or () if isinstance(row, dict)]
    )


def _read(kind: type[Any], path: Path) -> Any:
    document = read_json(path)
    version = document.get("schema_version")
    if version != _VERSION:
        raise ConfigError(f"{path}: schema_version = {version!r}: this weightdecay reads {_VERSION}: update it")
    found, faults = attempt(kind, document)
    if found is None or faults:
        raise DamagedError([f"{path}: {fault.words}" for fault in faults])
    return found


def _named_apart(pictures: list[Picture]) -> list[Picture]:
    """Each under an id of its own."""
    from dataclasses import replace

    seen: dict[str, int] = {}
    named = []
    for picture in pictures:
        seen[picture.id] = seen.get(picture.id, 0) + 1
        n = seen[picture.id]
        named.append(picture if n == 1 else replace(picture, id=f"{picture.id}-{n}"))
    return named
