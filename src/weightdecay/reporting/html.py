"""A page as one HTML file: pictures, numbers and the runtime of its plots in it, and nothing from elsewhere.

Texts are escaped by the template. A policy lets run nothing but the two scripts whose hashes it names, and load nothing
at all; Vega evaluates its expressions by an interpreter, since the policy forbids `eval`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from weightdecay.errors import MissingExtraError, printable
from weightdecay.reporting import svg
from weightdecay.reporting.drawing import chart, document
from weightdecay.reporting.encodings import swatches, titles
from weightdecay.reporting.numbers import numbers_of
from weightdecay.reporting.page import Figure, Page, Table
from weightdecay.reporting.palette import DARK, LIGHT, variables

_FOLDER = Path(__file__).parent
_CODE = re.compile(r"`([^`\n]+)`")
# What could end a script's element, or be taken for markup within it; the last two end lines in JavaScript alone.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class _Panel:
    id: str
    name: str
    spec: str
    svg: str


@dataclass(frozen=True)
class _Plot:
    """A figure as the template takes it."""

    id: str
    title: str
    alt: str
    subtitle: str
    caption: str
    wide: bool
    legend_title: str
    swatches: list[tuple[str, str, str]]
    panels: list[_Panel]
    numbers: Table
    left_out: bool


def html(page: Page) -> str:
    """The page.

    Raises:
        MissingExtraError: Altair, vl-convert or jinja2 is not installed.
    """
    template = _environment().get_template("page.html.j2")
    plots = {figure.picture.id: _plot(figure) for figure in page.figures()}
    style, script = _style(), _read("page.js")
    scripts = (runtime(), script) if plots else ()
    return str(
        template.render(
            page=page, plots=plots, policy=_policy(style, *scripts), style=style, script=script,
            runtime=runtime() if plots else "", generator=_generator(),
        )
    )  # fmt: skip


def in_script(document: Any) -> str:
    """JSON that an HTML parser reads as nothing but text."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_ESCAPES.get(character, character) for character in text)


@cache
def runtime() -> str:
    """Vega, Vega-Lite and what embeds them, as one script.

    Raises:
        MissingExtraError: vl-convert is not installed.
    """
    bundle: str = svg.converter().javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _plot(figure: Figure) -> _Plot:
    picture = figure.picture
    panels = picture.panels()
    among = [panel for _, panel in panels]
    drawn = []
    for index, (name, panel) in enumerate(panels):
        spec = document(chart(panel, among, interactive=True), picture.alt) | {
            "usermeta": {name: printable(title) for name, title in titles(picture).items()}
        }
        place = f"{picture.id}-panel-{index}"
        drawn.append(_Panel(place, name, in_script(spec), svg.inline(panel, among, place)))
    numbers, left_out = numbers_of(picture)
    caption = "" if figure.caption == picture.subtitle else figure.caption
    return _Plot(
        id=picture.id,
        title=picture.title,
        alt=picture.alt,
        subtitle=picture.subtitle,
        caption=caption,
        wide=figure.wide,
        legend_title=picture.color.title if picture.color else "",
        swatches=swatches(picture),
        panels=drawn,
        numbers=numbers,
        left_out=left_out,
    )


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    environment.filters["prose"] = _prose
    return environment


def _shown(value: Any) -> Any:
    """A text without what a browser would obey in silence, such as a change of the reading direction."""
    return printable(value) if type(value) is str else value


def _prose(text: str) -> Any:
    """Escaped text with what stands between backticks as code."""
    from markupsafe import Markup, escape

    pieces = _CODE.split(printable(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else escape(piece) for index, piece in enumerate(pieces)
    )


def _style() -> str:
    dark = variables(DARK)
    return (
        f":root {{ color-scheme: light dark; {variables(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{_read('page.css')}"
    )


def _policy(style: str, *scripts: str) -> str:
    """Of the page: its own style and scripts, by their hashes, and nothing from anywhere."""
    rules: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash, scripts)) or "'none'",
        "style-src": _hash(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _generator() -> str:
    from weightdecay import __version__

    return f"weightdecay {__version__}"
