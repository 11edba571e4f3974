"""Settings that say in text how a value moves over a run.

run.batch_ramp = ["0:32000", "4e9:500000"]             TOKENS:BATCH_TOKENS
schedule.grad_clip_changes = ["30e9:0.3"]              TOKENS:NORM
schedule.stages = ["cosine to 0.1 over 4.3e12", …]     SHAPE to FRACTION over TOKENS
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from weightdecay.errors import did_you_mean

STAGE_SHAPES = ("constant", "cosine", "linear")


def points(entries: Sequence[str]) -> list[tuple[float, float]]:
    """`TOKENS:VALUE` pairs.

    Raises:
        ValueError: an entry that is none.
    """
    return [_point(entry) for entry in entries]


def stages(entries: Sequence[str]) -> list[tuple[str, float, float]]:
    """`SHAPE to FRACTION over TOKENS`: (shape, fraction, tokens).

    Raises:
        ValueError: an entry that is none.
    """
    return [_stage(entry) for entry in entries]


def moving_faults(read: Mapping[str, Any]) -> list[str]:
    """What is wrong with such settings among `section.key` pairs."""
    faults = []
    for key, example in (("run.batch_ramp", "4e9:500000"), ("schedule.grad_clip_changes", "30e9:0.3")):
        entries = read.get(key, ())
        form = f"must be two numbers of at least 0 with a colon between them, like {example}"
        unreadable = [f"{key} '{entry}': {form}" for entry in entries if not _reads(_point, entry)]
        faults += unreadable
        if not unreadable and any(later[0] <= earlier[0] for earlier, later in pairwise(points(entries))):
            faults.append(f"{key} must go on at rising numbers of tokens")
        if entries and not unreadable:
            faults += _start_faults(key, points(entries)[0][0])
    for entry in read.get("schedule.stages", ()):
        words = entry.split()
        if not _reads(_stage, entry):
            faults.append(f"schedule.stages '{entry}': must be like 'cosine to 0.1 over 4e12'")
        elif words[0] not in STAGE_SHAPES:
            faults.append(f"schedule.stages '{entry}': {did_you_mean(words[0], STAGE_SHAPES)}")
    if read.get("schedule.shape") == "stages" and not read.get("schedule.stages"):
        faults.append("schedule.shape 'stages' needs schedule.stages")
    return faults


def _start_faults(key: str, first: float) -> list[str]:
    if key == "run.batch_ramp" and first != 0:
        return [f"{key} must begin at 0 tokens, not at {first:g}"]
    if key == "schedule.grad_clip_changes" and first == 0:
        return [f"{key} must come after the start, whose norm is optimizer.grad_clip"]
    return []


def _reads(read: Any, entry: str) -> bool:
    try:
        read(entry)
    except ValueError:
        return False
    return True


def _point(entry: str) -> tuple[float, float]:
    tokens, value = (float(number) for number in entry.split(":"))
    if not all(math.isfinite(number) and number >= 0 for number in (tokens, value)):
        raise ValueError(entry)
    return tokens, value


def _stage(entry: str) -> tuple[str, float, float]:
    shape, to, fraction, over, tokens = entry.split()
    numbers = float(fraction), float(tokens)
    if (to, over) != ("to", "over") or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(entry)
    return (shape, *numbers)
