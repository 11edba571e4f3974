"""What is wrong with an optimizer's settings: every fault of a group, in torch's words where torch has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.rounding import ROUNDINGS
from weightdecay.optim.rules import RULES, group_decay_per_step

# setting -> torch's name for it in "Invalid …"
_AT_LEAST_ZERO = {
    "lr": "learning rate",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
}


def group_title(group: Mapping[str, Any], index: int) -> str:
    return f"group {index}" + (f" ('{group['name']}')" if "name" in group else "")


def number(value: Any) -> float | None:
    """A setting as a float; None where it is no single number, which torch explains itself."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


def group_faults(group: Mapping[str, Any], title: str, refused: Mapping[str, str]) -> list[str]:
    """Everything that is wrong with one group's settings.

    Args:
        group: with the optimizer's defaults filled in.
        refused: rules that the optimizer cannot follow, and why.
    """
    faults = []
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        faults.append(f"Tensor lr must be 1-element ({title}): it has {group['lr'].numel()}")
    for key, words in _AT_LEAST_ZERO.items():
        value = number(group.get(key, 0.0))
        if value is not None and not (math.isfinite(value) and value >= 0):
            faults.append(f"Invalid {words}: {group[key]} ({title}): give a finite number of at least 0")
    faults += _epsilon_faults(group, title) + _beta_faults(group, title) + _rule_faults(group, title, refused)
    if group["rounding"] not in ROUNDINGS:
        faults.append(f"unknown rounding '{group['rounding']}' ({title}): {did_you_mean(group['rounding'], ROUNDINGS)}")
    if not faults:
        try:
            group_decay_per_step(group)
        except OptimizerError as error:
            faults += [f"{title}: {fault}" for fault in error.faults]
    return faults


def _beta_faults(group: Mapping[str, Any], title: str) -> list[str]:
    betas = [number(beta) for beta in group.get("betas", ())]
    return [
        f"Invalid beta parameter at index {index}: {group['betas'][index]} ({title}): give a number in [0, 1)"
        for index, beta in enumerate(betas)
        if beta is not None and not 0.0 <= beta < 1.0
    ]


def _epsilon_faults(group: Mapping[str, Any], title: str) -> list[str]:
    eps = number(group.get("eps", 0.0))
    if eps is None or (math.isfinite(eps) and eps >= 0):
        return []
    return [f"Invalid epsilon value: {group['eps']} ({title}): give a finite number of at least 0"]


def _rule_faults(group: Mapping[str, Any], title: str, refused: Mapping[str, str]) -> list[str]:
    name = group["rule"]
    if name not in RULES:
        return [f"unknown rule '{name}' ({title}): {did_you_mean(str(name), RULES)}"]
    if name in refused:
        return [f"rule '{name}' ({title}): {refused[name]}"]
    peak = number(group.get("peak_lr", 1.0))
    if RULES[name].needs_peak and not (peak is not None and math.isfinite(peak) and peak > 0):
        got = group.get("peak_lr")
        return [f"rule '{name}' ({title}) needs the peak lr, got {got}: give peak_lr, the schedule's highest lr"]
    return []
