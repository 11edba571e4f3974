"""Pictures of a study as data: what is drawn, along which axes, with which unit. Reports draw them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from weightdecay.studies.analysis import Analysis
from weightdecay.studies.design import Json
from weightdecay.studies.metrics import metric

_MOST_POINTS = 60  # of one run's curve


def axis(
    field: str, label: str, unit: str = "", type: str = "quantitative", scale: str = "linear", **more: Any
) -> Json:
    return {"field": field, "label": label, "unit": unit, "type": type, "scale": scale, **more}


def axis_of(name: str, field: str = "mean") -> Json:
    """The axis of a metric."""
    spoken = metric(name)
    return axis(field, spoken.label, spoken.unit)


def weight_decay_axis(field: str = "weight_decay") -> Json:
    """λ from 0 on: logarithmic but for the part next to 0."""
    return axis(field, "weight decay λ", scale="symlog", constant=0.1)


def points(
    found: Analysis, id: str, title: str, alt: str, *, x: Json, y: str, color: Json | None = None,
    arms: Iterable[str] | None = None, rule: Json | None = None, kind: str = "points",
) -> Json:  # fmt: skip
    """Means with their intervals over a label of the arms; `kind` bars for a label without an order."""
    data = []
    for arm in arms or found.labels:
        mean = found.mean(y, arm)
        if mean is None:
            continue
        low, high = mean.interval or (None, None)
        data.append({**found.labels[arm], "arm": arm, "mean": mean.mean, "low": low, "high": high, "n": mean.n})
    return _picture(
        kind, id, title, alt, found, x=x, y=axis_of(y), color=color, low="low", high="high", rule=rule, data=data
    )


def bars(found: Analysis, id: str, title: str, alt: str, *, x: Json, y: str, **more: Any) -> Json:
    """Means with their intervals, side by side."""
    return points(found, id, title, alt, x=x, y=y, kind="bars", **more)


def heatmap(
    found: Analysis, id: str, title: str, alt: str, *, x: Json, y: Json, value: str, facet: Json | None
) -> Json:
    """A metric's mean over two labels."""
    data = [
        {**labels, "mean": mean.mean, "n": mean.n}
        for arm, labels in found.labels.items()
        if (mean := found.mean(value, arm))
    ]
    return _picture("heatmap", id, title, alt, found, x=x, y=y, color=axis_of(value), facet=facet, data=data)


def curves(
    found: Analysis, id: str, title: str, alt: str, *, y: str = "val_bits_per_byte", arms: Iterable[str] | None = None
) -> Json:
    """A quantity of the evaluations over the steps, a line a run."""
    chosen = list(arms or found.labels)
    data = [
        {"step": row["step"], y: row[y], "arm": run.arm, "run": run.name}
        for run in found.counted
        if run.arm in chosen
        for row in thinned(run.curve)
        if row.get(y) is not None
    ]
    color = axis("arm", "", type="ordinal", sort=chosen)
    return _picture("lines", id, title, alt, found, x=axis("step", "step"), y=axis_of(y, y), color=color,
                    detail="run", data=data, subtitle="each line a run")  # fmt: skip


def scatter(
    found: Analysis, id: str, title: str, alt: str, *, x: str, y: str, color: Json | None = None,
    arms: Iterable[str] | None = None, along: bool = False, rule: Json | None = None,
) -> Json:  # fmt: skip
    """Two metrics of each run; with `along`, of each of its checkpoints, joined."""
    chosen = list(arms or found.labels)
    data = []
    for run in found.counted:
        rows: Sequence[Any] = run.series if along else [run.values]
        if run.arm in chosen:
            data += [
                {**found.labels[run.arm], "arm": run.arm, "run": run.name, x: row[x], y: row[y]}
                for row in rows
                if row.get(x) is not None and row.get(y) is not None
            ]
    color = color or axis("arm", "", type="ordinal", sort=chosen)
    return _picture("lines" if along else "scatter", id, title, alt, found, x=axis_of(x, x), y=axis_of(y, y),
                    color=color, detail="run", rule=rule, data=data,
                    subtitle="each line a run" if along else "each point a run")  # fmt: skip


def thinned(rows: Sequence[Json]) -> Sequence[Json]:
    """Some of a curve's points, the last one too."""
    every = max(1, len(rows) // _MOST_POINTS)
    return [row for index, row in enumerate(rows) if index % every == 0 or index == len(rows) - 1]


def _picture(kind: str, id: str, title: str, alt: str, found: Analysis, **parts: Any) -> Json:
    seeds = f"{found.n_seeds} seeds an arm" if found.n_seeds else "some runs are still missing"
    shown = "mean and 95 % interval" if kind in ("points", "bars") else "mean" if kind == "heatmap" else ""
    subtitle = ", ".join(part for part in (seeds, parts.pop("subtitle", shown)) if part)
    empty = {"color": None, "facet": None, "low": None, "high": None, "detail": None, "rule": None}
    return {"id": id, "title": title, "subtitle": subtitle, "alt": alt, "kind": kind, **empty, **parts}
