"""What Python objects hold, remembered and put back: attributes, containers, closures, generators.

Of each object that can be reached it is remembered which objects it holds, in which order; the objects stay the same.
The contents of tensors are remembered elsewhere, when they are written to.
"""

from __future__ import annotations

import functools
import random
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Objects of these live on in other threads and processes, and what they do meanwhile is not to be undone.
_ALIVE = (
    "threading", "_thread", "queue", "_queue", "multiprocessing", "logging", "asyncio", "concurrent", "io", "_io",
    "socket", "subprocess", "importlib", "tqdm", "torch.utils.data", "torch.distributed.distributed_c10d",
    "torch.distributed.device_mesh", "torch.distributed.rpc", "torch.distributed.elastic", "torch._C", "torch._dynamo",
    "torch._inductor", "torch.fx", "torch.multiprocessing",
)  # fmt: skip
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, bytearray, types.ModuleType, types.CodeType, torch.dtype,
    torch.device, torch.Size, torch.memory_format, torch.layout, np.ndarray, np.generic,
)  # fmt: skip
_MISSING = object()


class PythonState:
    """What is held by everything that can be reached from some objects.

    Args:
        roots: where to begin.
        leave: ids of objects that are not entered.

    Attributes:
        tensors: those that were found.
        objects: how many objects were found.
    """

    limit = 200_000

    def __init__(self, roots: Iterable[Any], *, leave: Collection[int] = ()) -> None:
        self._seen = set(leave)
        self._undo: list[Callable[[], None]] = []
        self._alive: list[Any] = []
        self.tensors: list[Tensor] = []
        self.objects = 0

        waiting = deque(roots)
        while waiting and self.objects < self.limit:
            value = waiting.popleft()
            if isinstance(value, _PLAIN) or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            self._alive.append(value)
            self.objects += 1
            waiting.extend(self._remember(value))

    def put_back(self) -> None:
        for undo in self._undo:
            undo()

    def _remember(self, value: Any) -> Iterable[Any]:
        """Keep what a value holds; what is to be entered next."""
        for kinds, how in _WAYS:
            if isinstance(value, kinds):
                return how(self, value)
        return self._object(value)

    # --- containers

    def _dict(self, value: Any) -> Iterable[Any]:
        items = list(value.items())
        self._undo.append(functools.partial(_refill_dict, value, items))
        yield from (item for pair in items for item in pair)
        if type(value) not in (dict, OrderedDict):
            yield from self._object(value)

    def _list(self, value: Any) -> Iterable[Any]:
        items = list(value)
        self._undo.append(functools.partial(_refill_list, value, items))
        yield from items

    def _set(self, value: Any) -> Iterable[Any]:
        items = set(value)
        self._undo.append(functools.partial(_refill_set, value, items))
        yield from items

    def _tuple(self, value: Any) -> Iterable[Any]:
        yield from value

    # --- code

    def _function(self, value: types.FunctionType) -> Iterable[Any]:
        for cell in value.__closure__ or ():
            content = _content(cell)
            self._undo.append(functools.partial(_refill_cell, cell, content))
            if content is not _MISSING:
                yield content
        yield value.__dict__
        yield from value.__defaults__ or ()
        if not _is_of(value.__module__ or "", ("torch",)):
            yield from self._globals(value)

    def _globals(self, value: types.FunctionType) -> Iterable[Any]:
        """A hook may count in a global variable, by itself or through a function that it calls."""
        for name in value.__code__.co_names:
            held = value.__globals__.get(name, _MISSING)
            if held is not _MISSING and not isinstance(held, type | types.ModuleType):
                self._undo.append(functools.partial(_reset_key, value.__globals__, name, held))
                yield held

    def _method(self, value: types.MethodType) -> Iterable[Any]:
        yield value.__self__
        yield value.__func__

    def _partial(self, value: functools.partial[Any]) -> Iterable[Any]:
        yield value.func
        yield value.args
        yield value.keywords

    def _reference(self, value: weakref.ref[Any]) -> Iterable[Any]:
        yield value()

    # --- generators

    def _torch_generator(self, value: torch.Generator) -> Iterable[Any]:
        state = value.get_state()
        self._undo.append(lambda: (value.set_state(state), None)[1])
        return ()

    def _numpy_generator(self, value: np.random.Generator) -> Iterable[Any]:
        self._undo.append(functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        return ()

    def _numpy_state(self, value: np.random.RandomState) -> Iterable[Any]:
        self._undo.append(functools.partial(value.set_state, value.get_state()))
        return ()

    def _python_generator(self, value: random.Random) -> Iterable[Any]:
        self._undo.append(functools.partial(value.setstate, value.getstate()))
        return ()

    # --- objects

    def _tensor(self, value: Tensor) -> Iterable[Any]:
        self.tensors.append(value)
        if value.is_leaf:
            gradient = value.grad
            self._undo.append(functools.partial(_reset_gradient, value, gradient, value.requires_grad))
            if gradient is not None:
                yield gradient
        if value.layout == torch.strided and not hasattr(value, "__tensor_flatten__"):
            self._undo.append(functools.partial(_reset_memory, value, value.detach()))
        if own := getattr(value, "__dict__", None):
            self._undo.append(functools.partial(_refill_dict, own, list(own.items())))

    def _object(self, value: Any) -> Iterable[Any]:
        kind = type(value)
        if _is_of(kind.__module__, _ALIVE):
            return
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            yield own
        for name in _slots(kind):
            held = getattr(value, name, _MISSING)
            self._undo.append(functools.partial(_reset_slot, value, name, held))
            if held is not _MISSING:
                yield held
        for base in kind.__mro__:
            if id(base) not in self._seen and not _is_of(base.__module__, ("builtins", "torch", "numpy", "abc")):
                self._seen.add(id(base))
                self._undo.append(functools.partial(_reset_class, base, dict(vars(base))))

    def _nothing(self, value: Any) -> Iterable[Any]:  # noqa: ARG002
        return ()


_WAYS: tuple[tuple[Any, Callable[[PythonState, Any], Iterable[Any]]], ...] = (
    (Tensor, PythonState._tensor),
    (dict, PythonState._dict),
    ((list, deque), PythonState._list),
    (set, PythonState._set),
    ((tuple, frozenset), PythonState._tuple),
    (types.FunctionType, PythonState._function),
    (types.MethodType, PythonState._method),
    (functools.partial, PythonState._partial),
    (weakref.ref, PythonState._reference),
    (torch.Generator, PythonState._torch_generator),
    (np.random.Generator, PythonState._numpy_generator),
    (np.random.RandomState, PythonState._numpy_state),
    (random.Random, PythonState._python_generator),
    (type, PythonState._nothing),
)


def _is_of(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def _slots(kind: type) -> list[str]:
    slots = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    names = [name for given in slots for name in ([given] if isinstance(given, str) else given)]
    return [name for name in names if not name.startswith("__")]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _MISSING


# --- putting back, only where something is another


def _refill_dict(value: Any, items: list[tuple[Any, Any]]) -> None:
    now = value.items()
    if len(now) == len(items) and all(key is k and held is h for (key, held), (k, h) in zip(now, items, strict=True)):
        return
    value.clear()
    for key, held in items:
        value[key] = held


def _refill_list(value: Any, items: list[Any]) -> None:
    if len(value) == len(items) and all(one is other for one, other in zip(value, items, strict=True)):
        return
    value.clear()
    value.extend(items)


def _refill_set(value: set[Any], items: set[Any]) -> None:
    if value != items:
        value.clear()
        value.update(items)


def _refill_cell(cell: types.CellType, content: Any) -> None:
    if _content(cell) is content:
        return
    if content is _MISSING:
        del cell.cell_contents
    else:
        cell.cell_contents = content


def _reset_key(held_in: dict[str, Any], key: str, value: Any) -> None:
    if held_in.get(key, _MISSING) is not value:
        held_in[key] = value


def _reset_slot(owner: Any, name: str, value: Any) -> None:
    if getattr(owner, name, _MISSING) is value:
        return
    if value is _MISSING:
        object.__delattr__(owner, name)
    else:
        object.__setattr__(owner, name, value)


def _reset_class(kind: type, held: dict[str, Any]) -> None:
    now = vars(kind)
    for key in [key for key in now if key not in held]:
        delattr(kind, key)
    for key, value in held.items():
        if now.get(key, _MISSING) is not value:
            setattr(kind, key, value)


def _reset_gradient(tensor: Tensor, gradient: Tensor | None, requires_grad: bool) -> None:
    if not tensor.is_leaf:  # a step with gradients on has made it a result
        tensor.detach_()
    if tensor.grad is not gradient:
        tensor.grad = gradient
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)


def _reset_memory(tensor: Tensor, was: Tensor) -> None:
    """Undo an assignment to `tensor.data`."""
    if tensor.data_ptr() != was.data_ptr() or tensor.shape != was.shape or tensor.dtype != was.dtype:
        tensor.data = was
