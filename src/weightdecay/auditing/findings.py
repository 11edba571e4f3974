"""A finding, and what an audit comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
