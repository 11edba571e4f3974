"""How a picture's fields become positions, colours and dashes: what all kinds of charts share."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

from weightdecay.errors import MissingExtraError
from weightdecay.reporting.palette import SERIES, color
from weightdecay.reporting.picture import Axis, Picture, names_on, series, span

ONLY = "only"
"""The parameter that holds the series to be seen alone; null shows all."""

_DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))
_TELLS_BY_DASH = 4  # series; more dashes than that nobody tells apart
_FEW_TICKS = 12
_FLAT_LABELS = 36  # characters of all names, which stand beside each other on a telephone
_BIG, _SMALL = 10_000, 0.001  # outside of these numbers of an axis are written as 20k and 2e-5
_BARS_TELL = 0.5  # of the longest bar: where the shortest is longer, the bars look alike
_ROOM = 0.03  # of an axis, beside its first and last points


def altair_module() -> Any:
    """Altair.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import altair
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    return altair


@dataclass(frozen=True)
class Encodings:
    """Of one panel.

    Attributes:
        alt: Altair.
        among: the panels that share its axes and series, itself included.
        legend: whether the chart has its own.
        interactive: whether it follows the pointer and the page's legend.
    """

    alt: Any
    picture: Picture
    among: tuple[Picture, ...]
    legend: bool
    interactive: bool

    def base(self, *, dashed: bool = False) -> Any:
        """A chart with its positions and colours."""
        return self.alt.Chart().encode(**self.positions(), **self.series(dashed=dashed))

    def positions(self) -> dict[str, Any]:
        alt = self.alt
        return {
            "x": alt.X(f"x:{letter(self.picture.x)}", **self.named("x"), **self.scale("x")),
            "y": alt.Y(f"y:{letter(self.picture.y)}", **self.named("y"), **self.scale("y")),
        }

    def interval(self) -> dict[str, Any]:
        """From the lower to the upper end, upwards."""
        return {"y": self.alt.Y("low:Q", **self.named("y"), **self.scale("y")), "y2": "high:Q"}

    def named(self, name: str) -> dict[str, Any]:
        """An axis' title and its ticks."""
        axis, alt = self.picture.axes[name], self.alt
        found = names_on(self.among, name)
        if axis.type != "quantitative":
            short = sum(len(str(item)) for item in found) <= _FLAT_LABELS
            flat = {"labelAngle": 0 if short else -35} if name == "x" else {}
            return {"title": _wrapped(axis.title, name), "axis": alt.Axis(grid=False, **flat)}
        numbers = sorted(value for value in found if isinstance(value, float))
        settings: dict[str, Any] = {"tickCount": 6, "grid": name == "y", **_number_form(axis, numbers)}
        if name == "x" and axis.scale != "linear" and len(numbers) <= _FEW_TICKS:
            settings |= {"values": numbers, "labelOverlap": "greedy"}
        return {"title": _wrapped(axis.title, name), "axis": alt.Axis(**settings)}

    def scale(self, name: str) -> dict[str, Any]:
        """An axis' scale, the same in all panels."""
        axis, alt = self.picture.axes[name], self.alt
        if axis.type != "quantitative":
            names = names_on(self.among, name)
            return {"scale": alt.Scale(domain=names)}
        bounds = span(self.among, name)
        if bounds is None:
            return {"scale": alt.Scale(zero=False)}
        low, high = self._with_rule(name, *bounds)
        if axis.scale == "log" and low > 0:
            return {"scale": alt.Scale(type="log", domain=[low, high], nice=False)}
        if axis.scale != "linear":  # a logarithm has no place for 0
            constant = axis.constant or max(abs(low), abs(high)) / 1_000 or 1.0
            return {"scale": alt.Scale(type="symlog", constant=constant, domain=[low, high], nice=False)}
        if self.from_zero and name == "y":
            low, high = min(low, 0.0), max(high, 0.0)
        elif self.picture.kind in ("points", "scatter"):
            low, high = low - _ROOM * (high - low), high + _ROOM * (high - low)
        if math.isclose(low, high, rel_tol=1e-9):
            room = abs(low) * 0.05 or 0.5
            low, high = low - room, high + room
        return {"scale": alt.Scale(domain=[low, high], nice=name == "y", zero=False)}

    @property
    def from_zero(self) -> bool:
        """Whether values are bars: these start at 0, and tell nothing where all are nearly as long."""
        low, high = span(self.among, "y") or (0.0, 0.0)
        return self.picture.kind == "bars" and not 0 < _BARS_TELL * high < low

    def _with_rule(self, name: str, low: float, high: float) -> tuple[float, float]:
        at = getattr(self.picture.rule, name, None)
        return (low, high) if at is None else (min(low, at), max(high, at))

    def series(self, *, dashed: bool = False) -> dict[str, Any]:
        """Colour, and dashes for those who see no colours; what is not asked for alone fades."""
        alt, names = self.alt, series(self.among)
        if self.picture.color is None or self.picture.kind == "heatmap":
            return {"color": alt.value(color(SERIES[0]))}
        legend = alt.Legend(title=self.picture.color.title or None, symbolSize=_SYMBOL[dashed]) if self.legend else None
        colors = [color(SERIES[index % len(SERIES)]) for index in range(len(names))]
        encoded = {"color": alt.Color("color:N", scale=alt.Scale(domain=names, range=colors), legend=legend)}
        if self.interactive:
            alone = f"{ONLY} == null || datum.color == {ONLY}"
            encoded["opacity"] = alt.condition(alone, alt.value(1), alt.value(0.12))
        if dashed and len(names) > 1:
            dashes = [list(_dash(index, len(names))) for index in range(len(names))]
            scale = alt.Scale(domain=names, range=dashes)
            encoded["strokeDash"] = alt.StrokeDash("color:N", scale=scale, legend=legend)
        return encoded

    def detail(self) -> dict[str, Any]:
        return {"detail": self.alt.Detail("detail:N")} if self.picture.detail else {}

    def tooltip(self) -> list[Any]:
        """Everything that is known of a record, under names of ours: titles become parts of Vega's expressions."""
        kinds = {name: letter(axis) for name, axis in self.picture.axes.items()}
        kinds |= {name: "Q" for name in ("low", "high") if getattr(self.picture, name)}
        kinds |= {"detail": "N"} if self.picture.detail else {}
        return [
            self.alt.Tooltip(f"{name}:{kind}", title=name, **({"format": ".5~g"} if kind == "Q" else {}))
            for name, kind in kinds.items()
        ]

    def parameters(self) -> list[Any]:
        return [self.alt.param(name=ONLY, value=None)] if self.interactive and self.picture.color is not None else []


_LINE = {"x": 48, "y": 36}  # characters: of a telephone's width, of a plot's height
_SYMBOL = {False: 90, True: 220}  # of a legend: a dot, a piece of a line


def titles(picture: Picture) -> dict[str, str]:
    """What the names of a picture's records stand for, in words."""
    said = {name: axis.title for name, axis in picture.axes.items()}
    if picture.kind != "heatmap" and "color" in said:
        said["color"] = said["color"] or "series"
    said |= {name: words for name, words in (("low", "from"), ("high", "to")) if getattr(picture, name)}
    return said | ({"detail": picture.detail} if picture.detail else {})


def letter(axis: Axis) -> str:
    """Of an axis' type, as Vega-Lite's short forms have it."""
    return {"quantitative": "Q", "nominal": "N", "ordinal": "O"}[axis.type]


def swatches(picture: Picture) -> list[tuple[str, str, str]]:
    """The legend of all panels: name, colour and dashes of each series."""
    names = series([panel for _, panel in picture.panels()])
    dashed = picture.kind in ("lines", "points")
    return [
        (name, SERIES[index % len(SERIES)], " ".join(map(str, _dash(index, len(names)))) if dashed else "")
        for index, name in enumerate(names)
    ]


def _wrapped(title: str, name: str) -> list[str] | str:
    """An axis' title in lines that are as long as an axis at least."""
    lines = textwrap.wrap(title, _LINE[name])
    return lines if len(lines) > 1 else title


def _number_form(axis: Axis, numbers: list[float]) -> dict[str, str]:
    largest = max(map(abs, numbers), default=0.0)
    if largest >= _BIG:
        return {"format": "~s"}
    return {"format": ".6~g"} if axis.scale != "linear" or 0 < largest < _SMALL else {}


def _dash(index: int, n: int) -> tuple[int, ...]:
    return _DASHES[index if n <= _TELLS_BY_DASH else index // len(SERIES) % len(_DASHES)]
