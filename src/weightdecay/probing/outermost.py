"""Whether hooks of a step run, and one step, however often they do.

torch wraps the `step` of each class of which there has been an instance, and every wrapper runs the optimizer's hooks.
So the hooks of a class whose step calls `super().step()` run once where its base has never been made, and twice within
one step where it has, anywhere in the program.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch.optim import lr_scheduler
from torch.optim import optimizer as torchs  # its tables of global hooks have no public name


def runs_hooks(optimizer: Any) -> bool:
    """Whether the optimizer's step runs the hooks that are put on it.

    A wrapper that never called `Optimizer.__init__` may have a place for hooks, as timm's Lookahead does, and a step
    that torch has not wrapped to run them; a wrapped one it marks with `hooked`.
    """
    step = getattr(type(optimizer), "step", None)
    return hasattr(optimizer, "_optimizer_step_pre_hooks") and bool(getattr(step, "hooked", False))


def step_is_replaced(optimizer: Any) -> bool:
    """Whether others put a function in the place of this optimizer's step; that of torch's schedulers only counts."""
    step: Any = vars(optimizer).get("step")
    while getattr(getattr(step, "__code__", None), "co_filename", "") == lr_scheduler.__file__:
        step = step.__wrapped__
    return step is not None and getattr(step, "__func__", step) is not type(optimizer).step


def hooks_of_all() -> list[Any]:
    """The hooks that run beside the steps of all optimizers, but for this package's own, which change nothing."""
    tables = (torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks)
    return [hook for table in tables for hook in table.values() if not is_of_this_package(hook)]


def is_of_this_package(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("weightdecay.")


# Of the function that torch puts around each class's `step`, and that runs the hooks of the step.
_TORCHS_WRAPPER = torchs.Optimizer.profile_hook_step(lambda _: None).__code__


class OutermostStep:
    """Tells the hooks of a step from those of a step that it calls. For use in a hook before and a hook after."""

    def __init__(self) -> None:
        # Of the wrapper that runs the hooks. A step that raises never comes to its hook after; that it is over shows
        # by its frame, which runs no more.
        self._wrapper: FrameType | None = None

    def begins(self) -> bool:
        """Whether the hook that calls this stands before a step, and not before one within it."""
        wrapper = _wrapper_around(sys._getframe(1))
        if self._wrapper is not None and _is_running(self._wrapper, wrapper):
            return False
        self._wrapper = wrapper
        return True

    def is_running(self) -> bool:
        """Whether the step that began goes on around the caller; one that has raised does not."""
        return self._wrapper is not None and _is_running(self._wrapper, sys._getframe(1))

    def ends(self) -> bool:
        """Whether the hook that calls this stands after the step that began."""
        if _wrapper_around(sys._getframe(1)) is not self._wrapper:
            return False
        self._wrapper = None
        return True


def _wrapper_around(hook: FrameType) -> FrameType:
    """The frame of a step that runs a hook: torch's, or that of whoever runs the hooks in its place.

    How many functions stand between is nobody's business: twins, and others, put their own around a hook.
    """
    frames = [hook]
    while (outer := frames[-1].f_back) is not None:
        frames.append(outer)
    torchs_own = next((frame for frame in frames if frame.f_code is _TORCHS_WRAPPER), None)
    return torchs_own or next((frame for frame in frames if not _is_of_this_package(frame)), frames[-1])


def _is_of_this_package(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("weightdecay.")


def _is_running(frame: FrameType, within: FrameType) -> bool:
    outer = within.f_back
    while outer is not None and outer is not frame:
        outer = outer.f_back
    return outer is frame
