"""Keeping torch's compiler out of an optimizer's methods, without bringing it in.

torch guards its optimizers by means of the compiler itself, which the first call of any method then imports: a second
or two of a process that compiles nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")

_GUARDING = ("torch._compile", "torch.optim.optimizer")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """A method that compiled code calls and does not compile."""
    disabled = _disable_dynamo(function)

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        return disabled(*args, **kwargs) if torch.compiler.is_compiling() else function(*args, **kwargs)

    return guarded


def bare(method: Callable[P, R]) -> Callable[P, R]:
    """A bound method of torch's optimizers without what torch wraps around it: its guards, the profiler and hooks.

    For a method of ours that stands in its place, with guards and hooks of its own.
    """
    bound: Any = method
    function = bound.__func__
    while function.__globals__["__name__"] in _GUARDING and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return MethodType(function, bound.__self__)
