"""The optimizer that a configuration names, on a decay plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay.errors import ConfigError
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW
from weightdecay.planning.plan import DecayPlan, plan
from weightdecay.planning.policies import Override
from weightdecay.recipes.settings import OptimizerSettings


def decay_plan(model: nn.Module, settings: OptimizerSettings) -> DecayPlan:
    """Which tensors decay, and by how much: the policy, then the multipliers.

    Raises:
        ConfigError: a multiplier that cannot be read, or whose pattern matches no tensor.
    """
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
        _head_beside(decided.param_groups(lr=settings.lr)),
        lr=settings.lr,
        momentum=settings.momentum,
        adjust_lr_fn=settings.muon_scale,
        adamw_betas=(settings.beta1, settings.beta2),
        adamw_eps=settings.eps,
        rule=settings.rule,
        fused=True,
    )


def _head_beside(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The plan's groups, matrices to Muon and, as in its papers, everything else to AdamW: tables, vectors and the
    output head, which an untied decoder has as one more linear layer."""
    split = []
    for group in groups:
        members = list(zip(group["param_names"], group["params"], strict=True))
        for algorithm in ("muon", "adamw"):
            chosen = [(name, tensor) for name, tensor in members if _algorithm(name, tensor) == algorithm]
            if chosen:
                names, tensors = map(list, zip(*chosen, strict=True))
                own = {"name": f"{group['name']} {algorithm}", "algorithm": algorithm}
                split.append({**group, **own, "param_names": names, "params": tensors})
    return split


def _algorithm(name: str, tensor: Tensor) -> str:
    table_or_head = name.startswith(("embedding.", "positions.", "value_embeddings.", "smear.", "head."))
    return "adamw" if table_or_head or tensor.ndim < 2 else "muon"


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
