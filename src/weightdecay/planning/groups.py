"""A plan's tensors as parameter groups of any torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from weightdecay.amounts import amount
from weightdecay.errors import PlanError, misspelt
from weightdecay.planning.planned import PlannedTensor
from weightdecay.planning.policies.author_rates import share_of

# What a group may hold beside the settings of its optimizer: ours, and those that torch's schedulers write.
_BESIDE = frozenset({
    "params", "param_names", "name", "rule", "rounding", "peak_lr", "lr_multiplier", "decay_multiplier", "decay_step",
    "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr",
})  # fmt: skip


class _Shares(NamedTuple):
    """What the tensors of one group have in common."""

    lr_multiplier: float
    multiplier: float
    weight_decay: float
    lr: Any  # a number, or a tensor that captured graphs look at

    @property
    def order(self) -> tuple[bool, float, float, float, float]:
        """Groups at the plain η first, and in them the decaying ones."""
        return self.lr_multiplier != 1.0, self.lr_multiplier, -self.multiplier, -self.weight_decay, float(self.lr)

    @property
    def name(self) -> str:
        decay = "decay" if self.multiplier == 1.0 else f"decay×{self.multiplier:g}"
        name = "no_decay" if self.multiplier == 0.0 else decay
        return name if self.lr_multiplier == 1.0 else f"{name} lr×{self.lr_multiplier:g}"


def param_groups(
    tensors: Iterable[PlannedTensor],
    parameters: Mapping[str, Any],
    *,
    lr: Any,
    names: bool = True,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The groups, decaying ones first; frozen tensors are in none. `DecayPlan.param_groups` says the rest."""
    if (rate := amount(lr)) is None:
        raise PlanError(f"lr is {lr!r}: give the learning rate, a finite number of at least 0")
    lr = lr if isinstance(lr, torch.Tensor) else rate

    members: dict[tuple[float, ...], tuple[_Shares, dict[int, tuple[str, Any]]]] = {}
    for tensor in tensors:
        if not tensor.frozen:
            shares = _shares(tensor, lr)
            _, group = members.setdefault(shares.order, (shares, {}))
            group.setdefault(id(parameters[tensor.name]), (tensor.name, parameters[tensor.name]))
    _refuse_torn(group for _, group in members.values())

    return [
        {
            "params": [parameter for _, parameter in group.values()],
            **({"param_names": [name for name, _ in group.values()]} if names else {}),
            "weight_decay": shares.weight_decay,
            "decay_multiplier": shares.multiplier,
            "name": shares.name,
            "lr": shares.lr,
            "lr_multiplier": shares.lr_multiplier,
            **options,
        }
        for _, (shares, group) in sorted(members.items())
    ]


def _shares(tensor: PlannedTensor, lr: Any) -> _Shares:
    """A tensor's λ and η with its shares of the run's."""
    if tensor.lr is None:
        return _Shares(tensor.lr_multiplier, tensor.multiplier, tensor.weight_decay, lr * tensor.lr_multiplier)
    share = share_of(tensor.lr, float(lr))
    own = lr * share if isinstance(lr, torch.Tensor) and float(lr) else tensor.lr
    return _Shares(share, tensor.multiplier, tensor.weight_decay, own)


def _refuse_torn(groups: Iterable[Mapping[int, tuple[str, Any]]]) -> None:
    """A flat parameter of FSDP1 can be in one group only."""
    seen: dict[int, str] = {}
    for members in groups:
        for key, (name, _) in members.items():
            if key in seen:
                raise PlanError(
                    f"FSDP1 has flattened {seen[key]} and {name} into one tensor, but they decay differently: wrap "
                    "with use_orig_params=True, or use fully_shard"
                )
            seen[key] = name


def misspelt_keys(group: Mapping[str, Any], settings: Iterable[str]) -> list[str]:
    """Keys of a group that look like one of its optimizer's settings, or of a plan's, and are none."""
    return misspelt(group, {*settings, *_BESIDE})
