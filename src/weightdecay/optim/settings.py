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

NOT_SETTINGS = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}
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
    """The optimizer's class and groups as JSON: for each group its parameters' names and every plain setting.

    `stateless` names the parameters that have no state yet, so that the loss of another's is seen.
    """
    named = parameter_names(optimizer, names)
    return {
        "optimizer": type(optimizer).__name__,
        "stateless": [name for p, name in named.items() if not has_state(optimizer, p)],
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
    left_out = NOT_SETTINGS | progress_keys(optimizer) | set(ignore)
    found = [Change(name, "tensor", "present", "missing") for name in saved if name not in asked]
    for name, wanted in asked.items():
        if name not in saved:
            found.append(Change(name, "tensor", "missing", "present"))
            continue
        keys = sorted((wanted.keys() | saved[name].keys()) - left_out)
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


def has_state(optimizer: torch.optim.Optimizer, p: Tensor) -> bool:
    return any(value is not None for value in optimizer.state.get(p, {}).values())


def progress_keys(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """What groups hold of how far the optimizer has come: no settings, so never a matter of choice."""
    theirs = ("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode")  # schedulefree@1.4
    return frozenset({"decay_step", *(theirs if type(optimizer).__module__.startswith("schedulefree") else ())})


def by_parameter(settings: Settings) -> dict[str, dict[str, Any]]:
    """Name -> its group's settings.

    Raises:
        OptimizerError: these are no settings that `settings_by_name` gave.
    """
    groups = settings.get("groups")
    if not isinstance(groups, list) or not all(isinstance(g, Mapping) and "params" in g for g in groups):
        raise OptimizerError("the settings hold no groups with params: give what settings_by_name gave when saving")
    return {
        name: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for name in group["params"]
    }


def plain_setting(value: Any) -> Any:
    """A setting as JSON has it; what JSON cannot hold is named by its type, like `<function>`."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, list | tuple):
        return [plain_setting(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else f"<{type(value).__name__}>"


def names_a_type(value: Any) -> bool:
    """Whether a plain setting is only the name of what it was."""
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")
