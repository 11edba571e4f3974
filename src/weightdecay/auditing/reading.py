"""Which keys of its groups an optimizer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from weightdecay.amounts import number
from weightdecay.auditing.measuring import local
from weightdecay.auditing.sharding import agreed
from weightdecay.auditing.stepping import Bench, Place

# What others write into groups and read there: schedulers, plans, people.
_OF_OTHERS = frozenset({
    "params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr",
    "decay_multiplier", "lr_multiplier", "decay_step", "rule", "peak_lr",
})  # fmt: skip


class _Recording(dict[str, Any]):
    """A group that remembers which of its keys were asked for; all of them together only tell that it was copied."""

    def __init__(self, group: Mapping[str, Any]) -> None:
        super().__init__(group)
        self.read: set[str] = set()
        self.copied = False

    def _all(self) -> None:
        self.copied = True

    def __getitem__(self, key: str) -> Any:
        if not self.copied:
            self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().setdefault(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self.read.add(key)
        return super().pop(key, *default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    # A mapping that is unpacked or merged is walked in this way, as long as it has an `__iter__` of its own.
    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def items(self) -> Any:
        self._all()
        return super().items()

    def values(self) -> Any:
        self._all()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._all()
        return dict(super().items())


def unread_keys(bench: Bench, places: Sequence[Place]) -> dict[int, tuple[str, ...]]:
    """For each group of which a tensor is looked at, the numbers that a step does not read, by their keys.

    A step asks a stand-in for each group. Where that is copied as a whole, a number is not read if another in its
    place changes nothing.
    """
    groups = bench.optimizer.param_groups
    asked: dict[int, _Recording] = {}

    def stand_in() -> None:
        for number_, group in enumerate(list(groups)):
            groups[number_] = asked[number_] = _Recording(group)

    if not isinstance(groups, list):
        return {}
    try:
        with bench.stepped(prepare=stand_in):
            plain = _weights(places)
    except Exception:  # others' code, which may ask for a plain dictionary
        return {}
    if bench.optimizer.param_groups is not groups:
        return {}

    unread: dict[int, tuple[str, ...]] = {}
    for index in sorted({place.group for place in places}):
        group = asked[index]
        if "params" not in group.read and not group.copied:
            continue  # it goes by groups that it keeps elsewhere
        numbers = [key for key, value in dict.items(group) if number(value) is not None]
        keys = [key for key in numbers if key not in group.read | _OF_OTHERS]
        if group.copied:
            keys = [key for key in keys if _changes_nothing(bench, places, index, key, plain)]
        if keys:
            unread[index] = tuple(keys)
    return unread


def _changes_nothing(bench: Bench, places: Sequence[Place], group: int, key: str, plain: Sequence[Tensor]) -> bool:
    value = number(bench.optimizer.param_groups[group].get(key))
    if value is None or isinstance(bench.optimizer.param_groups[group][key], int):
        return False
    for other in (2 * value + 0.5, value / 2 + 0.01):
        try:
            with bench.stepped({group: {key: other}}):
                changed = any(bool((one != now).any()) for one, now in zip(plain, _weights(places), strict=True))
            if agreed(changed, (place.tensor for place in places)):
                return False
        except Exception:  # which read it
            return False
    return True


def _weights(places: Sequence[Place]) -> list[Tensor]:
    return [local(place.tensor).clone() for place in places]
