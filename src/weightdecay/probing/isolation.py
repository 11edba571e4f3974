"""A place to step in that leaves no trace outside.

Hooks for all optimizers do not see the step, generators of all devices are afterwards what they were, and a write to
a tensor that was there before is refused before it happens.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import optimizer as torchs
from torch.utils._python_dispatch import TorchDispatchMode

from weightdecay.errors import OptimizerError
from weightdecay.probing.outside import Outside

_kept: ContextVar[bool] = ContextVar("generators are kept", default=False)

_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


class WritesOutsideError(OptimizerError):
    """A step or a hook writes to a tensor that is not its own."""


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Step here: with numbers drawn from `seed`, without global hooks, and uncompiled."""
    hooks = {name: getattr(torchs, name) for name in _GLOBAL_HOOKS}
    with generators_kept():
        try:
            for name in hooks:
                setattr(torchs, name, OrderedDict())
            # Not torch.manual_seed, which seeds the devices as well, and even those that nobody has used yet.
            for generator in _generators():
                generator.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            with _uncompiled():
                yield
        finally:
            for name, value in hooks.items():
                setattr(torchs, name, value)


@contextmanager
def generators_kept() -> Iterator[None]:
    """All generators are afterwards what they were before.

    What is entered within another keeps nothing: reading and writing numpy's state takes as long as a small step does.
    """
    if _kept.get():
        yield
        return

    inside = _kept.set(True)
    states = [(generator, generator.get_state()) for generator in _generators()]
    numpys, pythons = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        np.random.set_state(numpys)
        random.setstate(pythons)
        _kept.reset(inside)


def _generators() -> list[torch.Generator]:
    """torch's generator of each device that has been used."""
    found = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found += list(torch.cuda.default_generators)
    return found


def _uncompiled() -> Any:
    """Small shapes are not to be compiled for: it takes seconds, and counts against the limit of the user's own."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def with_storage() -> Any:
    """Where tensors without storage are the default, as for building a large model, a step makes its own on the cpu."""
    return torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext()


class OnlyOwnTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses each in-place operation on a tensor that neither is among `own` nor was made in here.

    Args:
        known: the memory of what was made in steps before; what is made in this one joins it.
    """

    def __init__(self, own: Iterable[Tensor], known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = known
        self._own.update(storage for tensor in own for storage in storages(tensor))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's compiler is not there while this is active; to tell it so would import it, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        written, makes = writes(func)
        for position, name in written:
            value = args[position] if position < len(args) else given.get(name)
            for tensor in tensors_in(value):
                # A storage is copied as bytes, which no weights are.
                if tensor.dtype == torch.uint8 and func is torch.ops.aten.copy_.default and tensor.ndim == 1:
                    continue
                if any(storage not in self._own for storage in storages(tensor)):
                    raise WritesOutsideError(
                        f"it writes to a tensor of shape {tuple(tensor.shape)} that is not the copy's own ({func})"
                    )

        made = func(*args, **given)
        if makes:
            for tensor in tensors_in(made):
                self._own.update(storages(tensor))
        return made


@functools.cache
def writes(func: Any) -> tuple[list[tuple[int, str]], bool]:
    """The arguments that an operation writes to, by position and name, and whether what it returns is new memory."""
    arguments, returns = func._schema.arguments, func._schema.returns
    written = [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    # `torch.tensor(…)` makes its tensor unseen, and shows it first as what is lifted.
    # So does a copied storage, which is then set into a tensor.
    shown = func._schema.name.startswith(("aten::lift", "aten::set_"))
    return written, shown or not any(result.alias_info for result in returns)


@contextmanager
def untouched(optimizer: torch.optim.Optimizer, *, hooks: bool = False) -> Iterator[Outside]:
    """Put back what a step of a copy has set in the real optimizer by names that it kept of it, and all outside.

    Args:
        hooks: the copies step with its hooks.

    Raises:
        WritesOutsideError: there was such a thing.
        OptimizerError: what is outside can move and not be put back; nothing has been tried yet.
    """
    outside = Outside(optimizer, hooks=hooks)
    outside.raise_if_lasting()
    groups = optimizer.param_groups
    held = [(group, dict(group), list(group["params"])) for group in groups]
    tensors = [
        (p, p.grad, p.data_ptr() if p.layout == torch.strided and not hasattr(p, "to_local") else 0, p.data)
        for _, _, params in held
        for p in params
    ]
    state = {key: dict(value) if isinstance(value, dict) else value for key, value in optimizer.state.items()}

    with generators_kept(), outside.kept():
        yield outside

    touched = []
    for index, (group, as_was, params) in enumerate(held):
        if group.keys() != as_was.keys() or any(group[key] is not value for key, value in as_was.items()):
            group.clear()
            group.update(as_was)
            touched.append(f"the settings of group {index}")
        if len(group["params"]) != len(params):
            group["params"][:] = params
    for p, gradient, pointer, data in tensors:
        if p.grad is not gradient:
            p.grad = gradient
            touched.append("gradients")
        if pointer and p.data_ptr() != pointer:
            p.data = data
            touched.append("parameters")
    if optimizer.state.keys() != state.keys():
        for key in optimizer.state.keys() - state.keys():
            del optimizer.state[key]
        touched.append("state")
    if touched:
        raise WritesOutsideError(f"it writes to the real optimizer: {', '.join(dict.fromkeys(touched))}")


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def parts(tensor: Any) -> list[Tensor]:
    """The tensors that a wrapper is made of, as a distributed one of its shard."""
    held = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    return [part for part in held if isinstance(part, Tensor)]


def storages(tensor: Tensor) -> list[int]:
    """What tells a tensor's memory from another's; of a wrapper's, the memory of its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [storage for part in parts(tensor) for storage in storages(part)]
    try:
        return [tensor.untyped_storage()._cdata]
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none of its own
        return []


def tolerant(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, returning what torch takes: its work on weights is to be seen even where torch would raise after."""

    def run(*given: Any) -> Any:
        value = hook(*given)
        return value if isinstance(value, tuple) else None

    return run


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Many operations of a few thousand elements, for which threads would wait longer for each other than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
