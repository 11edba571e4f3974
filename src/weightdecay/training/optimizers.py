"""The optimizer that a configuration names, on a decay plan."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.plan import plan
from weightdecay.planning.policies import Override
from weightdecay.recipes.settings import OptimizerSettings


def decay_plan(model: nn.Module, settings: OptimizerSettings) -> DecayPlan:
    """Which tensors decay, and by how much: the policy, then the multipliers.

    Raises:
        ConfigError: a setting by pattern that cannot be read, or whose pattern matches no tensor.
    """
    if settings.name == "muon":
        own_settings(settings, dict(model.named_parameters()))
    return plan(
        model, weight_decay=settings.weight_decay, policy=settings.policy, overrides=multiplier_overrides(settings)
    )


def multiplier_overrides(settings: OptimizerSettings) -> list[Override]:
    """The multipliers `PATTERN=FACTOR` of λ and η as a plan takes them.

    Raises:
        ConfigError: one that cannot be read; all of them are named.
    """
    faults: list[str] = []
    decay = dict(_pairs("weight_decay_multipliers", settings.weight_decay_multipliers, faults))
    rates = dict(_pairs("lr_multipliers", settings.lr_multipliers, faults))
    if faults:
        raise ConfigError(faults)
    return [Override(pattern, decay.get(pattern), rates.get(pattern, 1.0)) for pattern in {**rates, **decay}]


def rule_faults(settings: OptimizerSettings) -> list[str]:
    """What is wrong with a rule of decay for the named optimizer."""
    coupled = settings.rule == "l2"
    if settings.name == "adam_l2" and not coupled:
        return [f"optimizer.name = 'adam_l2' with the rule '{settings.rule}': its only one is --rule l2"]
    if coupled and settings.name not in ("adam_l2", "sgdw"):
        return [f"--rule l2: '{settings.name}' has no coupled form; --set optimizer.name=adam_l2 (or sgdw) has"]
    return []


def make_optimizer(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    """The named optimizer over the plan's groups."""
    return _BY_NAME[settings.name](settings, decided)


def _adamw(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return AdamW(decided, lr=settings.lr, betas=betas, eps=settings.eps, rule=settings.rule, fused=True)


def _adam_l2(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return AdamL2(decided, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


def _adafactor(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    return Adafactor(
        decided,
        lr=settings.lr,
        beta2_decay=settings.beta2_decay,
        factored=settings.factored,
        beta1=settings.beta1 or None,
        relative_step=False,  # the schedule says what the rate of a step is
        rule=settings.rule,
    )


def _lion(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    return Lion(decided, lr=settings.lr, betas=(settings.beta1, settings.beta2), rule=settings.rule)


def _muon(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    return Muon(
        _split_for_muon(settings, decided.param_groups(lr=settings.lr)),
        lr=settings.lr,
        momentum=settings.momentum,
        adjust_lr_fn=settings.muon_scale,
        orthogonalisation=settings.muon_orthogonalisation,
        equal_rows=settings.muon_equal_rows,
        neuron_beta2=settings.muon_beta2,
        adamw_betas=(settings.beta1, settings.beta2),
        adamw_eps=settings.eps,
        rule=settings.rule,
        fused=True,
    )


def own_settings(settings: OptimizerSettings, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What each tensor's group says to Muon beside η and λ: matrices are made orthogonal and, as in Muon's papers,
    everything else goes to AdamW: tables, vectors and the output head, which an untied decoder has as one more linear
    layer.

    Raises:
        ConfigError: an entry `PATTERN=NUMBER` that cannot be read, or whose pattern matches no tensor.
    """
    faults: list[str] = []
    keys = ("muon_stacked", "beta1_overrides", "beta2_overrides")
    stacked, beta1, beta2 = (_by_pattern(key, getattr(settings, key), tensors, faults) for key in keys)
    if faults:
        raise ConfigError(faults)
    own: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if _is_hidden_matrix(name, tensor):
            number = stacked.get(name, 1.0)
            own[name] = {"algorithm": "muon", "stacked": int(number) if number.is_integer() else number}
        else:
            betas = (beta1.get(name, settings.beta1), beta2.get(name, settings.beta2))
            own[name] = {"algorithm": "adamw", "rule": settings.adamw_rule or settings.rule, "betas": betas}
    return own


def _split_for_muon(settings: OptimizerSettings, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The plan's groups, each as one for all tensors with the same settings of their own."""
    tensors = {name: p for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
    own, split = own_settings(settings, tensors), []
    for group in groups:
        alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name in group["param_names"]:
            alike[tuple(own[name].items())].append(name)
        for values, names in alike.items():
            said = dict(values)
            chosen = {"name": f"{group['name']} {said['algorithm']}", "param_names": names}
            split.append({**group, **said, **chosen, "params": [tensors[name] for name in names]})
    return split


def _is_hidden_matrix(name: str, tensor: Tensor) -> bool:
    table_or_head = name.startswith(("embedding.", "positions.", "value_embeddings.", "smear.", "head."))
    return tensor.ndim >= 2 and not table_or_head


def _sgdw(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    return SGDW(decided, lr=settings.lr, momentum=settings.momentum, rule=settings.rule)


_BY_NAME: dict[str, Callable[[OptimizerSettings, DecayPlan], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adam_l2": _adam_l2,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgdw": _sgdw,
}


def _by_pattern(key: str, entries: tuple[str, ...], names: Iterable[str], faults: list[str]) -> dict[str, float]:
    """The number of each name that one of the `PATTERN=NUMBER` is found in; of the first, where several are."""
    numbers: dict[str, float] = {}
    for pattern, number in _pairs(key, entries, faults):
        try:
            matching = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            faults.append(f"optimizer.{key}: '{pattern}' is no regular expression: {error}")
            continue
        if not matching:
            faults.append(f"optimizer.{key}: '{pattern}' matches no tensor: {did_you_mean(pattern, names)}")
        numbers = dict.fromkeys(matching, number) | numbers
    return numbers


def _pairs(key: str, entries: tuple[str, ...], faults: list[str]) -> list[tuple[str, float]]:
    pairs = []
    for entry in entries:
        pattern, equals, factor = entry.rpartition("=")
        try:
            pairs.append((pattern, float(factor)))
        except ValueError:
            equals = ""
        if not equals:
            faults.append(f"optimizer.{key} '{entry}': must be PATTERN=FACTOR, like ^embedding=0.1")
    return pairs
