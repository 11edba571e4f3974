"""The pictures of a run: its losses, its decay, its gradients, and what the monitor measured against theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightdecay.reporting.picture import Axis, Facet, Picture, Rule
from weightdecay.reporting.run_record import RunRecord, number
from weightdecay.runs import Row

_POINTS = 160  # of a line; a page of several runs has many lines
WIDE = ("loss", "weight-rms", "rotation")
"""What takes the whole width of a page: what is looked at most, and what has panels of its own."""

_STEP = Axis(field="step", label="step")


def run_pictures(record: RunRecord) -> list[Picture]:
    """Those for which the run has rows: what is looked at most comes first."""
    plain = [make(record) for make in (loss_picture, decay_picture, left_picture, gradient_picture)]
    watched = list(monitor_pictures(record))
    wide = [picture for picture in (*plain[:1], *watched) if picture and picture.id in WIDE]
    return wide + [picture for picture in (*plain[1:], *watched) if picture and picture.id not in WIDE]


def loss_picture(record: RunRecord) -> Picture | None:
    """Training and held-out loss over steps."""
    data = [dict(row, series="training") for row in thinned(record.training, "loss")]
    held_out = [
        {"step": row["step"], "loss": loss, "series": "held-out text"}
        for row in record.evaluations
        if (loss := number(row.get("val_loss"))) is not None
    ]
    if not data:
        return None
    last, final = data[-1]["loss"], held_out[-1]["loss"] if held_out else None
    said = f"The training loss goes from {data[0]['loss']:.2f} to {last:.2f} nats a token"
    said += f", that on held-out text to {final:.2f}." if final is not None else "."
    banded = any(row["low"] != row["high"] for row in data)
    return Picture(
        id="loss",
        title="Loss",
        subtitle="training: means of neighbouring steps, and their range" if banded else "",
        alt=said,
        kind="lines",
        x=_STEP,
        y=Axis(field="loss", label="loss", unit="nats a token"),
        color=Axis(field="series", label="", type="nominal"),
        low="low" if banded else None,
        high="high" if banded else None,
        data=[*data, *held_out],
    )


def decay_picture(record: RunRecord) -> Picture | None:
    """The decay per step, as the schedules and the rule make it."""
    data = thinned(record.training, "decay_per_step")
    if not any(row["decay_per_step"] for row in data):
        return None
    peak = max(row["decay_per_step"] for row in data)
    return Picture(
        id="decay-per-step",
        title="Decay per step",
        alt=f"The fraction of a weight that the rule takes away in one step: at most {peak:.3g}.",
        kind="lines",
        x=_STEP,
        y=Axis(field="decay_per_step", label="decay per step", unit="fraction of a weight"),
        data=[{"step": row["step"], "decay_per_step": row["decay_per_step"]} for row in data],
    )


def left_picture(record: RunRecord) -> Picture | None:
    """What the decay alone would have left of the starting weights."""
    decay_T = decay_of_steps(record)
    if decay_T is None or not decay_T.any():
        return None
    left_T = 100 * np.cumprod(1.0 - decay_T)
    places = np.unique(np.linspace(0, len(left_T) - 1, _POINTS).astype(int))
    return Picture(
        id="left-of-the-start",
        title="What the decay leaves of the starting weights",
        subtitle="Π(1 − decay per step), without gradients",
        alt=f"After {len(left_T):,} steps the decay alone would leave {left_T[-1]:.3g} % of a starting weight.",
        kind="lines",
        x=_STEP,
        y=Axis(field="left", label="left of a weight", unit="%"),
        data=[{"step": int(place) + 1, "left": float(left_T[place])} for place in places],
    )


def gradient_picture(record: RunRecord) -> Picture | None:
    """The gradient's norm before clipping."""
    data = thinned(record.training, "grad_norm")
    if not data:
        return None
    clips = {clip for row in record.training if (clip := number(row.get("grad_clip")))}
    clip = clips.pop() if len(clips) == 1 else None
    banded = any(row["low"] != row["high"] for row in data)
    return Picture(
        id="gradient-norm",
        title="Gradient norm",
        subtitle="before clipping",
        alt=f"The norm of the gradient, {data[0]['grad_norm']:.3g} in the first steps and {data[-1]['grad_norm']:.3g} "
        "in the last.",
        kind="lines",
        x=_STEP,
        y=Axis(field="grad_norm", label="gradient norm", scale="log"),
        low="low" if banded else None,
        high="high" if banded else None,
        rule=Rule(label=f"clipped at {clip:g}", y=clip) if clip else None,
        data=data,
    )


# --- what the monitor measured


def monitor_pictures(record: RunRecord) -> Iterator[Picture]:
    """Of each role: size and rotation against theory, and the decay that really came."""
    rows = record.rows.get("decay-role", [])
    sizes = list(_against_theory(rows, "weight_rms", "expected_rms"))
    if sizes:
        yield _theory_picture(
            sizes,
            id="weight-rms",
            title="Size of the weights against theory",
            y=Axis(field="value", label="root mean square", scale="log"),
            alt="Root mean square of the weights of each role, beside what the schedule so far leads to.",
        )
    angles = list(_against_theory(rows, "angle", "expected_angle"))
    if angles:
        yield _theory_picture(
            angles,
            id="rotation",
            title="Rotation in a step against theory",
            y=Axis(field="value", label="angle", unit="radians a step", scale="log"),
            alt="The angle that the weights of each role turn in a step, beside what theory expects.",
        )
    realised = [
        {"step": row["step"], "ratio": ratio, "role": str(row.get("role"))}
        for row in _spread(rows)
        if (ratio := _ratio(row)) is not None
    ]
    if realised:
        yield Picture(
            id="realised-decay",
            title="Decay that came, of what was asked for",
            subtitle="1: all of it",
            alt=f"The realised decay divided by the requested, by role; {realised[-1]['ratio']:.3g} at the end.",
            kind="lines",
            x=_STEP,
            y=Axis(field="ratio", label="realised / requested"),
            color=Axis(field="role", label="", type="nominal"),
            rule=Rule(label="as asked", y=1.0),
            data=realised,
        )


def _against_theory(rows: Sequence[Row], measured: str, expected: str) -> Iterator[dict[str, Any]]:
    """Records of the roles that theory speaks of."""
    known = {row.get("role") for row in rows if number(row.get(expected))}
    for row in _spread([row for row in rows if row.get("role") in known]):
        for key, words in ((measured, "measured"), (expected, "expected")):
            if value := number(row.get(key)):
                yield {"step": row["step"], "value": value, "series": words, "role": str(row["role"])}


def _theory_picture(data: list[dict[str, Any]], **words: Any) -> Picture:
    several = len({record["role"] for record in data}) > 1
    return Picture(
        kind="lines",
        x=_STEP,
        subtitle="" if several else str(data[0]["role"]),
        color=Axis(field="series", label="", type="nominal", sort=["measured", "expected"]),
        facet=Facet(field="role", label="role") if several else None,
        data=data,
        **words,
    )


def _ratio(row: Row) -> float | None:
    realised, requested = number(row.get("decay_realised")), number(row.get("decay_requested"))
    return realised / requested if realised is not None and requested else None


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Each role's rows, some of them where there are many; the last stay."""
    kept = []
    for role in dict.fromkeys(row.get("role") for row in rows):
        own = [row for row in rows if row.get("role") == role]
        kept += [own[place] for place in np.unique(np.linspace(0, len(own) - 1, _POINTS).astype(int))]
    return kept


# --- rows to records


def thinned(rows: Sequence[Row], key: str, most: int = _POINTS) -> list[dict[str, Any]]:
    """Means of stretches of rows, with the least and the largest of each; the first and the last rows stay alone."""
    known = [(float(row["step"]), value) for row in rows if (value := number(row.get(key))) is not None]
    if len(known) <= most:
        stretches = [[pair] for pair in known]
    else:
        inner = known[1:-1]
        size = math.ceil(len(inner) / (most - 2))
        stretches = [known[:1], *(inner[at : at + size] for at in range(0, len(inner), size)), known[-1:]]
    records = []
    for stretch in stretches:
        values = [value for _, value in stretch]
        mean = math.fsum(values) / len(values)
        records.append({"step": stretch[-1][0], key: mean, "low": min(values), "high": max(values)})
    return records


def decay_of_steps(record: RunRecord) -> NDArray[np.float64] | None:
    """The decay per step of every step that was done, between logged rows along a line; None where it is not known."""
    known = [
        (row["step"], value)
        for row in record.training
        if (value := number(row.get("decay_per_step"))) is not None and 0 <= value <= 1
    ]
    if not known:
        return None
    steps, decay = zip(*known, strict=True)
    decay_T: NDArray[np.float64] = np.interp(
        np.arange(1, int(steps[-1]) + 1), np.asarray(steps, float), np.asarray(decay, float)
    )
    return decay_T
