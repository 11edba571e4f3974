"""Judgements of single tensors as findings: those of one kind together, with how much they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from weightdecay.auditing.findings import Finding
from weightdecay.auditing.fixes import Fixes
from weightdecay.auditing.judging import Judgement
from weightdecay.auditing.reasons import Circumstances, detail_of, title_of, why_of


def gathered(
    judgements: Sequence[Judgement],
    circumstances: Circumstances,
    fixes: Fixes,
    over_run: Mapping[tuple[str, str], tuple[float, float]],
) -> list[Finding]:
    """One finding for all tensors that are wrong in the same way.

    Args:
        over_run: Σ a_t over the planned run and the part of a weight that it takes away, by code and tensor.
    """
    alike: dict[tuple[str, str, str], list[Judgement]] = {}
    for one in judgements:
        alike.setdefault((one.code, one.severity, one.about), []).append(one)

    found = []
    for ones in alike.values():
        first = ones[0]
        names = tuple(dict.fromkeys(one.name for one in ones if one.name))
        elements = sum({one.name: one.elements for one in ones}.values())
        asked, realised = _mean(ones, "asked"), _mean(ones, "realised")
        why, source = why_of(first, ones, circumstances)
        found.append(
            Finding(
                code=first.code,
                severity=first.severity,
                tensors=names,
                elements=elements,
                title=title_of(ones, names, circumstances),
                detail=detail_of(first, ones, asked, realised, circumstances, _over(ones, over_run)),
                why=why,
                source=source,
                fix=fixes.of(first.code, ones),
                asked=asked,
                realised=realised,
            )
        )
    return found


def _mean(ones: Sequence[Judgement], what: str) -> float | None:
    """Of all elements; None where some tensor has no such number."""
    values = [(getattr(one, what), max(one.elements, 1)) for one in ones]
    if any(value is None for value, _ in values):
        return None
    return math.fsum(value * elements for value, elements in values) / sum(elements for _, elements in values)


def _over(
    ones: Sequence[Judgement], over_run: Mapping[tuple[str, str], tuple[float, float]]
) -> tuple[float, float] | None:
    known = [over_run[key] for one in ones if (key := (one.code, one.name)) in over_run]
    if len(known) < len(ones) or not known:
        return None
    return sum(total for total, _ in known) / len(known), sum(part for _, part in known) / len(known)
