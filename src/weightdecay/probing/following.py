"""Whether hooks around its step can follow an optimizer: they run, and what they set and see is what the step uses.

SAM's `first_step` and `second_step` move weights by themselves, and a function that somebody put on an optimizer as its
`step` may never come to the one whose hooks are there. A step may keep the λ that it found first, change λ itself, or
move tensors that have no gradient, as one does that takes `main_grad`, or 0 where none is.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay.probing.isolation import untouched
from weightdecay.probing.marks import closed_over
from weightdecay.probing.twin import Twin, Twins
from weightdecay.probing.walks import fine_dtype

_LR, _OTHER_LR, _WEIGHT_DECAY, _OTHER_WEIGHT_DECAY = 0.1, 0.03, 0.1, 0.6
_MANY = 2_000  # things that a function holds
_STEPS, _MORE_STEPS = 4, 16  # before a setting changes, and until that must show


@dataclass(frozen=True)
class Habits:
    """What a step does with settings and gradients, for each group.

    Attributes:
        keeps_settings: it decays by an lr or λ that it found earlier, where these were changed between two steps.
        writes_weight_decay: it changes the group's `weight_decay`.
        moves_without_gradient: it moves tensors whose `grad` is None, at λ 0.
    """

    keeps_settings: bool = False
    writes_weight_decay: bool = False
    moves_without_gradient: bool = False


def habits(optimizer: torch.optim.Optimizer) -> list[Habits]:
    """What is seen on twins; nothing of what cannot be tried, of which the probe gives the reason."""
    try:
        with untouched(optimizer):
            twins = Twins(optimizer)
            dtype = fine_dtype(twins)
            kept, written = _kept_and_written(twins, dtype)
            moved = _moved_without_gradient(twins.make(dtype))
    except Exception:  # others' code runs here
        return [Habits()] * len(optimizer.param_groups)
    return [Habits(kept[place], written[place], moved[place]) for place in twins.of.stands_for]


def _kept_and_written(twins: Twins, dtype: torch.dtype | None) -> tuple[list[bool], list[bool]]:
    """Two twins go one way, and then take one step at another lr, with two λ; what these make of it is known."""
    one, other = twins.make(dtype), twins.make(dtype)
    written = [False] * len(one.params)
    for twin in (one, other):
        twin.set(lr=_LR, weight_decay=_WEIGHT_DECAY)
        for _ in range(_STEPS):
            twin.set_gradients()
            twin.step(guarded=True)
        λs = [float(group["weight_decay"]) for group in twin.optimizer.param_groups]
        written = [was or abs(λ - _WEIGHT_DECAY) > 1e-6 for was, λ in zip(written, λs, strict=True)]
    for _ in range(_MORE_STEPS):  # a step may come to weights in every k-th call alone
        before = one.weights()
        for twin, λ in ((one, _WEIGHT_DECAY), (other, _OTHER_WEIGHT_DECAY)):
            twin.set(lr=_OTHER_LR, weight_decay=λ)
            twin.set_gradients()
            twin.step(guarded=True)
        if not all(map(_are_equal, one.weights(), other.weights())):
            break
    kept = []
    for was, here, there in zip(before, one.weights(), other.weights(), strict=True):
        taken = torch.cat([(x - y).double().abs().reshape(-1) for x, y in zip(here, there, strict=True)])
        first = torch.cat([w.double().abs().reshape(-1) for w in was])
        by_settings_of_before = _LR * (_OTHER_WEIGHT_DECAY - _WEIGHT_DECAY) * first
        kept.append(bool(first.any()) and (not taken.any() or bool(torch.allclose(taken, by_settings_of_before, 0.02))))
    return kept, written


def _moved_without_gradient(twin: Twin) -> list[bool]:
    """For each group whether a step without λ and without gradients moves its tensors, after one with them."""
    twin.set(lr=_LR, weight_decay=0.0)
    twin.set_gradients()
    twin.step(guarded=True)
    before = twin.weights()
    for p in (p for params in twin.params for p in params):
        p.grad = None
    try:
        twin.step(guarded=True)
    except Exception:  # a step that asks for all gradients moves none without
        return [False] * len(before)
    return [not _are_equal(was, now) for was, now in zip(before, twin.weights(), strict=True)]


def _are_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(map(torch.equal, some, others))


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
    seen: dict[int, Any] = {}
    while waiting and len(seen) < _MANY:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, Tensor | types.ModuleType | nn.Module):
            continue
        seen[id(value)] = value
        if getattr(value, "hooked", False) is True:  # so torch marks steps that run hooks
            return True
        if isinstance(value, types.CodeType):
            if "step" in value.co_names:  # as an attribute of whatever it holds
                return True
            waiting += [inner for inner in value.co_consts if isinstance(inner, types.CodeType)]
        elif isinstance(value, types.FunctionType):
            named = [value.__globals__.get(name) for name in value.__code__.co_names]
            waiting += [value.__code__, *named, *(inside for _, inside in closed_over(value))]
        elif isinstance(value, functools.partial):
            waiting += [value.func, value.args, value.keywords]
        elif isinstance(value, types.MethodType):
            waiting += [value.__func__, value.__self__]
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        if not isinstance(value, torch.optim.Optimizer):
            waiting += vars(value).values() if hasattr(value, "__dict__") and not isinstance(value, type) else ()
        else:  # of its own attributes those that others gave it
            waiting += [item for item in vars(value).values() if callable(item) and item is not function]
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
    before = twin.weights()
    twin.set_gradients()
    try:
        twin.step(guarded=True, method=name)
    except Exception:  # it is for other moments, or other arguments
        return False
    finally:
        handle.remove()
    return not ran and not all(map(_are_equal, before, twin.weights()))
