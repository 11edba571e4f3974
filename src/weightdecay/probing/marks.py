"""What tells single tensors of an optimizer apart: attributes, state, and what it keeps for them in containers.

An optimizer may keep a set of ids, a dict by tensor, id or name, or a list with an item for each tensor, in itself, in
a group or in a function's closure. What they say of a tensor is one of its marks, and tensors of unlike marks are of
unlike kinds. A twin has few tensors, so that lists are cut to theirs.
"""

from __future__ import annotations

import enum
import types
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

# Values of one mark. What has more of them is no setting: a name, or a number that each tensor finds for itself.
MOST_VALUES = 64
# A short list that is as long as there are tensors may be betas as well: then each of the tensors is tried.
_SHORT = 16
_DEEP = 3  # objects within objects that hang on a tensor
_MANY = 50_000  # objects that hang on the optimizer

_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, type, torch.dtype, torch.device)
# No marks of tensors are in them, or nobody copies them.
_CLOSED = (*_PLAIN, types.ModuleType, nn.Module, np.generic, torch.Generator)

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Marks:
    """What is kept for single tensors.

    Attributes:
        of: by a tensor's id what is said of it, to be compared and hashed.
        cut: containers with an item for each tensor, by their id; of one group or, where it is None, of all.
        functions: ids of functions whose closures keep something of single tensors.
    """

    of: dict[int, Hashable]
    cut: dict[int, int | None]
    functions: set[int]


def marks(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> Marks:
    """Of the tensors of these groups."""
    reader = _Reader(groups)
    for params in reader.tensors:
        for p in params:
            for key, value in vars(p).items():
                reader.note(("attribute", key), id(p), value)
    reader.read_groups()
    reader.read_optimizer(optimizer)
    return Marks(reader.told(), reader.cut, reader.functions)


@dataclass
class _Reader:
    groups: Sequence[Mapping[str, Any]]
    cut: dict[int, int | None] = field(default_factory=dict)
    functions: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tensors: list[list[Tensor]] = [list(group["params"]) for group in self.groups]
        self._every = [p for params in self.tensors for p in params]
        self._ids = {id(p) for p in self._every}
        named = (zip(group.get("param_names", ()), group["params"], strict=False) for group in self.groups)
        self._names = {name: id(p) for names in named for name, p in names}
        self._said: dict[Path, dict[int, Hashable]] = defaultdict(dict)
        self._read: dict[int, bool] = {}
        self._alive: list[Any] = []  # or another object might get the id of one that was read

    def told(self) -> dict[int, Hashable]:
        """What was noted of each tensor; of names, and of numbers of their own, only that they are there."""
        made: dict[int, list[Hashable]] = defaultdict(list)
        for path, values in self._said.items():
            is_setting = len(set(values.values())) <= MOST_VALUES
            for own, value in values.items():
                made[own].append((path, value if is_setting else None))
        return {own: frozenset(said) for own, said in made.items()}

    def note(self, path: Path, own: int, value: Any, depth: int = 0) -> None:
        """What is said of one tensor: of a dict or an object each of its values."""
        fields = value if isinstance(value, Mapping) else _attributes(value)
        if fields is None or depth >= _DEEP:
            self._said[path][own] = comparable(value)
            return
        self._said[path][own] = str(type(value))
        for key, item in fields.items():
            self.note((*path, str(key)), own, item, depth + 1)

    def _tensor_of(self, key: Any) -> int | None:
        """The id of the tensor that a key is, or whose id or name it is."""
        if isinstance(key, Tensor):
            return id(key) if id(key) in self._ids else None
        if type(key) is int:
            return key if key in self._ids else None
        return self._names.get(key) if type(key) is str else None

    def read_groups(self) -> None:
        """What is in groups beside their tensors; one object in several, as defaults are, is no list for one's own."""
        values = [
            (index, key, value)
            for index, group in enumerate(self.groups)
            for key, value in group.items()
            if key not in ("params", "param_names")
        ]
        holders = Counter(id(value) for _, _, value in values)
        for index, key, value in values:
            self.read(value, (str(key),), index if holders[id(value)] == 1 else None)

    def read_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Its own attributes; hooks are others' functions, and not where it says what to do with which tensor."""
        self._read[id(optimizer)] = False
        for key, value in vars(optimizer).items():
            is_hooks = key.startswith("_optimizer_") and key.endswith("_hooks")
            if not is_hooks and key not in ("param_groups", "defaults"):
                self.read(value, (key,), None)

    def read(self, value: Any, path: Path, group: int | None) -> bool:
        """All that hangs on a value, which hangs on this group or, where it is None, on the optimizer.

        Returns:
            Whether it says anything of single tensors.
        """
        if (own := self._tensor_of(value)) is not None:
            self._said[path][own] = True
            return True
        # Hooks of this package and their like know no single tensors.
        if isinstance(value, _CLOSED) or type(value).__module__.startswith("weightdecay."):
            return False
        if id(value) in self._read or len(self._read) > _MANY:
            return self._read.get(id(value), False)
        self._read[id(value)] = False
        self._alive.append(value)
        says = self._read_items(value, path, group)
        for key, item in _parts(value):
            if (keyed := self._tensor_of(key)) is not None:
                self.note(path, keyed, item)
                says = True
            else:
                says |= self.read(item, (*path, str(key)), group)
        if says and isinstance(value, types.FunctionType):
            self.functions.add(id(value))
        self._read[id(value)] = says
        return says

    def _read_items(self, value: Any, path: Path, group: int | None) -> bool:
        """A list with an item for each tensor, or in a list for each group."""
        if _is_nested(value, self.tensors):
            for index, inner in enumerate(value):
                self._read_items(inner, (*path, "by group"), index)
            return True
        items = items_in_order(value)
        if items is None or len(items) < 2:
            return False
        tensors = self._every if group is None else self.tensors[group]
        if len(items) != len(tensors):
            tensors, group = self._every, None
        if len(items) != len(tensors):
            return False
        self.cut[id(value)] = group
        may_be_other = len(items) <= _SHORT and not all(isinstance(item, Tensor) for item in items)
        for place, (p, item) in enumerate(zip(tensors, items, strict=True)):
            if may_be_other:
                self._said[(*path, "place")][id(p)] = place
            if item is not p:
                self.note((*path, "item"), id(p), item)
        return True


def comparable(value: Any) -> Hashable:
    """What tells a value from others of its kind."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        is_number = value.ndim == 0 and value.device.type != "meta" and type(value) in (Tensor, nn.Parameter)
        return type(value), value.dtype, value.item() if is_number else None
    if type(value) in (tuple, list):
        return type(value), tuple(map(comparable, value))
    if isinstance(value, Set):
        return type(value), frozenset(map(comparable, value))
    return type(value), id(value)


def items_in_order(value: Any) -> Collection[Any] | None:
    """The items of what may be a list for each tensor: a list, a row of numbers, or a dict by place."""
    if isinstance(value, list | tuple | deque):
        return None if hasattr(value, "_fields") else value
    if isinstance(value, Tensor) and type(value) is Tensor:
        return value.tolist() if value.ndim == 1 and value.device.type != "meta" else None
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else None
    if isinstance(value, dict) and value and value.keys() == set(range(len(value))):
        return [value[place] for place in range(len(value))]
    return None


def _is_nested(value: Any, tensors: list[list[Tensor]]) -> bool:
    if not isinstance(value, list | tuple) or len(value) != len(tensors):
        return False
    inner = [items_in_order(item) for item in value]
    return all(items is not None and len(items) == len(params) for items, params in zip(inner, tensors, strict=True))


def _attributes(value: Any) -> Mapping[str, Any] | None:
    """Those of an object that is little more than them."""
    if isinstance(value, (*_CLOSED, Tensor, types.FunctionType, types.MethodType, torch.optim.Optimizer)):
        return None
    return getattr(value, "__dict__", None)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What hangs on a value, each with its key."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, Set):
        yield from ((item, True) if isinstance(item, int | str | Tensor) else ("", item) for item in value)
    elif isinstance(value, list | tuple | deque):
        yield from (("item", item) for item in value)
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from closed_over(value)
    else:
        yield from getattr(value, "__dict__", {}).items()


def closed_over(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The names and values that a function carries with itself."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is not set yet
            continue
    yield from (("a default", value) for value in function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()
