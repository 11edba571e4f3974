"""A page as Markdown, with its plots as SVG files beside it. Names and texts are data: nothing in them is markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from weightdecay.errors import printable
from weightdecay.reporting.numbers import numbers_of
from weightdecay.reporting.page import Block, Code, Facts, Figure, Finding, Folded, Listing, Page, Paragraph, Table
from weightdecay.reporting.picture import Picture

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")
_NUMBERED = re.compile(r"^(\s*)(\d+)([.)])")
_PROSE_CODE = re.compile(r"`([^`\n]+)`")


def markdown(page: Page, picture_path: Callable[[Picture], str]) -> str:
    """The page.

    Args:
        picture_path: where the file of a picture will lie, from the page's own place.
    """
    parts = [f"# {plain(page.title)}", plain(page.asked), f"**{prose(page.answer)}**"]
    parts += [_pairs(page.key_figures)] if page.key_figures else []
    if page.findings:
        parts += ["## Findings", *(_finding(one) for one in page.findings)]
    for section in page.sections:
        parts.append(f"## {plain(section.title)}")
        for block in section.blocks:
            parts += _block(block, picture_path)
    return "\n\n".join(filter(None, [*parts, plain(page.made)])) + "\n"


def plain(text: str) -> str:
    """Text that Markdown and HTML take for nothing else, in one line."""
    line = " ".join(printable(text).split())
    return _NUMBERED.sub(r"\1\2\\\3", re.sub(r"^([-+])", r"\\\1", _MARKUP.sub(r"\\\1", line)))


def prose(text: str) -> str:
    """The same with what stands between backticks as code."""
    pieces = _PROSE_CODE.split(" ".join(printable(text).split()))
    return "".join(f"`{piece}`" if index % 2 else plain_within(piece) for index, piece in enumerate(pieces))


def plain_within(text: str) -> str:
    """Plain text in the middle of a line, whose spaces at both ends count."""
    return _MARKUP.sub(r"\\\1", text)


def _block(block: Block, picture_path: Callable[[Picture], str]) -> Iterator[str]:
    match block:
        case Paragraph(text):
            yield prose(text)
        case Listing(items):
            yield "\n".join(f"- {prose(item)}" for item in items)
        case Facts(pairs):
            yield "\n".join(f"- {plain(term)}: {plain(value)}" for term, value in pairs)
        case Table():
            yield _table(block)
        case Code(text):
            yield _fenced(text)
        case Finding():
            yield _finding(block)
        case Figure(picture):
            yield f"### {plain(picture.title)}"
            yield f"![{plain(picture.alt)}]({picture_path(picture)})"
        case Folded(title, blocks):
            yield f"<details><summary>{plain(title)}</summary>"
            for inner in blocks:
                yield from _block(inner, picture_path)
            yield "</details>"


def _finding(one: Finding) -> str:
    return f"- **{plain(one.word)}: {plain(one.title)}** {prose(one.text)}".rstrip()


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {plain(words)}: **{plain(value)}**" for value, words in pairs)


def _table(table: Table) -> str:
    marks = ["---:" if index in table.numbers else "---" for index in range(len(table.columns))]
    lines = [[plain(name) for name in table.columns], marks, *([prose(cell) for cell in row] for row in table.rows)]
    head = f"{plain(table.caption)}:\n\n" if table.caption else ""
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str) -> str:
    """A block of code, fenced by more backticks than are in it."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"


def numbers(picture: Picture) -> str:
    """The numbers behind a picture, as a table."""
    return _table(numbers_of(picture)[0])
