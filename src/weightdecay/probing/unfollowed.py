"""Ways in which an optimizer steps and no hook of its step runs: another function in the place of `step`, or beside it.

SAM's `first_step` and `second_step` move weights by themselves, and a function that somebody put on an optimizer as its
`step` may never come to the one whose hooks are there.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch

from weightdecay.probing.isolation import untouched
from weightdecay.probing.marks import closed_over
from weightdecay.probing.twin import Twin, Twins


def unfollowed_steps(optimizer: torch.optim.Optimizer) -> list[str]:
    """The methods through which weights of a twin moved while no hook of its step ran."""
    try:
        with untouched(optimizer):
            twins = Twins(optimizer)
            twin = twins.make()
            put = vars(optimizer).get("step")
            replaced = ["step"] if isinstance(put, types.FunctionType) and not _comes_to_a_step(put) else []
            names = [*([] if replaced else ["step"]), *_steps_beside(optimizer)]
            return replaced + [name for name in names if _moves_without_hooks(twin, name)]
    except Exception:  # others' code; of what cannot be tried the probe says so, with the reason
        return []


def _comes_to_a_step(function: types.FunctionType) -> bool:
    """Whether a function that was put in the place of a step may call one; a twin cannot, for it steps the original."""
    waiting: list[Any] = [function]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if getattr(value, "hooked", False) is True:  # so torch marks steps that run hooks
            return True
        if isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            waiting.append(value.__func__)
        elif isinstance(value, types.FunctionType):
            if "step" in value.__code__.co_names:  # as an attribute of whatever it holds
                return True
            held = [value.__globals__.get(name) for name in value.__code__.co_names]
            waiting += [getattr(value, "__wrapped__", None), *held, *(inside for _, inside in closed_over(value))]
    return False


def _steps_beside(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Public methods of its classes that are called steps and take nothing."""
    for name in dir(type(optimizer)):
        if "step" not in name or name.startswith("_") or hasattr(torch.optim.Optimizer, name):
            continue
        method: Any = inspect.getattr_static(type(optimizer), name)
        if inspect.isfunction(method):
            _, *parameters = inspect.signature(method).parameters.values()
            optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if all(one.default is not inspect.Parameter.empty or one.kind in optional for one in parameters):
                yield name


def _moves_without_hooks(twin: Twin, name: str) -> bool:
    ran: list[bool] = []
    handle = twin.optimizer.register_step_pre_hook(lambda *_: ran.append(True))
    before = [p.detach().clone() for params in twin.params for p in params]
    twin.set_gradients()
    try:
        twin.step(guarded=True, method=name)
    except Exception:  # it is for other moments, or other arguments
        return False
    finally:
        handle.remove()
    now = [p.detach() for params in twin.params for p in params]
    return not ran and not all(map(torch.equal, before, now))
