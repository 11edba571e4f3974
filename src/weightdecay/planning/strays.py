"""Tensors that need a user's word: shown by pattern, with the overrides that give it, ready to paste."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Protocol

from weightdecay.planning.patterns import alike, pattern_of, regexes_of

_SHOWN = 12  # patterns in one message; who has more looks at the table


class Stray(Protocol):
    """What is needed of a tensor."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def by_pattern(strays: Sequence[Stray]) -> str:
    """`blocks.{0-39}.x [2, 3] ×40, head.y [3, 3]`."""
    groups = _groups(strays)
    shown = [
        f"{pattern_of([one.name for one in group])} {list(group[0].shape)}"
        + (f" ×{len(group)}" if len(group) > 1 else "")
        for group in groups[:_SHOWN]
    ]
    more = sum(map(len, groups[_SHOWN:]))
    return ", ".join(shown) + (f" … and {more} more" if more else "")


def overrides_to_paste(strays: Sequence[Stray], known: Iterable[str]) -> str:
    """The overrides that decide about them, in Python and for the command; 0 is to be changed to 1 where they decay."""
    patterns = regexes_of([[one.name for one in group] for group in _groups(strays)], known)
    python = ", ".join(f'r"{pattern}": 0.0' for pattern in patterns)
    command = " ".join(shlex.quote(f"{pattern}=0") for pattern in patterns)
    return f"(0 exempts, 1 decays) overrides={{{python}}}, for the command --override {command}"


def _groups(strays: Sequence[Stray]) -> list[list[Stray]]:
    return alike(strays, lambda stray: stray.name, lambda stray: stray.shape)
