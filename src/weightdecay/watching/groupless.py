"""Optimizers of people's own that keep no groups: their tensors in a list, their settings as attributes.

    class Lion:
        def __init__(self, params, lr, weight_decay):
            self.params, self.lr, self.weight_decay = list(params), lr, weight_decay

An audit speaks of groups, so that it gets a stand-in with one group, whose settings its step hands on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from weightdecay.auditing.result import Audit

# What people call them, by the key of a group.
_NAMES = {
    "lr": ("lr", "learning_rate", "step_size", "eta"),
    "weight_decay": ("weight_decay", "wd", "decay", "weight_decay_rate", "lam", "lmbda", "lambda_"),
}


def listed_tensors(optimizer: Any) -> list[Tensor]:
    """The tensors that it steps, where it has one list of those that train; none where that is not clear."""
    held = vars(optimizer) if hasattr(optimizer, "__dict__") else {}
    found = [value for value in held.values() if isinstance(value, list | tuple) and value and all(map(_trains, value))]
    return list(found[0]) if len(found) == 1 else []


def _trains(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_leaf and value.requires_grad


class Grouped:
    """An optimizer without groups, as an audit takes it."""

    def __init__(self, optimizer: Any) -> None:
        held = vars(optimizer)
        self.optimizer = optimizer
        self._names = {key: name for key, names in _NAMES.items() for name in names[::-1] if _is_number(held.get(name))}
        settings = {key: held[name] for key, name in self._names.items()}
        self.param_groups: list[dict[str, Any]] = [{"params": listed_tensors(optimizer), **settings}]

    def step(self) -> None:
        """A step with the settings of the group."""
        for key, name in self._names.items():
            setattr(self.optimizer, name, self.param_groups[0][key])
        self.optimizer.step()


def grouped(optimizer: Any) -> Any:
    """The optimizer itself where it has groups; else a stand-in, which is called what the optimizer is called."""
    if hasattr(optimizer, "param_groups"):
        return optimizer
    kind = type(optimizer)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (Grouped,), names)(optimizer)


def without_fixes(audit: Audit, optimizers: Sequence[Any]) -> Audit:
    """An audit whose code to mend speaks of groups that are not there says so instead."""
    kinds = [type(one).__name__ for one in optimizers if isinstance(one, Grouped)]
    if not kinds:
        return audit
    said = f"{' and '.join(kinds)} keeps no param_groups: all its tensors have one λ; give it groups to tell them apart"
    findings = tuple(replace(finding, fix="") for finding in audit.findings)
    return replace(audit, findings=findings, remarks=(*audit.remarks, said))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
