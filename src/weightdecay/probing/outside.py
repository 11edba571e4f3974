"""What code of an optimizer reaches beside the optimizer itself, and which is not copied with it.

Functions and classes are shared with a copy, and with them class attributes, what closures hold, and the variables of
their modules that they name. A step of a copy may move those, as a counter, a log or a generator: they are put back.
"""

from __future__ import annotations

import dis
import functools
import io
import logging
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError

_MANY = 5_000  # things; what hangs together with a whole framework is not an optimizer's

# Their own is kept elsewhere (generators), or is none that a step changes.
_TORCHS = {"torch", "numpy", "weightdecay"}
_NOT_THEIRS = {*_TORCHS, *sys.stdlib_module_names}

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, logging.Logger)
_DESCRIPTORS = (types.FunctionType, staticmethod, classmethod, property, types.GetSetDescriptorType)


class Outside:
    """What an optimizer's classes, functions and hooks reach by name and share with a copy.

    Attributes:
        telling: the name of a container outside that holds single tensors of the optimizer, or their ids.
        lasting: the name of what cannot be put back once it has moved: an iterator, a file.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, hooks: bool = False) -> None:
        self.telling = self.lasting = ""
        self._ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._things: dict[int, Any] = {}
        self._seen: dict[int, Any] = {}  # alive, or another object might get the id of one
        self._named: set[str] = set()  # in code: attributes and variables
        self._packages = {_root(base.__module__) for base in type(optimizer).__mro__}
        self._of_classes = True
        self._share(type(optimizer), type(optimizer).__name__)
        # The functions that hang on the optimizer itself get the copy's tensors in their closures.
        self._of_classes = False
        # What others put around its step, and its hooks where copies have none, no copy runs.
        self._own(
            {
                key: value
                for key, value in vars(optimizer).items()
                if (hooks or not (key.startswith("_optimizer_") and key.endswith("_hooks")))
                and not (key == "step" and isinstance(value, types.FunctionType))
            }
        )
        for kind in [thing for thing in self._things.values() if isinstance(thing, type)]:
            for name in self._named & vars(kind).keys():
                if isinstance(vars(kind)[name], Iterator):
                    self._share_value(vars(kind)[name], f"{kind.__name__}.{name}")

    # --- finding

    def _is_new(self, value: Any) -> bool:
        if isinstance(value, _IMMUTABLE) or id(value) in self._seen or len(self._seen) > _MANY:
            return False
        self._seen[id(value)] = value
        return True

    def _is_theirs(self, made: Any) -> bool:
        """Whether a function or class is of the optimizer's package, or of the user's own code."""
        return self._is_of_theirs(_root(made.__module__))

    def _is_of_theirs(self, package: str) -> bool:
        return package not in _NOT_THEIRS and (package in self._packages or not _is_installed(package))

    def _own(self, value: Any) -> None:
        """What hangs on the optimizer: it is copied, and only its functions and classes are shared."""
        if isinstance(value, type | types.FunctionType):
            self._packages.add(_root(value.__module__))
            self._share(value, value.__name__)
        elif isinstance(value, Tensor | nn.Module | torch.optim.Optimizer | torch.Generator) or not self._is_new(value):
            return
        elif isinstance(value, functools.partial | types.MethodType):
            for part in _bound(value):
                self._own(part)
        elif (items := _items(value)) is not None:
            for item in items:
                self._own(item)
        elif not _is_of(type(value), _TORCHS):  # a control, say, on which all its twins hang
            self._share(type(value), type(value).__name__)
            for item in list(getattr(value, "__dict__", {}).values()):
                self._own(item)

    def _share(self, value: Any, name: str) -> None:
        """What is one for the optimizer and its copies, with all that it reaches."""
        if self._of_classes and not self.telling and self._tells(value):
            self.telling = name
        if isinstance(value, Tensor | torch.optim.Optimizer | types.ModuleType) or not self._is_new(value):
            return
        if isinstance(value, types.FunctionType):
            self._share_function(value)
        elif isinstance(value, type):
            self._share_class(value)
        elif isinstance(value, staticmethod | classmethod | types.MethodType):
            self._share(value.__func__, name)
        elif isinstance(value, property):
            for function in (value.fget, value.fset):
                self._share(function, name)
        elif isinstance(value, functools.partial):
            self._share(_bound(value), name)
        else:
            self._share_value(value, name)

    def _share_value(self, value: Any, name: str) -> None:
        if isinstance(value, Iterator | io.IOBase):
            is_shown = any(value is stream for stream in (sys.stdout, sys.stderr))
            self.lasting = self.lasting or ("" if is_shown else name)
            return
        if _keeper(value) is not None:
            self._things[id(value)] = value
        package = _root(type(value).__module__)
        is_anothers = package not in self._packages and _is_installed(package)
        if isinstance(value, nn.Module) or package in _TORCHS or is_anothers:
            return
        items = _items(value)
        for item in list(getattr(value, "__dict__", {}).values()) if items is None else items:
            self._share(item, name)

    def _share_function(self, function: types.FunctionType) -> None:
        if not self._is_theirs(function):
            return
        variables, code = function.__globals__, function.__code__
        self._named.update(code.co_names)
        named = _globals(code) & variables.keys()
        self._share_variables(variables, named, "")
        for name in named:
            module = variables[name]
            if isinstance(module, types.ModuleType) and self._is_of_theirs(_root(module.__name__)):
                self._share_variables(vars(module), vars(module).keys() & code.co_names, f"{name}.")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if _contents(cell):
                self._things[id(cell)] = cell
                self._share(cell.cell_contents, name)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._share(value, f"a default of {function.__name__}")

    def _share_variables(self, variables: dict[str, Any], names: Collection[str], prefix: str) -> None:
        held = _Names(variables, names)
        self._things[id(held)] = held
        for name in names:
            self._share(variables[name], prefix + name)

    def _share_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if self._is_theirs(base):
                self._seen[id(base)] = self._things[id(base)] = base
                # A copy is made past its constructor, and what steps do not name they do not move.
                skipped = {"__init__", "__new__"} if issubclass(base, torch.optim.Optimizer) else set()
                for name, value in list(vars(base).items()):
                    is_own = not name.startswith("__") or isinstance(value, types.FunctionType)
                    if is_own and name not in skipped and not isinstance(value, Iterator):
                        self._share(value, f"{base.__name__}.{name}")

    def _tells(self, value: Any) -> bool:
        items: Collection[Any] = [value] if isinstance(value, Tensor) else _items(value) or ()
        keys = value if isinstance(value, dict) else ()
        return any(id(item) in self._ids or (type(item) is int and item in self._ids) for item in (*items, *keys))

    # --- keeping

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All of it is afterwards what it was before."""
        kept = [(thing, keeper, keeper[1](thing)) for thing in self._things.values() if (keeper := _keeper(thing))]
        try:
            yield
        finally:
            for thing, keeper, was in kept:
                keeper[2](thing, was)

    def raise_if_lasting(self) -> None:
        if self.lasting:
            raise OptimizerError(f"its code reaches `{self.lasting}`, which nobody can put back after a trial")

    def raise_if_telling(self) -> None:
        if self.telling:
            raise OptimizerError(
                f"its code may tell its tensors apart by `{self.telling}`, which is outside of it and knows no copies"
            )


class _Names:
    """Variables of a module."""

    def __init__(self, variables: dict[str, Any], names: Collection[str]) -> None:
        self.variables, self.names = variables, names


@functools.lru_cache(4096)
def _is_installed(package: str) -> bool:
    """Whether it is a package that somebody installed; what is none of these may be the user's own code."""
    file = str(getattr(sys.modules.get(package), "__file__", None))
    return "site-packages" in file or "dist-packages" in file


@functools.lru_cache(4096)
def _globals(code: types.CodeType) -> frozenset[str]:
    """The names of a module's variables that code reads or sets, with the functions within it."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "STORE_GLOBAL")}
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return frozenset(own).union(*map(_globals, inner))


def _items(value: Any) -> Collection[Any] | None:
    """What a plain container holds; None of anything else."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set | frozenset | deque) else None


def _bound(value: functools.partial[Any] | types.MethodType) -> tuple[Any, ...]:
    """A function and what it is given beforehand."""
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    return value.func, value.args, value.keywords


def _contents(cell: types.CellType) -> list[Any]:
    """What a closure's cell holds, if it is set yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


# --- how each kind of thing is read and put back


def _refill(thing: Any, was: list[Any]) -> None:
    if len(thing) != len(was) or any(now is not item for now, item in zip(thing, was, strict=True)):
        thing.clear()
        thing.extend(was)


def _refill_set(thing: Any, was: set[Any]) -> None:
    if thing != was:
        thing.clear()
        thing.update(was)


def _refill_dict(thing: Any, was: dict[Any, Any]) -> None:
    if list(thing) != list(was) or any(thing[key] is not value for key, value in was.items()):
        thing.clear()
        thing.update(was)


def _names(thing: _Names) -> dict[str, Any]:
    return {name: thing.variables[name] for name in thing.names if name in thing.variables}


def _rename(thing: _Names, was: dict[str, Any]) -> None:
    for name, value in was.items():
        if thing.variables.get(name) is not value:
            thing.variables[name] = value


def _attributes(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("__") and not isinstance(value, _DESCRIPTORS)
    }


def _reset_class(kind: type, was: dict[str, Any]) -> None:
    now = _attributes(kind)
    for name in now.keys() - was.keys():
        delattr(kind, name)
    for name, value in was.items():
        if now.get(name, now) is not value:
            setattr(kind, name, value)


def _reset_cell(cell: types.CellType, was: list[Any]) -> None:
    for value in was:
        if not any(now is value for now in _contents(cell)):
            cell.cell_contents = value


def _reset_torchs(generator: torch.Generator, was: Tensor) -> None:
    generator.set_state(was)


def _reset_numpys(generator: np.random.Generator, was: Any) -> None:
    generator.bit_generator.state = was


_KEEPERS: tuple[tuple[Any, Callable[[Any], Any], Callable[[Any, Any], None]], ...] = (
    (_Names, _names, _rename),
    (torch.Generator, torch.Generator.get_state, _reset_torchs),
    (np.random.Generator, lambda generator: generator.bit_generator.state, _reset_numpys),
    (np.random.RandomState, np.random.RandomState.get_state, np.random.RandomState.set_state),
    (random.Random, random.Random.getstate, random.Random.setstate),
    ((list, deque, bytearray), list, _refill),
    (set, set, _refill_set),
    (dict, dict, _refill_dict),
    (types.CellType, _contents, _reset_cell),
    (type, _attributes, _reset_class),
    (object, lambda thing: dict(vars(thing)), lambda thing, was: _refill_dict(vars(thing), was)),
)


def _keeper(thing: Any) -> tuple[Any, Callable[[Any], Any], Callable[[Any, Any], None]] | None:
    found = next(keeper for keeper in _KEEPERS if isinstance(thing, keeper[0]))
    is_object = found[0] is object
    return None if is_object and (_is_of(type(thing), _TORCHS) or not hasattr(thing, "__dict__")) else found


def _is_of(made: Any, packages: Collection[str]) -> bool:
    return _root(made.__module__) in packages


def _root(module: Any) -> str:
    return str(module).partition(".")[0]
