"""The numbers that stand in a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightdecay.amounts import number

# Where schedulers, plans and people write the highest lr of a schedule.
_PEAKS = ("peak_lr", "max_lr", "initial_lr")


def peak_of(group: Mapping[str, Any]) -> tuple[float | None, str]:
    """The largest lr that a group knows of, and where it stands."""
    known = {key: number(group.get(key)) for key in _PEAKS}
    peaks = {key: value for key, value in known.items() if value is not None}
    key = max(peaks, key=lambda key: peaks[key], default="")
    return peaks.get(key), key
