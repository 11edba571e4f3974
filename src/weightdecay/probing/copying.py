"""Copies of an optimizer in which each parameter is a few numbers.

What hangs on an optimizer is copied by what it is: parameters become small tensors, state of a parameter's shape is cut
down with it, other optimizers inside become copies too, bound methods and partial functions are bound to the copies.
Functions, classes and modules of code are shared. What cannot be copied, and a model, which is not to be, becomes
`Absent`: the copy works as long as it does without.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import logging
import random
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightdecay.probing.absent import Absent
from weightdecay.probing.isolation import tolerant
from weightdecay.probing.kinds import Sample
from weightdecay.probing.small import small_shape, small_tensor

_LARGEST = 1 << 20  # elements of a tensor that belongs to no parameter; more than that nobody needs for a step
_MANY = 50_000  # objects; a data set or a trainer hangs on the optimizer

_SHARED = (
    type(None), bool, int, float, complex, str, bytes, type, enum.Enum, logging.Logger, types.ModuleType,
    types.FunctionType, types.CodeType, torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout,
    torch._ops.OpOverload, torch._ops.OpOverloadPacket,
)  # fmt: skip
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
# They belong to a GradScaler's step that is in progress.
_OF_ONE_STEP = ("grad_scale", "found_inf")


class Copier:
    """Copies what hangs on one optimizer; what is the same object in it is the same object in the copy.

    Args:
        of: which of its parameters and groups stand for all.
        dtype: of the small tensors in place of floating ones'; None leaves each its own.
        fresh: whether parameters have no state in the copy, rather than what is cut from their own.
        hooks: whether the step hooks come along.
        whole: whether parameters keep their shape, because they are small already.
        generator: of the small tensors' numbers.
    """

    def __init__(
        self, of: Sample, *, dtype: torch.dtype | None, fresh: bool, hooks: bool, whole: bool,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self._of = of
        self.dtype, self.fresh, self.hooks, self.generator = dtype, fresh, hooks, generator
        self._small_shape = tuple if whole else small_shape
        self.memo: dict[int, Any] = {}
        self.small: dict[int, Tensor] = {}
        self._alive: list[Any] = []  # or another object might get the id of one that is in the memo

    # --- parameters

    def of_param(self, param: Tensor) -> Tensor:
        """The small tensor that stands for a parameter, with what hangs on it."""
        if id(param) not in self.small:
            small = small_tensor(param, self._small_shape(param.shape), self.dtype, self.generator)
            self.small[id(param)] = self.memo[id(param)] = small
            self._alive.append(param)
            self._keep_attributes(param, small)
        return self.small[id(param)]

    def _keep_attributes(self, param: Tensor, small: Tensor) -> None:
        """What people hang on parameters for their optimizer: `p.no_decay = True`, `p.label = "muon"`.

        A tensor there, such as a mask, would be cut, and what its first numbers say need not hold of the others.
        """
        for key, value in vars(param).items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                small.__dict__[key] = self.copy(value)

    # --- anything

    def copy(self, value: Any) -> Any:
        """The copy of a value; an id of a parameter becomes that of its small tensor."""
        if isinstance(value, types.FunctionType) and id(value) in self._of.functions:
            return self._function(value)
        if isinstance(value, _SHARED):
            return id(self.small[value]) if type(value) is int and value in self.small else value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if id(value) in self._of.params:
            return self.of_param(value)
        if len(self.memo) > _MANY:
            return Absent(f"a {type(value).__name__} beyond {_MANY} others")
        self._alive.append(value)
        for kinds, how in _WAYS:
            if isinstance(value, kinds):
                return how(self, value)
        return self._object(value)

    def remember(self, value: Any, made: Any) -> Any:
        self.memo[id(value)] = made
        self._alive.append(value)
        return made

    def _of_no_copy(self, key: Any) -> bool:
        """Whether what is kept under a key is kept for a parameter, or its id, that is not among the small ones."""
        own = key if type(key) is int else id(key)
        return own in self._of.params and own not in self.small

    def _tensor(self, value: Tensor) -> Any:
        if id(value) in self._of.kept:
            return self.remember(value, value.detach()[self._of.kept[id(value)]].clone())
        of_parameters = value.shape in self._of.shapes or value.numel() > _LARGEST
        shape = small_shape(value.shape) if of_parameters else tuple(value.shape)
        return self.remember(value, self.cut(value, shape).requires_grad_(value.requires_grad))

    def cut(self, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The first numbers of each axis, `shape` of them, where and as the parameters' small tensors are."""
        whole = value.detach()
        whole = whole.to_local() if hasattr(whole, "to_local") else whole
        part = whole[tuple(slice(0, n) for n in shape)].clone(memory_format=torch.contiguous_format)
        # A scalar, such as lr or a step's number, keeps its dtype; a tensor of the parameters' dtype follows them.
        if self.dtype is not None and value.ndim and value.dtype in self._of.dtypes and value.is_floating_point():
            part = part.to(self.dtype)
        return torch.zeros_like(part, device="cpu") if part.device.type == "meta" else part

    def _dict(self, value: Mapping[Any, Any]) -> Any:
        made: Any
        if isinstance(value, defaultdict):
            made = self.remember(value, defaultdict(self.copy(value.default_factory)))
        else:
            made = self.remember(value, _empty(value))
        if id(value) in self._of.kept:
            made.update((at, self.copy(value[place])) for at, place in enumerate(self._of.kept[id(value)]))
        else:
            self._fill_dict(value, made)
        self._fill(value, made)
        return made

    def _fill_dict(self, value: Mapping[Any, Any], made: Any) -> None:
        for key, item in value.items():
            if not self._of_no_copy(key):
                param = self._of.params.get(key if type(key) is int else id(key))
                made[self.copy(key)] = self.copy(item) if param is None else self._state_of(param, item)

    def _items(self, value: Sequence[Any]) -> list[Any]:
        """Of a list with an item for each parameter those of the small ones."""
        kept = self._of.kept.get(id(value))
        return [self.copy(item) for item in (value if kept is None else [value[place] for place in kept])]

    def _list(self, value: Any) -> Any:
        made = self.remember(value, _empty(value))
        made.extend(self._items(value))
        self._fill(value, made)
        return made

    def _deque(self, value: deque[Any]) -> Any:
        made = self.remember(value, deque(maxlen=value.maxlen))
        made.extend(self._items(value))
        return made

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = self._items(value)
        if type(value) is tuple:
            return self.remember(value, tuple(items))
        make: Any = type(value)
        return self.remember(value, make._make(items) if hasattr(make, "_make") else make(items))

    def _set(self, value: Any) -> Any:
        return self.remember(value, type(value)(self.copy(item) for item in value if not self._of_no_copy(item)))

    def _function(self, value: types.FunctionType) -> Any:
        """A function that knows single parameters by its closure, with the small ones in their place."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        defaults = self.copy(value.__defaults__)
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
        self.remember(value, made)
        made.__dict__.update(vars(value))
        made.__kwdefaults__ = self.copy(value.__kwdefaults__)
        for cell, own in zip(cells, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # it is not set yet
                cell.cell_contents = self.copy(own.cell_contents)
        return made

    def _method(self, value: types.MethodType) -> Any:
        owner = self.copy(value.__self__)
        made = Absent(_title(value.__self__)) if isinstance(owner, Absent) else types.MethodType(value.__func__, owner)
        return self.remember(value, made)

    def _partial(self, value: functools.partial[Any]) -> Any:
        arguments = [self.copy(item) for item in value.args]
        named = {key: self.copy(item) for key, item in value.keywords.items()}
        return self.remember(value, functools.partial(self.copy(value.func), *arguments, **named))

    def _builtin(self, value: types.BuiltinMethodType) -> Any:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType | type):
            return value
        return self.remember(value, getattr(self.copy(owner), value.__name__))

    def _reference(self, value: weakref.ref[Any]) -> Any:
        target = value()
        return self.remember(value, weakref.ref(self.copy(target)) if target is not None else value)

    def _generator(self, value: torch.Generator) -> torch.Generator:
        made = torch.Generator(device=value.device)
        made.set_state(value.get_state())
        return self.remember(value, made)  # type: ignore[no-any-return]

    def _deeply(self, value: Any) -> Any:
        if id(value) in self._of.kept:
            return self.remember(value, value[self._of.kept[id(value)]])
        return self.remember(value, copy.deepcopy(value))

    def _absent(self, value: Any) -> Any:
        return self.remember(value, Absent(_title(value)))

    def _optimizer(self, value: torch.optim.Optimizer) -> Any:
        # Not by its constructor, which would patch its class's `step` and run whatever else.
        made = self.remember(value, object.__new__(type(value)))
        if "state" in vars(value):
            self._state(value.state)
        for key, item in vars(value).items():
            # A function in the place of `step` is what others put around it, as torch's schedulers and accelerate do.
            # It steps the original, whoever calls it.
            if key in _OF_ONE_STEP or (key == "step" and isinstance(item, types.FunctionType)):
                continue
            if key.startswith("_optimizer_") and key.endswith("_hooks"):
                kept = self.hooks and key in _HOOKS
                made.__dict__[key] = self._hooks(item) if kept else OrderedDict()
            elif key == "param_groups" and id(item) not in self.memo:
                made.__dict__[key] = self.remember(item, [self._inner_group(group) for group in item])
            else:
                made.__dict__[key] = self.copy(item)
        return made

    def _inner_group(self, group: Any) -> Any:
        """A group of an optimizer within, with the parameters that have a small tensor already."""
        if id(group) in self.memo:
            return self.memo[id(group)]
        chosen = [index for index, param in enumerate(group["params"]) if id(param) in self.small]
        made = self.remember(group, {})
        for key, value in group.items():
            per_param = key in ("params", "param_names") and len(value) == len(group["params"])
            made[key] = self.copy([value[index] for index in chosen] if per_param else value)
        return made

    def _hooks(self, hooks: Mapping[Any, Any]) -> Any:
        return OrderedDict((key, tolerant(self.copy(hook))) for key, hook in hooks.items())

    def _state(self, state: Any) -> None:
        """An optimizer's state: none, or what is cut from the real one for the parameters that have a small tensor."""
        if id(state) in self.memo:
            return
        made = self.remember(state, defaultdict(dict) if isinstance(state, defaultdict) else type(state)())
        if self.fresh:
            return
        self._fill_dict(state, made)

    def _state_of(self, param: Tensor, held: Any) -> Any:
        """What is kept for one parameter: each axis of the parameter's length cut as its own is."""
        small = small_shape(param.shape)
        lengths = dict(zip(param.shape, small, strict=True))

        def walk(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) not in self.memo and id(value) not in self._of.params:
                return self.remember(value, self.cut(value, tuple(lengths.get(n, n) for n in value.shape)))
            if isinstance(value, dict):
                made = self.remember(value, _empty(value))
                made.update((self.copy(key), walk(item)) for key, item in value.items())
                return made
            if type(value) in (list, tuple):
                return self.remember(value, type(value)(walk(item) for item in value))
            return self.copy(value)

        return walk(held)

    def _object(self, value: Any) -> Any:
        """An object by its attributes; by how it says that it is to be pickled, where it does."""
        kind = type(value)
        left_out = getattr(kind, "left_out_of_twins", ())
        if "__deepcopy__" not in dir(kind) and _reduces_itself(kind):
            return self._reduced(value)
        try:
            made = object.__new__(kind)
        except TypeError:  # its memory is not Python's to make
            return self._plain_copy(value)
        if not hasattr(value, "__dict__") and not _slots(kind):
            return self._plain_copy(value)
        self.remember(value, made)
        self._fill(value, made, left_out)
        return made

    def _reduced(self, value: Any) -> Any:
        try:
            how = value.__reduce_ex__(4)
        except Exception:
            return self._absent(value)
        if not isinstance(how, tuple) or len(how) not in (2, 3) or not all(h is None for h in how[3:]):
            return self._absent(value)
        made = self.remember(value, how[0](*(self.copy(item) for item in how[1])))
        if len(how) == 3 and how[2] is not None:
            if not isinstance(how[2], dict):
                return self._absent(value)
            for key, item in how[2].items():
                object.__setattr__(made, key, self.copy(item))
        return made

    def _plain_copy(self, value: Any) -> Any:
        try:
            return self.remember(value, copy.copy(value))
        except Exception:  # a process group, a lock, a file
            return self._absent(value)

    def _fill(self, value: Any, made: Any, left_out: tuple[str, ...] = ()) -> None:
        """The attributes of an object, past its own `__setattr__`, which may forbid it or do more than set."""
        own = getattr(value, "__dict__", {})
        found = {**{key: getattr(value, key) for key in _slots(type(value)) if hasattr(value, key)}, **own}
        for key, item in found.items():
            object.__setattr__(made, key, None if key in left_out else self.copy(item))


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        names = [slots] if isinstance(slots, str) else list(slots)
        found += [
            f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            for name in names
            if name not in ("__dict__", "__weakref__")
        ]
    return found


def _empty(value: Any) -> Any:
    """A container of the kind, past its constructor."""
    kind: Any = type(value)
    return kind.__new__(kind)


def _reduces_itself(kind: Any) -> bool:
    plain: Any = object
    return kind.__reduce__ is not plain.__reduce__ or kind.__reduce_ex__ is not plain.__reduce_ex__


def _title(value: Any) -> str:
    if isinstance(value, nn.Module):
        return f"a model ({type(value).__name__})"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


# How each kind of value is copied; the first that fits holds.
_WAYS: tuple[tuple[Any, Callable[[Copier, Any], Any]], ...] = (
    (nn.Module, Copier._absent),
    (torch.optim.Optimizer, Copier._optimizer),
    (Tensor, Copier._tensor),
    (torch.Generator, Copier._generator),
    ((np.ndarray, np.generic, np.random.Generator, np.random.RandomState, random.Random), Copier._deeply),
    (dict, Copier._dict),
    (list, Copier._list),
    (deque, Copier._deque),
    (tuple, Copier._tuple),
    ((set, frozenset), Copier._set),
    (functools.partial, Copier._partial),
    (types.MethodType, Copier._method),
    ((types.BuiltinFunctionType, types.MethodWrapperType), Copier._builtin),
    (weakref.ref, Copier._reference),
)
