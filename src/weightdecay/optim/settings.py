"""An optimizer's settings keyed by its parameters' names, and how two of them differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError

# A model, (name, tensor) pairs by name, or names in the order of the groups; None: the optimizer's own `param_names`.
Names: TypeAlias = nn.Module | Mapping[str, Tensor] | Sequence[str] | None
Settings: TypeAlias = dict[str, Any]

NOT_SETTINGS = {"params", "param_names", "foreach", "fused", "capturable", "differentiable", "decay_step"}
HARMLESS = {"order", "name"}
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)|^(module)(?=\.)")


@dataclass(frozen=True)
class Change:
    """One difference between a saved optimizer and the one that is to go on.

    Args:
        parameter: the tensor's name; empty where it concerns all.
        setting: `weight_decay`, `lr`, …; `tensor` where one side lacks it; `order`, `name` of its group.
        saved, asked: the two values.
    """

    parameter: str
    setting: str
    saved: Any
    asked: Any

    @property
    def harmless(self) -> bool:
        """Whether matching by name settles it, so that no choice is needed."""
        return self.setting in HARMLESS


def settings_by_name(optimizer: torch.optim.Optimizer, names: Names = None) -> Settings:
    """The optimizer's class and groups as JSON: for each group its parameters' names and every plain setting."""
    named = parameter_names(optimizer, names)
    return {
        "optimizer": type(optimizer).__name__,
        "groups": [
            {
                "params": [named[p] for p in group["params"]],
                **{key: plain_setting(value) for key, value in group.items() if key not in ("params", "param_names")},
            }
            for group in optimizer.param_groups
        ],
    }


def changes(
    optimizer: torch.optim.Optimizer, settings: Settings, names: Names = None, *, ignore: Collection[str] = ()
) -> list[Change]:
    """What going on with this optimizer would change, compared with the saved settings.

    Args:
        ignore: settings not to compare, such as `lr` where a schedule sets it anew at each step.
    """
    saved, asked = by_parameter(settings), by_parameter(settings_by_name(optimizer, names))
    found = [Change(name, "tensor", "present", "missing") for name in saved if name not in asked]
    for name, wanted in asked.items():
        if name not in saved:
            found.append(Change(name, "tensor", "missing", "present"))
            continue
        keys = sorted((wanted.keys() | saved[name].keys()) - NOT_SETTINGS - set(ignore))
        pairs = [(key, saved[name].get(key), wanted.get(key)) for key in keys]
        found += [Change(name, key, old, new) for key, old, new in pairs if old != new]
    if not any(change.setting == "tensor" for change in found) and list(saved) != list(asked):
        found.append(Change("", "order", list(saved), list(asked)))
    return found


def describe(found: Iterable[Change]) -> list[str]:
    """The changes in lines for the user: one for each kind, with the first tensors it concerns."""
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for change in found:
        if change.setting == "order":
            alike["order", "", ""].append("")
        else:
            alike[change.setting, str(change.saved), str(change.asked)].append(change.parameter)
    lines = []
    for (setting, saved, asked), parameters in alike.items():
        if setting == "order":
            lines.append("the parameters come in another order: they are matched by name")
            continue
        if setting == "tensor":
            kind = "tensors that were saved and are not here" if asked == "missing" else "tensors without saved state"
            lines.append(f"{kind}: {', '.join(parameters)}")
            continue
        shown = ", ".join(parameters[:3]) + (", …" if len(parameters) > 3 else "")
        lines.append(f"{setting}: saved {saved}, asked {asked}, for {len(parameters)} tensors ({shown})")
    return lines


def parameter_names(optimizer: torch.optim.Optimizer, names: Names = None) -> dict[Tensor, str]:
    """Parameter -> name, in the order of the groups. Names of wrappers (compile, FSDP, DDP) are left out.

    Raises:
        OptimizerError: some parameter has no name, or a name is given twice.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if names is None:
        listed = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
        named = dict(zip(params, listed, strict=True)) if len(listed) == len(params) else {}
    elif isinstance(names, nn.Module | Mapping):
        pairs = names.named_parameters() if isinstance(names, nn.Module) else names.items()
        found = {p: name for name, p in pairs}
        named = {p: found[p] for p in params if p in found}
    else:
        if len(names) != len(params):
            raise OptimizerError(f"{len(names)} names for {len(params)} parameters: give one for each, in their order")
        named = dict(zip(params, names, strict=True))
    named = {p: _WRAPPERS.sub("", name).lstrip(".") for p, name in named.items()}
    if len(named) < len(params):
        raise OptimizerError(
            f"{len(params) - len(named)} of {len(params)} parameters have no name: give the model, or build the "
            "optimizer from a plan or from model.named_parameters()"
        )
    if twice := sorted({name for name in named.values() if list(named.values()).count(name) > 1}):
        raise OptimizerError(f"names of more than one parameter: {', '.join(twice)}")
    return named


def by_parameter(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in group.items() if key != "params"}
        for group in settings["groups"]
        for name in group["params"]
    }


def plain_setting(value: Any) -> Any:
    """A setting as JSON has it; what JSON cannot hold is named by its type."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, list | tuple):
        return [plain_setting(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else type(value).__name__
