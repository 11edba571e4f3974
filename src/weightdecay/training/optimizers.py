"""The optimizer that a configuration names, on a decay plan."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from weightdecay.errors import ConfigError, did_you_mean, gathered
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.grouping import Rules, muon_tensors, split_group
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.plan import plan
from weightdecay.planning.policies.overrides import Override
from weightdecay.recipes.settings import OptimizerSettings
from weightdecay.rules import as_rule

N = TypeVar("N", int, float, str)


def decay_plan(model: nn.Module, settings: OptimizerSettings) -> DecayPlan:
    """Which tensors decay, and by how much: the policy, then the multipliers.

    Raises:
        ConfigError: a pattern that is no regular expression, or that matches no tensor.
    """
    policy: Any = settings.policy  # a name or a path, which the preflight has looked up
    decided = plan(model, weight_decay=settings.peak_weight_decay, policy=policy, overrides=plan_overrides(settings))
    if settings.name == "muon":
        own_settings(settings, decided)
    return decided


def plan_overrides(settings: OptimizerSettings) -> list[Override]:
    """The multipliers of λ and η, and the roles, as a plan takes them."""
    decay = {row.pattern: row.factor for row in settings.weight_decay_multipliers}
    rates = {row.pattern: row.factor for row in settings.lr_multipliers}
    shares = [Override(pattern, decay.get(pattern), rates.get(pattern, 1.0)) for pattern in {**rates, **decay}]
    return shares + [Override(row.pattern, role=row.role) for row in settings.role_overrides]


def rule_faults(settings: OptimizerSettings) -> list[str]:
    """What is wrong with a rule of decay for the named optimizer."""
    if faults := _override_faults(settings):
        return faults
    coupled = as_rule(settings.rule).coupled
    if settings.name == "adam_l2" and not coupled:
        return [f"optimizer.name = 'adam_l2' with the rule '{settings.rule}': its only one is --rule l2"]
    if coupled and settings.name not in ("adam_l2", "sgdw"):
        return [f"--rule l2: '{settings.name}' has no coupled form; --set optimizer.name=adam_l2 (or sgdw) has"]
    return []


def _override_faults(settings: OptimizerSettings) -> list[str]:
    """What is wrong with the rules by pattern."""
    if settings.rule_overrides and settings.name == "muon":
        return ["optimizer.rule_overrides: not of 'muon', whose AdamW beside it has optimizer.adamw_rule"]
    faults: list[str] = []
    for row in settings.rule_overrides:
        with gathered(faults, before="optimizer.rule_overrides: "):
            if as_rule(row.rule).coupled:
                faults.append(f"optimizer.rule_overrides: '{row.rule}' of '{row.pattern}' goes through the gradient, "
                              "which no tensor does by itself")  # fmt: skip
    return faults


def _rules(settings: OptimizerSettings, decided: DecayPlan) -> Rules:
    """The optimizer's rule; with overrides, each tensor's that has another one by its name.

    Raises:
        ConfigError: a pattern that is no regular expression, or that matches no tensor.
    """
    if not settings.rule_overrides:
        return as_rule(settings.rule)
    faults: list[str] = []
    names = [tensor.name for tensor in decided if not tensor.frozen]
    rows = [(row.pattern, row.rule) for row in settings.rule_overrides]
    own = _by_pattern("rule_overrides", rows, names, faults)
    if faults:
        raise ConfigError(faults)
    return {**{name: as_rule(rule) for name, rule in own.items()}, "*": as_rule(settings.rule)}


def make_optimizer(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    """The named optimizer over the plan's groups."""
    return _BY_NAME[settings.name](settings, decided)


def _adamw(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    return AdamW(decided, lr=settings.lr, betas=betas, eps=settings.eps, rule=_rules(settings, decided), fused=True)


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
        rule=_rules(settings, decided),
    )


def _lion(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    return Lion(decided, lr=settings.lr, betas=(settings.beta1, settings.beta2), rule=_rules(settings, decided))


def _muon(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    return Muon(
        _muon_groups(settings, decided),
        lr=settings.lr,
        momentum=settings.momentum,
        adjust_lr_fn=settings.muon_scale,
        orthogonalisation=settings.muon_orthogonalisation,
        equal_rows=settings.muon_equal_rows,
        neuron_beta2=settings.muon_beta2,
        adamw_betas=(settings.beta1, settings.beta2),
        adamw_eps=settings.eps,
        rule=as_rule(settings.rule),
        fused=True,
    )


def own_settings(settings: OptimizerSettings, decided: DecayPlan) -> dict[str, dict[str, Any]]:
    """What each tensor's group says to Muon beside η and λ; its role in the plan decides where it goes.

    Raises:
        ConfigError: a pattern that is no regular expression, or that matches no tensor.
    """
    faults: list[str] = []
    names = [tensor.name for tensor in decided if not tensor.frozen]
    stacked = _by_pattern("muon_stacked", [(row.pattern, row.matrices) for row in settings.muon_stacked], names, faults)
    beta1 = _by_pattern("beta1_overrides", [(row.pattern, row.beta) for row in settings.beta1_overrides], names, faults)
    beta2 = _by_pattern("beta2_overrides", [(row.pattern, row.beta) for row in settings.beta2_overrides], names, faults)
    if faults:
        raise ConfigError(faults)

    own: dict[str, dict[str, Any]] = {}
    hidden = muon_tensors(decided)
    for name in names:
        if name in hidden:
            own[name] = {"algorithm": "muon", "stacked": stacked.get(name, 1)}
        else:
            betas = (beta1.get(name, settings.beta1), beta2.get(name, settings.beta2))
            own[name] = {"algorithm": "adamw", "rule": settings.adamw_rule or settings.rule, "betas": betas}
    return own


def _muon_groups(settings: OptimizerSettings, decided: DecayPlan) -> list[dict[str, Any]]:
    """The plan's groups, each as one for all tensors with the same settings of their own."""
    own, groups = own_settings(settings, decided), []
    for group in decided.param_groups(lr=settings.lr):
        values = {repr(own[name]): own[name] for name in group["param_names"]}
        for label, part in split_group(group, [repr(own[name]) for name in group["param_names"]]):
            name = f"{group['name']} {values[label]['algorithm']}"
            groups.append({**part, **values[label], "name": name})
    return groups


def _sgdw(settings: OptimizerSettings, decided: DecayPlan) -> torch.optim.Optimizer:
    return SGDW(decided, lr=settings.lr, momentum=settings.momentum, rule=_rules(settings, decided))


_BY_NAME: dict[str, Callable[[OptimizerSettings, DecayPlan], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adam_l2": _adam_l2,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgdw": _sgdw,
}


def _by_pattern(key: str, rows: Iterable[tuple[str, N]], names: Iterable[str], faults: list[str]) -> dict[str, N]:
    """The value of each name that a row's pattern is found in; of the first, where several are."""
    values: dict[str, N] = {}
    for pattern, value in rows:
        try:
            matching = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            faults.append(f"optimizer.{key}: '{pattern}' is no regular expression: {error}")
            continue
        if not matching:
            faults.append(f"optimizer.{key}: '{pattern}' matches no tensor: {did_you_mean(pattern, names)}")
        values = dict.fromkeys(matching, value) | values
    return values
