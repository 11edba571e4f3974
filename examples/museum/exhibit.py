"""An exhibit: a decay bug of a public project as a loop, wrong and mended, and what the audit must say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn


class Loop(NamedTuple):
    """A training between two steps.

    Attributes:
        optimizer: anything with `param_groups` and `step()`, or several.
        asked: what its author asked for, as the audit's keywords.
    """

    model: nn.Module
    optimizer: Any
    asked: Mapping[str, Any]

    @property
    def optimizers(self) -> Sequence[Any]:
        return self.optimizer if isinstance(self.optimizer, list | tuple) else [self.optimizer]


@dataclass(frozen=True)
class Exhibit:
    """One bug.

    Attributes:
        project, reference: where it was, and the page that tells of it.
        bug: in one line.
        code, severity: what the audit must say of the wrong loop.
        tensors: the names that it must say it of.
        wrong, mended: the loop as it was, and as it should be; each call makes a new one.
    """

    project: str
    reference: str
    bug: str
    code: str
    severity: str
    wrong: Callable[[], Loop]
    mended: Callable[[], Loop]
    tensors: Sequence[str] = field(default_factory=tuple)

    @property
    def place(self) -> str:
        """`#17709`, or `@29993ff adamw.py`."""
        kind, number, *path = self.reference.removeprefix("https://github.com/").split("/")[2:]
        return f"#{number}" if kind in ("pull", "issues") else f"@{number[:7]} {path[-1]}"
