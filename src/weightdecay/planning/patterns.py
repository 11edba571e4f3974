"""Names that differ in nothing but their indices, written as one: for people, as regular expressions, as overrides."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, TypeVar

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number
_SPANS = 4  # more gaps than that in a row of indices are not all written out
_SHOWN = 4  # names in one sentence
_GROUPS = 12  # patterns in one message; who has more looks at the table

T = TypeVar("T")


def alike(items: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with the same key whose names differ in their indices alone, in order of first appearance."""
    groups: dict[tuple[str, Hashable], list[T]] = {}
    for item in items:
        groups.setdefault((INDEX.sub("#", name(item)), key(item)), []).append(item)
    return list(groups.values())


def pattern_of(names: Sequence[str]) -> str:
    """`layers.{0-31}.mlp.up_proj.weight` for names that differ in nothing but their indices."""
    ranges = iter([_range({int(index) for index in column}) for column in _columns(names)])
    return INDEX.sub(lambda _: next(ranges), names[0])


def regexes_of(groups: Sequence[Sequence[str]], known: Iterable[str]) -> list[str]:
    r"""`^layers\\.\\d+\\.scale$` for each group of names that `alike` made: finds these and no other known one."""
    by_template: dict[str, set[str]] = {}
    for name in known:
        by_template.setdefault(INDEX.sub("#", name), set()).add(name)
    return [_regex(names, by_template.get(INDEX.sub("#", names[0]), set())) for names in groups]


def _regex(names: Sequence[str], sisters: set[str]) -> str:
    """Any index where that finds no sister beside these names, else their indices, else the names one by one."""
    columns = _columns(names)
    parts = re.split(INDEX, names[0])
    for any_index in (True, False):
        indices = [_indices(column, any_index) for column in columns]
        found = "".join(re.escape(part) + index for part, index in zip(parts, [*indices, ""], strict=True))
        if not any(re.search(f"^{found}$", sister) for sister in sisters.difference(names)):
            return f"^{found}$"
    return f"^({'|'.join(map(re.escape, names))})$"


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
        for group in groups[:_GROUPS]
    ]
    more = sum(map(len, groups[_GROUPS:]))
    return ", ".join(shown) + (f" … and {more} more" if more else "")


def overrides_to_paste(strays: Sequence[Stray], known: Iterable[str]) -> str:
    """The overrides that decide about them, in Python and for the command; 0 is to be changed to 1 where they decay."""
    patterns = regexes_of([[one.name for one in group] for group in _groups(strays)], known)
    python = ", ".join(f'r"{pattern}": 0.0' for pattern in patterns)
    command = " ".join(shlex.quote(f"{pattern}=0") for pattern in patterns)
    return f"(0 exempts, 1 decays) overrides={{{python}}}, for the command --override {command}"


def _groups(strays: Sequence[Stray]) -> list[list[Stray]]:
    return alike(strays, lambda stray: stray.name, lambda stray: stray.shape)


def some(names: Sequence[str]) -> str:
    """A few of many names."""
    return ", ".join(names[:_SHOWN]) + (f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _columns(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The indices of each place at which the names have one."""
    return list(zip(*(INDEX.findall(name) for name in names), strict=True))


def _indices(column: Sequence[str], any_index: bool) -> str:
    distinct = sorted(set(column), key=int)
    if len(distinct) == 1:
        return distinct[0]
    return r"\d+" if any_index else f"({'|'.join(distinct)})"


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
