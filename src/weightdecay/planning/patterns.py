"""Names that differ in nothing but their indices, written as one."""

from __future__ import annotations

import re
from collections.abc import Sequence

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number
_SPANS = 4  # more gaps than that in a row of indices are not all written out


def pattern_of(names: Sequence[str]) -> str:
    """`layers.{0-31}.mlp.up_proj.weight` for names that differ in nothing but their indices."""
    columns = list(zip(*(INDEX.findall(name) for name in names), strict=True))
    ranges = iter([_range({int(index) for index in column}) for column in columns])
    return INDEX.sub(lambda _: next(ranges), names[0])


def _range(indices: set[int]) -> str:
    """`7`, `{0-31}`, `{0-2,5,7-9}`, or with many gaps the first two and the last: `{3,7,…,47}`."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    parts = [f"{first}-{last}" if last > first else f"{first}" for first, last in spans]
    if len(parts) > _SPANS:
        parts[2:-1] = ["…"]
    return parts[0] if len(indices) == 1 else f"{{{','.join(parts)}}}"
