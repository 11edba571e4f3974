"""A page as values: what is said, in what order, before anything is known of HTML or Markdown. All texts are plain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from weightdecay.reporting.picture import Picture

Severity = Literal["error", "warning", "note", "good"]


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    kind: ClassVar[str] = "paragraph"

    text: str


@dataclass(frozen=True)
class Listing:
    """Sentences one below the other."""

    kind: ClassVar[str] = "listing"

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Terms, and what they are here."""

    kind: ClassVar[str] = "facts"

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: their names.
        numbers: the columns that are numbers, by their place.
        caption: what it shows.
    """

    kind: ClassVar[str] = "table"

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Commands or a file, to be copied."""

    kind: ClassVar[str] = "code"

    text: str


@dataclass(frozen=True)
class Finding:
    """Something that a reader should know, and how bad it is, in a word of its own or the severity's."""

    kind: ClassVar[str] = "finding"

    severity: Severity
    title: str
    text: str = ""
    label: str = ""

    @property
    def word(self) -> str:
        return self.label or self.severity


@dataclass(frozen=True)
class Figure:
    """A plot, as wide as the page or half of it."""

    kind: ClassVar[str] = "figure"

    picture: Picture
    caption: str = ""
    wide: bool = True


@dataclass(frozen=True)
class Folded:
    """What most readers do not need, behind its title."""

    kind: ClassVar[str] = "folded"

    title: str
    blocks: Sequence[Block]


Block = Paragraph | Listing | Facts | Table | Code | Finding | Figure | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: the run's or the study's name, or a question.
        asked: what was asked, in a sentence.
        answer: the answer in a paragraph, with its uncertainty.
        key_figures: the few numbers that a reader takes home, each with what it is.
        kicker: what kind of report this is.
        made: when, and by what.
    """

    title: str
    asked: str
    answer: str
    sections: Sequence[Section]
    key_figures: Sequence[tuple[str, str]] = ()
    kicker: str = "Report"
    made: str = ""
    findings: Sequence[Finding] = field(default=())

    def figures(self) -> list[Figure]:
        """All of them, in the order of the page."""
        return [block for section in self.sections for block in _flat(section.blocks) if isinstance(block, Figure)]


def _flat(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Folded):
            yield from _flat(block.blocks)
