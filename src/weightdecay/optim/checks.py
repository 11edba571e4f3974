"""What is wrong with an optimizer's settings: every fault of a group, in torch's words where torch has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.orthogonal import METHODS
from weightdecay.optim.rounding import ROUNDINGS
from weightdecay.optim.rules import RULES, group_decay_per_step

# setting -> torch's name for it in "Invalid …"
_AT_LEAST_ZERO = {
    "lr": "learning rate",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
    "eps": "epsilon value",
    "ns_eps": "epsilon value",
}
_CHOICES = {"algorithm": ("adamw", "muon"), "rounding": ROUNDINGS, "orthogonalisation": METHODS}


def group_title(group: Mapping[str, Any], index: int) -> str:
    return f"group {index}" + (f" ('{group['name']}')" if "name" in group else "")


def number(value: Any) -> float | None:
    """A setting as a float; None where it is no single number."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    return float(value) if isinstance(value, Real) else None


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
        given = group.get(key, 0.0)
        if (key == "eps" and isinstance(given, tuple)) or (isinstance(given, Tensor) and given.numel() != 1):
            continue  # Adafactor's two, which torch checks; what is said above
        value = number(given)
        if value is None or not (math.isfinite(value) and value >= 0):
            shown = repr(given) if isinstance(given, str) else given
            faults.append(f"Invalid {words}: {shown} ({title}): give a finite number of at least 0")
    for key, known in _CHOICES.items():
        if key in group and group[key] not in known:
            faults.append(f"unknown {key} '{group[key]}' ({title}): {did_you_mean(str(group[key]), known)}")
    steps = group.get("ns_steps", 1)
    if not (isinstance(steps, int) and 1 <= steps < 100):
        faults.append(f"Invalid ns_steps: {steps} ({title}): give a whole number from 1 to 99, usually 5")
    faults += _beta_faults(group, title) + _rule_faults(group, title, refused)
    if not faults:
        try:
            group_decay_per_step(group)
        except OptimizerError as error:
            faults += [f"{title}: {fault}" for fault in error.faults]
    return faults


def _beta_faults(group: Mapping[str, Any], title: str) -> list[str]:
    betas = group.get("betas", (0.0, 0.0))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        return [f"Invalid betas: {betas} ({title}): give two numbers in [0, 1)"]
    singles = [(0, group.get("beta1")), (1, group.get("neuron_beta2"))]  # Adafactor's and Muon's
    named = [*enumerate(betas), *((index, one) for index, one in singles if one is not None)]
    values = [(index, beta, number(beta)) for index, beta in named]
    return [
        f"Invalid beta parameter at index {index}: {beta} ({title}): give a number in [0, 1)"
        for index, beta, value in values
        if value is None or not 0.0 <= value < 1.0
    ]


def _rule_faults(group: Mapping[str, Any], title: str, refused: Mapping[str, str]) -> list[str]:
    name = group["rule"]
    if not isinstance(name, str) or name not in RULES:
        return [f"unknown rule '{name}' ({title}): {did_you_mean(str(name), RULES)}"]
    if name in refused:
        return [f"rule '{name}' ({title}): {refused[name]}"]
    given = group.get("peak_lr")
    peak = number(given)
    if peak is not None and math.isfinite(peak) and peak > 0:
        return []
    if RULES[name].needs_peak:
        return [f"rule '{name}' ({title}) needs the peak lr, got {given}: give peak_lr, the schedule's highest lr"]
    return [] if given is None else [f"Invalid peak_lr: {given!r} ({title}): give a finite number over 0, or None"]
