"""Charts as SVG without a script: for print, for readers that run none, and by themselves."""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape

from weightdecay.errors import MissingExtraError, printable
from weightdecay.reporting.drawing import chart, document
from weightdecay.reporting.encodings import altair_module
from weightdecay.reporting.palette import DARK, LIGHT, color, fixed
from weightdecay.reporting.picture import Picture, series

_WIDTH = 720
_PANEL_WIDTH = 340
_IDS = re.compile(r'(?<=id=")[\w-]+(?=")|(?<=url\(#)[\w-]+(?=\))')
_OPENING = re.compile(r"<svg [^>]*?viewBox=\"([\d. -]+)\"[^>]*>")


def converter() -> Any:
    """vl-convert.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    return vl_convert


def inline(picture: Picture, among: list[Picture], name: str) -> str:
    """A panel for a page, whose style sheet has the colours and whose names it must not disturb.

    Args:
        name: of this panel in the page, for the names within it.
    """
    svg = converter().vegalite_to_svg(document(chart(picture, among), picture.alt, _WIDTH))
    svg = _IDS.sub(lambda found: f"{name}-{found[0]}", svg)
    return _opened(svg, f'class="static" role="img" aria-label="{_attribute(picture.alt)}"')


def standalone(picture: Picture) -> str:
    """A picture as a file, all panels in it, with its title, readable in light and dark."""
    alt = altair_module()
    panels = picture.panels()
    among = [panel for _, panel in panels]
    legend = bool(series(among))
    charts = [chart(panel, among, legend=legend) for panel in among]
    if len(charts) > 1:
        named = [one.properties(title=name, width=_PANEL_WIDTH) for one, (name, _) in zip(charts, panels, strict=True)]
        charts = [alt.concat(*named, columns=2)]
    title = alt.TitleParams(
        text=picture.title, subtitle=picture.subtitle or alt.Undefined, subtitleColor=color("quiet")
    )
    drawn = document(charts[0].properties(title=title), picture.alt, _WIDTH)
    svg, dark = fixed(converter().vegalite_to_svg(drawn))
    paper = f"@media (prefers-color-scheme: dark) {{ .paper {{ fill: {DARK['paper']}; }} }}"
    style = f"<style>svg {{ color-scheme: light dark; }} {paper} {dark}</style>"
    style += f'<rect class="paper" width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
    return _opened(svg, f'role="img" aria-label="{_attribute(picture.alt)}"', style) + "\n"


def _opened(svg: str, attributes: str, first: str = "") -> str:
    """Another opening tag, and what comes first within."""
    return _OPENING.sub(
        lambda found: f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{found[1]}" {attributes}>{first}', svg, count=1
    )


def _attribute(text: str) -> str:
    return escape(printable(text), {'"': "&quot;"})
