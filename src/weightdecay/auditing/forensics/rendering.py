"""The report in words for people, and as a document for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from weightdecay.auditing.forensics.answers import Answer, Forensics, IdleRows, Told, Untold, VectorVerdict
from weightdecay.auditing.forensics.vectors import counted
from weightdecay.planning.patterns import alike, pattern_of

_SHOWN = 6  # groups of vectors
_ROWS_LISTED = 10_000  # in the document; a vocabulary's rows help nobody


def as_text(report: Forensics) -> str:
    """A paragraph for each question."""
    table = report.table
    beside = (
        "" if report.start is None else f", and {'its start' if report.start == report.checkpoint else report.start}"
    )
    lines = [f"{report.checkpoint}{beside}"]
    lines.append(f"  embedding {table.name}: {table.rows} × {table.width}, {table.dtype}; {_said_of_rows(table.idle)}")
    lines += _answer("Σηλ", report.decay_sum)
    if isinstance(report.kept, Told):
        kept = report.kept
        lines.append(f"      decay alone left {kept.value:.4g} of a weight ({kept.low:.4g} to {kept.high:.4g})")
    if report.asked.decay_sum is not None:
        lines.append(f"      asked for: {report.asked.decay_sum:.4g} ({report.asked.source})")
    lines += [f"  lost decay: {report.loss.verdict}", f"      {report.loss.why}"]
    lines += _answer("η/λ", report.lr_over_weight_decay)
    for kind in ("gain", "bias"):
        lines += _vectors([one for one in report.vectors if one.kind == kind], kind)
    lines += [f"  note: {remark}" for remark in report.remarks]
    if isinstance(report.decay_sum, Told):
        lines.append("  note: Σηλ is the embedding's; other tensors had as much only where they had its λ and η")
    return "\n".join(lines)


def as_document(report: Forensics) -> dict[str, object]:
    """Every answer as its value and interval, or the reason for none."""
    table, asked = report.table, report.asked
    return {
        "checkpoint": report.checkpoint,
        "start": report.start,
        "embedding": {
            "name": table.name,
            "rows": table.rows,
            "width": table.width,
            "dtype": table.dtype,
            "tied": table.tied or None,
            "kept_in_bfloat16": table.kept_in_bf16,
            "idle_rows": _rows(table.idle),
        },
        "decay_sum": _entry(report.decay_sum),
        "kept": _entry(report.kept),
        "lost": {"verdict": report.loss.verdict, "why": report.loss.why},
        "lr_over_weight_decay": _entry(report.lr_over_weight_decay),
        "vectors": [vars(one) for one in report.vectors],
        "asked": vars(asked) if asked.source else None,
        "remarks": list(report.remarks),
    }


def _said_of_rows(idle: IdleRows | Untold) -> str:
    if isinstance(idle, Untold):
        return "no rows that are known never to have come"
    return f"{len(idle.rows)} {idle.basis}"


def _rows(idle: IdleRows | Untold) -> dict[str, Any]:
    if isinstance(idle, Untold):
        return {"count": 0, "why": idle.why}
    listed = list(idle.rows[:_ROWS_LISTED])
    return {"count": len(idle.rows), "basis": idle.basis, "certain": idle.certain, "rows": listed}


def _answer(what: str, answer: Answer) -> list[str]:
    if isinstance(answer, Untold):
        return [f"  {what}: cannot be told", f"      {answer.why}"]
    return [f"  {what}: {_number(answer)}", f"      from {answer.basis}"]


def _number(told: Told) -> str:
    """With as many digits as its interval gives a meaning to."""
    width = told.high - told.low
    digits = 4 if width <= 0 or told.value == 0 else min(7, max(3, 2 + math.ceil(-math.log10(width / abs(told.value)))))
    return f"{told.value:.{digits}g} (95 %: {told.low:.{digits}g} to {told.high:.{digits}g})"


def _entry(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Untold):
        return {"told": False, "why": answer.why}
    return {"told": True, **vars(answer)}


def _vectors(verdicts: Sequence[VectorVerdict], kind: str) -> Iterator[str]:
    if not verdicts:
        return
    what = {"gain": "gains", "bias": "biases"}[kind]
    yield f"  {what}: " + ", ".join(f"{n} {verdict}" for verdict, n in counted(verdicts).items())
    groups = alike(verdicts, lambda one: one.name, lambda one: (one.verdict, one.kind))
    reasons = {one.why for one in verdicts}
    if len(reasons) == 1:
        yield f"      {reasons.pop()}"
        return
    for group in groups[:_SHOWN]:
        name = pattern_of([one.name for one in group])
        alike_too = len({one.why for one in group}) == 1
        yield f"      {name}: {group[0].verdict}; {'' if alike_too else 'the first is at '}{group[0].why}"
    if len(groups) > _SHOWN:
        yield f"      and {len(groups) - _SHOWN} groups more; --json has all"
