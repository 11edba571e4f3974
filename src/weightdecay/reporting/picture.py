"""A plot as a value: what is on its axes, its series and its records, drawn without knowing what it is about.

Studies write these into their results.json, and `run_pictures` makes them of a run. All texts are plain: a name that
somebody gave a run may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from weightdecay.declared.fields import OPEN, Text
from weightdecay.declared.reading import attempt
from weightdecay.errors import DamagedError, printable

Cell = float | str | None
Record = Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is shown along a direction, or by colour."""

    __pydantic_config__ = OPEN

    field: Text
    """Of the records."""
    label: Text
    """What it is, in words."""
    unit: Text = ""
    """Empty where it has none."""
    type: Literal["quantitative", "nominal", "ordinal"] = "quantitative"
    """Numbers along a line, names, or names in an order."""
    scale: Literal["linear", "log", "symlog"] = "linear"
    """How numbers are laid out."""
    constant: float | None = None
    """Of symlog: where it turns from a line into a logarithm."""
    sort: list[Any] | None = None
    """The names in order."""

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True, kw_only=True)
class Facet:
    """What the panels of a picture differ in."""

    __pydantic_config__ = OPEN

    field: Text
    """Of the records."""
    label: Text = ""
    """What it is, in words."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A straight line across, to compare with."""

    __pydantic_config__ = OPEN

    label: Text
    """What it marks."""
    x: float | None = None
    """Where it stands, upright."""
    y: float | None = None
    """Where it lies."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot."""

    __pydantic_config__ = OPEN

    id: Text
    """For files and links."""
    title: Text
    """What it shows."""
    alt: Text
    """The same in a sentence, for those who do not see it."""
    kind: Literal["points", "lines", "heatmap", "bars", "scatter"]
    """points are joined in the order of x, with error bars; lines have bands."""
    x: Axis
    """Across."""
    y: Axis
    """Upwards."""
    data: list[dict[str, Any]]
    """The records."""
    subtitle: Text = ""
    """How many seeds, which interval …"""
    color: Axis | None = None
    """The series; of a heat map, the value of a cell."""
    facet: Facet | None = None
    """Small pictures beside each other."""
    low: str | None = None
    """The field of the interval's lower end."""
    high: str | None = None
    """The field of its upper end."""
    detail: str | None = None
    """The field that tells thin lines of one series from each other."""
    rule: Rule | None = None
    """A line to compare with."""

    @property
    def axes(self) -> dict[str, Axis]:
        """By the direction that they are shown in."""
        return {"x": self.x, "y": self.y} | ({"color": self.color} if self.color else {})

    def panels(self) -> list[tuple[str, Picture]]:
        """The pictures that it is made of, each under its name; without a facet itself, under none."""
        if self.facet is None:
            return [("", self)]
        names = list(dict.fromkeys(_word(record.get(self.facet.field)) for record in self.data))
        return [(name, replace(self, facet=None, data=self._of(name))) for name in names]

    def _of(self, panel: str) -> list[dict[str, Any]]:
        assert self.facet is not None
        return [record for record in self.data if _word(record.get(self.facet.field)) == panel]

    def records(self) -> list[dict[str, Cell]]:
        """Under names of ours, x, y, color, low, high, detail; what could be mistaken for markup or code is not there.

        A number that is not finite is no number.
        """
        fields = {name: axis.field for name, axis in self.axes.items()}
        fields |= {name: field for name in ("low", "high", "detail") if (field := getattr(self, name))}
        named = {name for name, axis in self.axes.items() if axis.type != "quantitative"} | {"detail"}
        return [
            {
                name: _word(record.get(field)) if name in named else _number(record.get(field))
                for name, field in fields.items()
            }
            for record in self.data
        ]


def read_picture(document: Any, where: str) -> Picture:
    """A picture as JSON has it.

    Raises:
        DamagedError: it is none, with all that is wrong.
    """
    found, faults = attempt(Picture, document if isinstance(document, dict) else {}, where)
    if found is None:
        raise DamagedError([f"{fault.words}; make the results anew" for fault in faults])
    return replace(found, id=safe_id(found.id))


def safe_id(text: str) -> str:
    """Of letters, digits and dashes, for names of files and anchors in a page."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(filter(None, plain.split("-")))[:60] or "picture"


def series(pictures: Sequence[Picture]) -> list[str]:
    """The names of the series of several pictures, in order."""
    kinds = {picture.color.type for picture in pictures if picture.color}
    return [] if kinds <= {"quantitative"} else [str(name) for name in names_on(pictures, "color")]


def names_on(pictures: Sequence[Picture], name: str) -> list[Cell]:
    """What the records of several pictures have along an axis: each once, in the axis' order, then as it came."""
    met = list(dict.fromkeys(record[name] for picture in pictures for record in picture.records()))
    axes = [picture.axes[name] for picture in pictures]
    order = list(dict.fromkeys(_word(item) for axis in axes for item in axis.sort or ()))
    return [item for item in order if item in met] + [item for item in met if item not in order]


def span(pictures: Sequence[Picture], name: str) -> tuple[float, float] | None:
    """Between what numbers the records of several pictures lie along an axis; None where there are none."""
    sides = (name, "low", "high") if name == "y" else (name,)
    found = [
        value
        for picture in pictures
        for record in picture.records()
        for side in sides
        if isinstance(value := record.get(side), float)
    ]
    return (min(found), max(found)) if found else None


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else printable(str(value))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
