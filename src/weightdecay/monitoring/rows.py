"""Rows of what was seen: one for a tensor in a step, one for a role of which tensors were just seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from weightdecay.equilibrium import memory_steps

Row = dict[str, Any]

WITHIN = 0.25
"""An angle this near to the expected one, as a part of it, is as theory has it."""


def rounded(row: Row) -> Row:
    """Nine digits: the last ones go with where in memory a sum's numbers lie, and a resumed run's lie elsewhere."""
    return {key: float(f"{value:.9g}") if isinstance(value, float) else value for key, value in row.items()}


def memory(rate: float | None, batch_tokens: float | None) -> dict[str, float | None]:
    """After how many steps and tokens half of an update is forgotten."""
    steps = None if rate is None or rate <= 0 else memory_steps(min(rate, 1.0))
    return {
        "memory_steps": steps,
        "memory_tokens": None if steps is None or batch_tokens is None else steps * batch_tokens,
    }


def role_row(rows: Sequence[Row], step: int) -> Row:
    """What the latest rows of a role's tensors come to."""
    elements = sum(row["elements"] for row in rows)
    return {
        "kind": "decay-role",
        "step": step,
        "tokens": rows[-1]["tokens"],
        "role": rows[0]["role"],
        "hidden": rows[0]["hidden"],
        "tensors": len(rows),
        "elements": elements,
        "oldest_step": min(row["step"] for row in rows),
        "weight_rms": _root_mean_square(rows, "weight_rms"),
        "update_rms": _root_mean_square(rows, "update_rms"),
        **{key: _of(rows, key, median) for key in _MEDIANS},
        "angle_low": _of(rows, "angle", min),
        "angle_high": _of(rows, "angle", max),
        "within": share_within(rows),
        "decay_requested": _mean(rows, "decay_requested"),
        "decay_realised": _mean(rows, "decay_realised"),
        "memory_steps": _of(rows, "memory_steps", median),
        "memory_tokens": _of(rows, "memory_tokens", median),
        "sigma_max": _of(rows, "sigma_max", max),
        "steps_to_equilibrium": _of(rows, "steps_to_equilibrium", max),
    }


_MEDIANS = (
    "angle", "cosine", "distance", "equilibrium_rms", "equilibrium_angle", "equilibrium_cosine", "expected_rms",
    "expected_angle",
)  # fmt: skip


def share_within(rows: Iterable[Row]) -> float | None:
    """The part of tensors that turn as theory expects, of those that it says something of."""
    known = [(row["angle"], angle_by_theory(row)) for row in rows if row["angle"] is not None]
    told = [(angle, theory) for angle, theory in known if theory]
    return sum(abs(angle / theory - 1) <= WITHIN for angle, theory in told) / len(told) if told else None


def angle_by_theory(row: Row) -> float | None:
    """The angle that the whole schedule so far leads to; that of the present numbers where no course is known."""
    expected: float | None = row["expected_angle"]
    settled: float | None = row["equilibrium_angle"]
    return settled if expected is None else expected


def _of(rows: Sequence[Row], key: str, what: Callable[[list[float]], float]) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return what(values) if values else None


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """By elements."""
    known = [(row[key], row["elements"]) for row in rows if row[key] is not None]
    elements = sum(count for _, count in known)
    return math.fsum(value * count for value, count in known) / elements if elements else None


def _root_mean_square(rows: Sequence[Row], key: str) -> float | None:
    known = [(row[key], row["elements"]) for row in rows if row[key] is not None]
    elements = sum(count for _, count in known)
    return math.sqrt(math.fsum(value**2 * count for value, count in known) / elements) if elements else None
