"""What is wrong with an optimizer's settings: every fault of a group, in torch's words where torch has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.amounts import amount, number, whole
from weightdecay.errors import OptimizerError, did_you_mean, gathered
from weightdecay.optim.orthogonal import ADJUSTMENTS, METHODS
from weightdecay.optim.roundings import as_rounding
from weightdecay.rules import Rule, as_rule, group_decay_per_step

_Fault: TypeAlias = tuple[str, str]  # what is wrong, and what to do

# setting -> torch's name for it in "Invalid …"
AT_LEAST_ZERO = {
    "lr": "learning rate",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
    "dampening": "dampening value",
    "eps": "epsilon value",
    "ns_eps": "epsilon value",
    "lr_multiplier": "lr_multiplier",
    "decay_multiplier": "decay_multiplier",
}
_CHOICES = {"algorithm": ("adamw", "muon"), "orthogonalisation": METHODS}

_SWITCHES = (
    "amsgrad", "maximize", "nesterov", "capturable", "differentiable",
    "factored", "relative_step", "scale_parameter", "equal_rows",
)  # fmt: skip
_SWITCHES_OR_NONE = ("foreach", "fused", "compiled")


class ParamsError(OptimizerError, TypeError):
    """Parameters that are none; a TypeError too, as torch's own is."""


@contextmanager
def explained(what: str, given: Any, wanted: str) -> Iterator[None]:
    """torch's words on parameters that are none, and what to give."""
    try:
        yield
    except (TypeError, KeyError) as error:
        raise ParamsError(f"{what} is {given!r:.60}: give {wanted} ({type(error).__name__}: {error})") from error


def with_plain_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose numbers, also in pairs, are tensors or Python's own, which all kernels and files take."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.numel() == 1:
            return value.reshape(())  # with an axis not every kernel takes it
        if isinstance(value, Tensor) or type(value) in (bool, int, float):
            return value
        if type(value) in (tuple, list):
            return type(value)(map(plain, value))
        found = number(value) if whole(value) is None else whole(value)
        return value if found is None else found

    beside = ("params", "param_names")
    return {key: value if key in beside else plain(value) for key, value in settings.items()}


def group_faults(group: Mapping[str, Any], title: str, refusal: Callable[[Rule], str]) -> list[str]:
    """Everything that is wrong with one group's settings.

    Args:
        group: with the optimizer's defaults filled in.
        refusal: why the optimizer cannot follow a rule; empty if it can.
    """
    kinds = (_number_faults, _choice_faults, _beta_faults, _adafactor_faults, _muon_faults)
    found = [fault for faults_of in kinds for fault in faults_of(group)]
    faults = [f"{what} ({title}): {remedy}" for what, remedy in found] + _rule_faults(group, title, refusal)
    if not faults:
        with gathered(faults, before=f"{title}: "):
            group_decay_per_step(group)
    return faults


def _number_faults(group: Mapping[str, Any]) -> Iterator[_Fault]:
    for key, words in AT_LEAST_ZERO.items():
        given = group.get(key, 0.0)
        if key == "eps" and "beta2_decay" in group:
            continue  # Adafactor's two, below
        if isinstance(given, Tensor) and given.numel() != 1:
            yield f"Tensor {key} must be 1-element", f"it has {given.numel()}"
        elif amount(given) is None:
            yield f"Invalid {words}: {given!r}", "give a finite number of at least 0"


def _choice_faults(group: Mapping[str, Any]) -> Iterator[_Fault]:
    for key, known in _CHOICES.items():
        if key in group and not (isinstance(group[key], str) and group[key] in known):
            yield f"unknown {key} '{group[key]}'", did_you_mean(str(group[key]), known)
    for key in (*_SWITCHES, *_SWITCHES_OR_NONE):
        given, or_none = group.get(key, False), key in _SWITCHES_OR_NONE
        if not isinstance(given, bool) and not (or_none and given is None):
            yield f"Invalid {key}: {given!r}", "give True, False or None" if or_none else "give True or False"

    if "dampening" in group and group.get("nesterov") is True and not (group["momentum"] and not group["dampening"]):
        yield "Nesterov momentum requires a momentum and zero dampening", "give both, or nesterov=False"


def _beta_faults(group: Mapping[str, Any]) -> Iterator[_Fault]:
    betas = group.get("betas", (0.0, 0.0))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        yield f"Invalid betas: {betas}", "give two numbers in [0, 1)"
        return
    singles = [(0, group.get("beta1")), (1, group.get("neuron_beta2"))]  # Adafactor's and Muon's
    for index, beta in [*enumerate(betas), *((index, one) for index, one in singles if one is not None)]:
        value = number(beta)
        if value is None or not 0.0 <= value < 1.0:
            yield f"Invalid beta parameter at index {index}: {beta}", "give a number in [0, 1)"


def _muon_faults(group: Mapping[str, Any]) -> Iterator[_Fault]:
    if group.get("algorithm") != "muon":
        return
    adjustment, dtype, coefficients = (group.get(key) for key in ("adjust_lr_fn", "ns_dtype", "ns_coefficients"))
    if adjustment is not None and not (isinstance(adjustment, str) and adjustment in ADJUSTMENTS):
        yield f"Adjust learning rate function {adjustment} is not supported", did_you_mean(str(adjustment), ADJUSTMENTS)
    if "ns_dtype" in group and not getattr(getattr(torch, str(dtype), None), "is_floating_point", False):
        yield f"Invalid ns_dtype: {dtype!r}", "give the name of a dtype of torch, such as 'bfloat16'"
    if "ns_coefficients" in group and not _are_three_numbers(coefficients):
        yield f"Invalid ns_coefficients: {coefficients!r}", "give three numbers"

    steps, stacked = group.get("ns_steps", 1), group.get("stacked", 1)
    if whole(steps) not in range(1, 100):
        yield f"Invalid ns_steps: {steps}", "give a whole number from 1 to 99, usually 5"
    if not whole(stacked) or stacked < 1:
        yield f"Invalid stacked: {stacked!r}", "give the number of matrices in each tensor, at least 1"


def _are_three_numbers(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 3 and all(number(one) is not None for one in given)


def _adafactor_faults(group: Mapping[str, Any]) -> Iterator[_Fault]:
    if "beta2_decay" not in group:
        return
    power, threshold, eps = number(group["beta2_decay"]), number(group.get("d", 1.0)), group.get("eps")
    if power is None or amount(-power) is None:
        yield f"beta2_decay should be <= 0 but is: {group['beta2_decay']!r}", "give a finite number"
    if threshold is None or amount(threshold - 1) is None:
        yield f"Clipping threshold d should be >= 1 but is: {group['d']!r}", "give a finite number"
    if not isinstance(eps, tuple | list) or len(eps) != 2:
        yield f"Invalid eps: {eps!r}", "give two numbers of at least 0, the first may be None"
        return
    for index, one in enumerate(eps):
        if amount(one) is None and not (index == 0 and one is None):
            yield f"epsilon{index + 1} should be >= 0 but is: {one!r}", "give a finite number"


def _rule_faults(group: Mapping[str, Any], title: str, refusal: Callable[[Rule], str]) -> list[str]:
    faults: list[str] = []
    with gathered(faults, after=f" ({title})"):
        as_rounding(group["rounding"])
    with gathered(faults, after=f" ({title})"):
        rule, peak = as_rule(group["rule"]), group.get("peak_lr")
        decoupled = group.get("decoupled_weight_decay", not rule.coupled)
        if reason := refusal(rule):
            faults.append(f"rule '{rule.name}' ({title}): {reason}")
        elif decoupled != (not rule.coupled):
            words = "AdamW is the decoupled one and AdamL2 the coupled one: leave it away"
            faults.append(
                f"decoupled_weight_decay is {decoupled!r} ({title}), and rule '{rule.name}' is not so: {words}"
            )
        elif peak is not None and not amount(peak):
            faults.append(f"Invalid peak_lr: {peak!r} ({title}): give peak_lr, a finite number over 0, or None")
    return faults
