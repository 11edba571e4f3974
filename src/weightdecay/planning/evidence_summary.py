"""What the verdicts of a plan rest on, counted: the line under each table, and the fault of those on none."""

from __future__ import annotations

from collections import Counter

from weightdecay.planning.patterns import by_pattern, overrides_to_paste
from weightdecay.planning.planned import Plan, PlannedTensor
from weightdecay.planning.roles.roles import Strength

_WORDS = {
    Strength.TRACED: "traced",
    Strength.TYPE: "by type",
    Strength.NAME: "by name",
    None: "not said by this lock",
}
_GIVEN = "said by override or author"


def rests_on(plan: Plan) -> str:
    """`evidence: 1,040 traced, 12 by type, 41 of 1,095 by shape alone (--why NAME); 3 contested`."""
    counts = Counter(_footing(tensor) for tensor in plan)
    parts = [f"{counts[words]:,} {words}" for words in (*_WORDS.values(), _GIVEN) if counts[words]]
    if shapes := counts["shape"]:
        parts.append(f"{shapes:,} of {len(plan):,} by shape alone")
    if unknown := counts["unknown"]:
        parts.append(f"{unknown:,} unknown")
    line = f"evidence: {', '.join(parts) or 'none'}"
    if contested := sum(tensor.contested for tensor in plan):
        line += f"; {contested:,} contested"
    if shapes or contested:
        line += " (--why NAME tells)"
    return f"{line}\nincomplete: {plan.incomplete}" if plan.incomplete else line


def _footing(tensor: PlannedTensor) -> str:
    if tensor.given:
        return _GIVEN
    if tensor.unknown:
        return "unknown"
    return "shape" if tensor.by_shape else _WORDS.get(tensor.strength, "by type")


def weak(plan: Plan) -> str:
    """The fault of what rests on its shape alone, by pattern, with the overrides to paste; empty if nothing does."""
    strays = [tensor for tensor in plan if tensor.by_shape or tensor.unknown]
    if not strays:
        return ""
    known = [name for tensor in plan for name in (tensor.name, *tensor.aliases)]
    return (
        f"{len(strays):,} of {len(plan):,} tensors rest on their shape alone, or on nothing: {by_pattern(strays)}. "
        f"Give a batch to trace, or say by overrides what you know {overrides_to_paste(strays, known)}"
    )
