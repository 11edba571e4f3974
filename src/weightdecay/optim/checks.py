"""What is wrong with an optimizer's settings: every fault of a group, in torch's words where torch has them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.orthogonal import METHODS
from weightdecay.optim.roundings import as_rounding
from weightdecay.rules import as_rule, group_decay_per_step

# setting -> torch's name for it in "Invalid …"
_AT_LEAST_ZERO = {
    "lr": "learning rate",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
    "dampening": "dampening value",
    "eps": "epsilon value",
    "ns_eps": "epsilon value",
    "lr_multiplier": "lr_multiplier",
    "decay_multiplier": "decay_multiplier",
}
_NUMBERS = (*_AT_LEAST_ZERO, "d", "beta2_decay", "beta1", "neuron_beta2", "peak_lr")
_CHOICES = {"algorithm": ("adamw", "muon"), "orthogonalisation": METHODS}

_SWITCHES = (
    "amsgrad", "maximize", "nesterov", "capturable", "differentiable",
    "factored", "relative_step", "scale_parameter", "equal_rows",
)  # fmt: skip
_SWITCHES_OR_NONE = ("foreach", "fused", "compiled")

# What a group may hold beside the settings of its optimizer: ours, and those that torch's schedulers write.
_BESIDE = frozenset({
    "params", "param_names", "name", "rule", "rounding", "peak_lr", "lr_multiplier", "decay_multiplier", "decay_step",
    "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr",
})  # fmt: skip
_NEAR = 0.8  # of difflib's ratio: `weigth_decay` is 0.92, `lr_scale` is no misspelt setting


def group_title(group: Mapping[str, Any], index: int) -> str:
    return f"group {index}" + (f" ('{group['name']}')" if "name" in group else "")


def number(value: Any) -> float | None:
    """A setting as a float; None where it is no single number."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.dtype.is_complex else None
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def with_plain_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose numbers are of a kind that tensors take: no Decimal, no Fraction, no array without axes."""

    def plain(key: str, value: Any) -> Any:
        if key not in _NUMBERS or isinstance(value, Tensor | bool | int | float):
            return value
        single = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiu"
        return float(value) if single or isinstance(value, Real | Decimal) else value

    return {key: plain(key, value) for key, value in settings.items()}


def misspelt_keys(group: Mapping[str, Any], known: Iterable[str], title: str) -> list[str]:
    """Faults: keys that no setting has and that look like one."""
    settings = {*known, *_BESIDE}
    near = {key: difflib.get_close_matches(str(key), settings, n=1, cutoff=_NEAR) for key in group.keys() - settings}
    return [
        f"{title} has '{key}', which nothing reads: did you mean '{found[0]}'?"
        for key, found in sorted(near.items())
        if found
    ]


def group_faults(group: Mapping[str, Any], title: str, refusal: Any) -> list[str]:
    """Everything that is wrong with one group's settings.

    Args:
        group: with the optimizer's defaults filled in.
        refusal: why the optimizer cannot follow a rule, or None.
    """
    faults = []
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        faults.append(f"Tensor lr must be 1-element ({title}): it has {group['lr'].numel()}")

    for key, words in _AT_LEAST_ZERO.items():
        given = group.get(key, 0.0)
        if (key == "eps" and "beta2_decay" in group) or (isinstance(given, Tensor) and given.numel() != 1):
            continue  # Adafactor's two, below; what is said above
        value = number(given)
        if value is None or not (math.isfinite(value) and value >= 0):
            faults.append(f"Invalid {words}: {_shown(given)} ({title}): give a finite number of at least 0")

    for key, known in _CHOICES.items():
        if key in group and group[key] not in known:
            faults.append(f"unknown {key} '{group[key]}' ({title}): {did_you_mean(str(group[key]), known)}")
    steps = group.get("ns_steps", 1)
    if isinstance(steps, bool) or not (isinstance(steps, int) and 1 <= steps < 100):
        faults.append(f"Invalid ns_steps: {steps} ({title}): give a whole number from 1 to 99, usually 5")

    faults += _switch_faults(group, title) + _beta_faults(group, title) + _adafactor_faults(group, title)
    faults += _rule_faults(group, title, refusal)
    if not faults:
        try:
            group_decay_per_step(group)
        except OptimizerError as error:
            faults += [f"{title}: {fault}" for fault in error.faults]
    return faults


def _shown(given: Any) -> str:
    return str(given) if isinstance(given, Real) and not isinstance(given, bool) else repr(given)


def _switch_faults(group: Mapping[str, Any], title: str) -> list[str]:
    faults = [
        f"Invalid {key}: {group[key]!r} ({title}): give True or False"
        for key in _SWITCHES
        if key in group and not isinstance(group[key], bool)
    ]
    return faults + [
        f"Invalid {key}: {group[key]!r} ({title}): give True, False or None"
        for key in _SWITCHES_OR_NONE
        if key in group and not (group[key] is None or isinstance(group[key], bool))
    ]


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


def _adafactor_faults(group: Mapping[str, Any], title: str) -> list[str]:
    if "beta2_decay" not in group:
        return []
    faults = []
    power = number(group["beta2_decay"])
    if power is None or not (math.isfinite(power) and power <= 0):
        faults.append(f"beta2_decay should be <= 0 but is: {group['beta2_decay']!r} ({title}): give a finite number")

    threshold = number(group.get("d", 1.0))
    if threshold is None or not (math.isfinite(threshold) and threshold >= 1):
        faults.append(f"Clipping threshold d should be >= 1 but is: {group['d']!r} ({title}): give a finite number")

    eps = group.get("eps")
    if not isinstance(eps, tuple | list) or len(eps) != 2:
        return [*faults, f"Invalid eps: {eps!r} ({title}): give two numbers of at least 0, the first may be None"]
    for index, one in enumerate(eps):
        value = number(one)
        if not (index == 0 and one is None) and (value is None or not (math.isfinite(value) and value >= 0)):
            faults.append(f"epsilon{index + 1} should be >= 0 but is: {_shown(one)} ({title}): give a finite number")
    return faults


def _rule_faults(group: Mapping[str, Any], title: str, refusal: Any) -> list[str]:
    faults = []
    try:
        as_rounding(group["rounding"])
    except OptimizerError as error:
        faults += [f"{fault} ({title})" for fault in error.faults]
    try:
        rule = as_rule(group["rule"])
    except OptimizerError as error:
        return faults + [f"{fault} ({title})" for fault in error.faults]

    if reason := refusal(rule):
        return [*faults, f"rule '{rule.name}' ({title}): {reason}"]
    given = group.get("peak_lr")
    peak = number(given)
    if peak is not None and math.isfinite(peak) and peak > 0:
        return faults
    if given is not None:
        return [*faults, f"Invalid peak_lr: {given!r} ({title}): give peak_lr, a finite number over 0, or None"]
    if rule.needs_peak:
        faults.append(f"rule '{rule.name}' ({title}) needs the peak lr: give peak_lr, the schedule's highest lr")
    return faults
