"""A finding, and what an audit comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Severity = Literal["error", "warning", "note"]
Code = Literal[
    "not-decaying",
    "lost-to-rounding",
    "decays-twice",
    "coupled",
    "decoupled",
    "decays-exempt",
    "exempt-matrix",
    "missing",
    "doubled",
    "stale",
    "wrong-scale",
    "ignored-key",
    "idle-decay",
    "wrong-order",
    "by-design",
    "opaque",
]
CODES: tuple[Code, ...] = get_args(Code)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The gravest first."""


@dataclass(frozen=True)
class Finding:
    """Something that decays otherwise than asked, in one way and by one cause.

    Attributes:
        severity: `error`: the numbers are not what was asked; `warning`: probably not what was meant; `note`: opinions
            differ, by design, or worth knowing.
        tensors: their names, as `named_parameters()` of the bare model has them.
        elements: how many numbers these tensors have together.
        asked, realised: decay per step, over all these tensors; None where there is no such number.
        title: one line of what is wrong.
        detail: by how much, per step and over the planned run.
        why: why it matters.
        source: where that is shown.
        fix: code that mends it, to be pasted into the loop; "" where nothing is to be done.
    """

    code: Code
    severity: Severity
    tensors: tuple[str, ...]
    elements: int
    title: str
    detail: str = ""
    why: str = ""
    source: str = ""
    fix: str = ""
    asked: float | None = None
    realised: float | None = None

    @property
    def weight(self) -> float:
        """How many numbers it is of, times how far off they are: |realised/asked − 1|, at most 1; 1 where unknown."""
        if not self.asked or self.realised is None:
            return float(self.elements)
        return self.elements * min(abs(self.realised / self.asked - 1.0), 1.0)

    def document(self) -> dict[str, Any]:
        """The same for machines."""
        return {**asdict(self), "tensors": list(self.tensors)}


def ranked(findings: list[Finding]) -> list[Finding]:
    """By severity, then by weight."""
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), -one.weight, CODES.index(one.code)))
