"""A picture as a Vega-Lite chart, built with Altair.

A chart carries its records and nothing else: no address, no expression that a text of a run could reach. What is
interactive is not needed to understand it: the legend is the page's own, of buttons, and sets the parameter `only`;
every number stands in the table below the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from weightdecay.errors import printable
from weightdecay.reporting.encodings import Encodings, altair_module
from weightdecay.reporting.palette import color
from weightdecay.reporting.picture import Picture, Record, names_on, span

HEIGHT = 240
_ROW_HEIGHT, _LEAST_HEIGHT = 36, 120
_LIGHT = 0.42  # of viridis' range: from here on black is read more easily on it than white


def chart(picture: Picture, among: Sequence[Picture] = (), *, interactive: bool = False, legend: bool = False) -> Any:
    """The chart of a picture without facets; its records are in it, its size and colours are not.

    Args:
        among: the panels that share its axes.
        interactive: whether it follows the pointer and the page's legend.
        legend: whether it has its own.
    """
    alt = altair_module()
    encodings = Encodings(alt, picture, tuple(among) or (picture,), legend, interactive)
    drawn = _DRAWERS[picture.kind](encodings)
    if picture.rule is not None:
        drawn = alt.layer(drawn, *_rule(encodings))
    named = {"name": "records"} if interactive else {}  # by which the page finds them; of several in one SVG none has
    records = [dict(record) for record in _drawable(encodings)]
    return drawn.properties(data=alt.InlineData(values=records, **named), height=_height(picture))


def document(drawn: Any, alt_text: str, width: int | None = None) -> dict[str, Any]:
    """A chart as Vega-Lite has it, with type and colours of the page.

    Args:
        width: in pixels; None takes what the page gives it, of several charts in one each has its own.
    """
    config: dict[str, Any] = drawn.to_dict()
    if "concat" not in config:
        config["width"] = "container" if width is None else width
        config["autosize"] = {"type": "fit-x", "contains": "padding"}
    shown: dict[str, Any] = _printable({**config, "background": "transparent", "description": alt_text})
    return {**shown, "config": _CONFIG}


def _printable(value: Any) -> Any:
    """A document whose texts can all be drawn: a control character ends vl-convert, and Python with it."""
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


_CONFIG: dict[str, Any] = {
    "aria": False,  # the picture is told as a whole, and by its table; titles would become parts of expressions
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": color("quiet"),
        "titleColor": color("ink"),
        "gridColor": color("grid"),
        "domainColor": color("grid"),
        "tickColor": color("grid"),
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 160,
        "titleLimit": 600,
    },
    "legend": {
        "orient": "top",
        "labelColor": color("ink"),
        "titleColor": color("ink"),
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "symbolStrokeWidth": 2.5,
        "labelLimit": 220,
        "columns": 4,
    },
    "title": {"color": color("ink"), "fontSize": 14, "anchor": "start", "fontWeight": 600, "limit": 640},
}


# --- kinds of pictures


def _lines(e: Encodings) -> Any:
    layers = []
    if e.picture.low and e.picture.high:
        layers.append(
            e.base().mark_area(strokeWidth=0, fillOpacity=0.18, clip=True).encode(**e.interval(), **e.detail())
        )
    width = 1.25 if e.picture.detail else 2
    layers.append(e.base(dashed=True).mark_line(strokeWidth=width, clip=True).encode(**e.detail()))
    if e.interactive:
        layers.append(_nearest(e))
    return e.alt.layer(*layers).add_params(*e.parameters())


def _points(e: Encodings) -> Any:
    layers = []
    if e.picture.x.type != "nominal":
        layers.append(e.base(dashed=True).mark_line(strokeWidth=2, clip=True).encode(**e.detail()))
    layers += _error_bars(e)
    layers.append(e.base().mark_point(filled=True, size=70, opacity=1).encode(tooltip=e.tooltip()))
    return e.alt.layer(*layers).add_params(*e.parameters())


def _scatter(e: Encodings) -> Any:
    dots = e.base().mark_point(filled=True, size=60, opacity=0.85).encode(tooltip=e.tooltip())
    return e.alt.layer(*_error_bars(e), dots).add_params(*e.parameters())


def _bars(e: Encodings) -> Any:
    if not e.from_zero:
        return _points(e)
    base = e.base()
    if e.picture.color is not None and e.picture.x.type != "quantitative":
        base = base.encode(xOffset=e.alt.XOffset("color:N"))
    bars = base.mark_bar(fillOpacity=0.85).encode(tooltip=e.tooltip())
    errors = [bar.encode(color=e.alt.value(color("ink"))) for bar in _error_bars(e, base)]
    return e.alt.layer(bars, *errors).add_params(*e.parameters())


def _heatmap(e: Encodings) -> Any:
    alt, value, bounds = e.alt, e.picture.color, span(e.among, "color")
    settings: dict[str, Any] = {"scheme": "viridis"}
    settings |= {"domain": list(bounds)} if bounds else {}
    settings |= {"type": "log"} if _shaded_by_log(e) else {}
    legend = alt.Legend(orient="top", gradientLength=220, format=".6~g", tickCount=4)
    shade = alt.Color("color:Q", title=value.title if value else "", scale=alt.Scale(**settings), legend=legend)
    cells = alt.Chart().mark_rect(stroke=color("paper"), strokeWidth=1, invalid=None)
    numbers = (
        alt.Chart()
        .mark_text(fontSize=12)
        .encode(**e.positions(), text="label:N", fill=alt.Fill("text_color:N", scale=None))
    )
    return alt.layer(cells.encode(**e.positions(), color=shade, tooltip=e.tooltip()), numbers)


_DRAWERS: dict[str, Callable[[Encodings], Any]] = {
    "lines": _lines,
    "points": _points,
    "scatter": _scatter,
    "bars": _bars,
    "heatmap": _heatmap,
}


def _error_bars(e: Encodings, base: Any = None) -> list[Any]:
    if not (e.picture.low and e.picture.high):
        return []
    return [(base or e.base()).mark_rule(strokeWidth=2).encode(**e.interval())]


def _nearest(e: Encodings) -> Any:
    """Dots that show themselves near the pointer, with their numbers."""
    near = e.alt.selection_point(name="near", nearest=True, on="pointermove", clear="pointerout", empty=False)
    shown = e.alt.condition(near, e.alt.value(1), e.alt.value(0))
    return e.base().mark_point(filled=True, size=60).encode(opacity=shown, tooltip=e.tooltip()).add_params(near)


def _rule(e: Encodings) -> list[Any]:
    """The line, and its words at its end."""
    rule = e.picture.rule
    assert rule is not None
    layers = []
    for name, at in (("x", rule.x), ("y", rule.y)):
        if at is None:
            continue
        line = e.alt.Chart(e.alt.InlineData(values=[{"label": rule.label}])).encode(
            **{name: e.alt.datum(at, type="quantitative")}
        )
        words = (
            {"x": "width", "align": "right", "dy": -7} if name == "y" else {"y": 0, "align": "left", "dx": 6, "dy": 8}
        )
        layers.append(line.mark_rule(color=color("quiet"), strokeDash=[4, 4]))
        layers.append(line.mark_text(color=color("quiet"), fontSize=12, **words).encode(text="label:N"))
    return layers


def _drawable(e: Encodings) -> list[Record]:
    """The records that have a place; of a heat map all, each with its text and its colour."""
    found = e.picture.records()
    if e.picture.kind == "heatmap":
        bounds = span(e.among, "color") or (0.0, 1.0)
        return [dict(record, **_cell(record.get("color"), *bounds, logarithmic=_shaded_by_log(e))) for record in found]
    return [record for record in found if record.get("x") is not None and record.get("y") is not None]


def _shaded_by_log(e: Encodings) -> bool:
    bounds = span(e.among, "color")
    return bool(e.picture.color and e.picture.color.scale != "linear" and bounds and bounds[0] > 0)


def _cell(value: Any, low: float, high: float, *, logarithmic: bool) -> dict[str, str]:
    """What a cell of a heat map says, in an ink that its colour lets one read."""
    if not isinstance(value, float):
        return {"label": "–", "text_color": color("ink")}
    if low == high:
        return {"label": f"{value:.4g}", "text_color": "#ffffff"}
    if logarithmic:
        share, label = math.log(value / low) / math.log(high / low), f"{value:.3g}"
    else:
        share, label = (value - low) / (high - low), f"{value:,.{_decimals(high - low)}f}"
    return {"label": label, "text_color": "#000000" if share > _LIGHT else "#ffffff"}


def _decimals(width: float) -> int:
    """That tell values apart which lie so far from each other."""
    return min(6, max(0, 1 - math.floor(math.log10(width))))


def _height(picture: Picture) -> int:
    if picture.y.type == "quantitative":
        return HEIGHT
    return max(_LEAST_HEIGHT, _ROW_HEIGHT * len(names_on([picture], "y")) + 60)
