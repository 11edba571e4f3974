"""Where a step begins and ends: torch's hooks, on the optimizer within what wraps it, once a step however nested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from weightdecay.errors import OptimizerError
from weightdecay.probing.outermost import OutermostStep, runs_hooks

# What accelerate's, DeepSpeed's, Lightning's and timm's wrappers call what they wrap.
_INSIDE = ("optimizer", "_optimizer", "_base_optimizer")
# Takes over all attributes of what it wraps, and does not follow it when they change.
_SHOWS_ANOTHER = ("LightningOptimizer",)


def optimizers_of(given: Any) -> list[torch.optim.Optimizer]:
    """The torch optimizers whose steps are watched.

    Args:
        given: an optimizer, something around one, or several of them.

    Raises:
        OptimizerError: with everything that is none, and what to do then.
    """
    listed = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(listed, list | tuple):
        listed = [given]
    found: list[torch.optim.Optimizer] = []
    faults: list[str] = []
    for one in listed:
        inside = _innermost(one)
        if inside is None:
            faults.append(
                f"{type(one).__name__} is no torch.optim.Optimizer, nor around one, and so has no hooks on its steps: "
                "give the optimizer that it steps, or by_hand=True and make each step in `with monitor.step():`"
            )
        elif all(inside is not other for other in found):
            found.append(inside)
    if not listed:
        faults.append("no optimizer is given: give the one that steps the model")
    if faults:
        raise OptimizerError(faults)
    return found


def _innermost(one: Any) -> torch.optim.Optimizer | None:
    """The optimizer whose hooks run: itself, or what it only passes steps on to."""
    seen: set[int] = set()
    while id(one) not in seen:
        seen.add(id(one))
        shows_another = any(base.__name__ in _SHOWS_ANOTHER for base in type(one).__mro__)
        if isinstance(one, torch.optim.Optimizer) and runs_hooks(one) and not shows_another:
            return one
        inside = (getattr(one, name, None) for name in _INSIDE)
        one = next((other for other in inside if isinstance(other, torch.optim.Optimizer)), one)
    return None


def groups_by_hand(given: Any) -> list[dict[str, Any]]:
    """The groups of something that is no torch optimizer.

    Raises:
        OptimizerError: it has none.
    """
    groups = getattr(given, "param_groups", None)
    if not isinstance(groups, Iterable) or not all(isinstance(group, dict) and "params" in group for group in groups):
        raise OptimizerError(
            f"{type(given).__name__} has no param_groups, and so nothing says which tensors it steps, with which lr "
            "and weight_decay: give something that has"
        )
    return groups if isinstance(groups, list) else list(groups)


class StepHooks:
    """Calls `before` and `after` around each step of an optimizer; once, however many wrappers its class has."""

    def __init__(self, optimizer: torch.optim.Optimizer, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._before_step, self._after_step = before, after
        self._outermost = OutermostStep()
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if self._outermost.begins():
            self._before_step()

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if self._outermost.ends():
            self._after_step()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
