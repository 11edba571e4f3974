"""An optimizer's settings keyed by its parameters' names, how two of them differ, and how far each group has come."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.amounts import amount
from weightdecay.errors import OptimizerError, misspelt
from weightdecay.optim.checks import AT_LEAST_ZERO
from weightdecay.optim.control import controlled
from weightdecay.optim.state.names import Names, new_names, parameter_names, unwrapped
from weightdecay.optim.state.values import beyond, decoded, encoded, plain_setting
from weightdecay.probing.progress import progress_keys
from weightdecay.rules import as_rule, spelt

Settings: TypeAlias = dict[str, Any]

# How a step is computed, not what it computes.
NOT_SETTINGS = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}
HARMLESS = {"order", "name"}
_MULTIPLIERS = {"decay_multiplier", "lr_multiplier"}
# What is chosen, though a fresh optimizer may lack it; `initial_lr` is the peak that torch's schedulers start from.
_CHOSEN = {"rule", "peak_lr", "rounding", *_MULTIPLIERS, "name", "initial_lr"}


@dataclass(frozen=True)
class Change:
    """One difference between a saved optimizer and the one that is to go on.

    Args:
        parameter: the tensor's name; empty where it concerns all.
        setting: `weight_decay`, `lr`, …; `dtype of <key>` for state; `tensor` where one side lacks it; `order`, `name`
            of its group.
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


@dataclass(frozen=True)
class GroupSettings:
    """What one group was saved with: settings, which are chosen, and progress, which is not."""

    settings: Mapping[str, Any]
    progress: Mapping[str, Any]


def settings_by_name(optimizer: torch.optim.Optimizer, names: Names = None) -> Settings:
    """The optimizer's class and groups as strict JSON: for each group its parameters' names and every setting.

    `progress` holds, for groups that have any, how far they have come: what steps change in a group, with its type.
    `beyond` holds what its own `state_dict` has beside groups and state.
    `stateless` names the parameters that have no state yet, so that the loss of another's is seen.

    Raises:
        OptimizerError: a parameter has no name, or progress is something that cannot be saved.
    """
    optimizer = unwrapped(optimizer)
    if held := controlled(optimizer):
        held.settle()
    more = beyond(optimizer)
    return _settings_of(optimizer, names, _stepped_keys(optimizer)) | ({"beyond": more} if more else {})


def _stepped_keys(optimizer: torch.optim.Optimizer) -> set[str]:
    """The keys of groups that are progress: what steps change, and tensors beside the settings, put there by steps."""
    beside = {
        key
        for group in optimizer.param_groups
        for key, value in group.items()
        if isinstance(value, Tensor) and key not in optimizer.defaults
    }
    return {"decay_step", *beside, *progress_keys(optimizer)} - _CHOSEN


def _settings_of(optimizer: torch.optim.Optimizer, names: Names, stepped: Collection[str]) -> Settings:
    named, groups = parameter_names(optimizer, names), optimizer.param_groups
    in_progress = [
        {k: encoded(group[k], f"group {index}: {k}", _place(group)) for k in sorted(stepped) if k in group}
        for index, group in enumerate(groups)
    ]
    return {
        "optimizer": type(optimizer).__name__,
        "stateless": [name for p, name in named.items() if not has_state(optimizer, p)],
        "groups": [
            {
                "params": [named[p] for p in group["params"]],
                **plain_group(group, without=stepped),
                **({"progress": progress} if progress else {}),
            }
            for group, progress in zip(groups, in_progress, strict=True)
        ],
    }


def plain_group(group: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """A group's settings as JSON has them, without its tensors."""
    left_out = {"params", "param_names", *without}
    return {key: plain_setting(value) for key, value in group.items() if key not in left_out}


def changes(
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    names: Names = None,
    *,
    ignore: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
) -> list[Change]:
    """What going on with this optimizer would change, compared with the saved settings.

    Args:
        ignore: settings not to compare, such as `lr` where a schedule sets it anew at each step.
        rename: patterns of saved names -> what they are called now, as in `load_state_by_name`.
    """
    if rename is not None:
        settings = renamed_settings(settings, new_names(saved_names(settings), rename))
    return differences(*comparable(settings, optimizer, names), ignore=ignore)


def differences(
    saved: Mapping[str, GroupSettings], asked: Mapping[str, GroupSettings], *, ignore: Collection[str] = ()
) -> list[Change]:
    """The changes from one to the other, tensor by tensor."""
    if isinstance(ignore, str) or not isinstance(ignore, Collection):
        raise OptimizerError(f"ignore is {ignore!r:.60}: give the names of settings, such as ['lr']")
    groups = {id(one): one for one in (*saved.values(), *asked.values())}.values()
    known = {key for one in groups for key in (*one.settings, *one.progress)}
    if odd := misspelt({*map(str, ignore)} - known, known | _CHOSEN | NOT_SETTINGS) if known else []:
        raise OptimizerError([f"ignore has {fault}" for fault in odd])
    found = [Change(name, "tensor", "present", "missing") for name in saved if name not in asked]
    between: dict[tuple[int, int], list[tuple[str, Any, Any]]] = {}  # two groups, compared once for all tensors
    for name, wanted in asked.items():
        if name not in saved:
            found.append(Change(name, "tensor", "missing", "present"))
            continue
        pair = (id(saved[name]), id(wanted))
        if pair not in between:
            between[pair] = _between(saved[name].settings, wanted.settings, ignore)
        found += [Change(name, *difference) for difference in between[pair]]

    if not any(change.setting == "tensor" for change in found) and list(saved) != list(asked):
        found.append(Change("", "order", list(saved), list(asked)))
    return found


def _between(saved: Mapping[str, Any], asked: Mapping[str, Any], ignore: Collection[str]) -> list[tuple[str, Any, Any]]:
    keys = sorted((asked.keys() | saved.keys()) - NOT_SETTINGS - set(ignore))
    pairs = [(key, saved.get(key), asked.get(key)) for key in keys]
    # A multiplier says how a λ or lr came about; where one side does not say it, the λ and lr are compared alone.
    return [
        (key, old, new)
        for key, old, new in pairs
        if old != new and not (key in _MULTIPLIERS and (old is None or new is None))
    ]


def describe(found: Iterable[Change]) -> list[str]:
    """The changes in lines for the user: one for each kind, with the first tensors it concerns."""
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for change in found:
        alike[change.setting, str(change.saved), str(change.asked)].append(change.parameter)

    lines = []
    for (setting, saved, asked), parameters in alike.items():
        if setting == "order":
            lines.append("the parameters come in another order: they are matched by name")
        elif setting == "tensor":
            kind = "tensors that were saved and are not here" if asked == "missing" else "tensors without saved state"
            lines.append(f"{kind}: {', '.join(parameters)}")
        else:
            shown = ", ".join(parameters[:3]) + (", …" if len(parameters) > 3 else "")
            lines.append(f"{setting}: saved {saved}, asked {asked}, for {len(parameters)} tensors ({shown})")
    return lines


def has_state(optimizer: torch.optim.Optimizer, p: Tensor) -> bool:
    return any(value is not None for value in optimizer.state.get(p, {}).values())


# --- reading what was saved


def groups_of(settings: Settings) -> list[dict[str, Any]]:
    """The saved groups, of settings that are some of `settings_by_name`'s, or an error."""
    given: Any = settings  # from a file of anybody's
    groups = given.get("groups") if isinstance(given, Mapping) else None
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) and "params" in group for group in groups):
        raise OptimizerError("the settings hold no groups with params: give what settings_by_name gave when saving")
    wanted: list[tuple[str, Any, Any]] = [
        *((f"params of group {index}", group["params"], list) for index, group in enumerate(groups)),
        *((f"progress of group {index}", group.get("progress", {}), Mapping) for index, group in enumerate(groups)),
        ("stateless", settings.get("stateless", []), list),
        ("beyond", settings.get("beyond", {}), Mapping),
    ]
    faults = [
        f"the settings' {what}: a {'list' if kind is list else 'mapping'} of names is wanted, and this is {value!r:.60}"
        for what, value, kind in wanted
        if not isinstance(value, kind) or not all(isinstance(name, str) for name in value)
    ]
    names = Counter(name for group in groups for name in group["params"]) if not faults else {}
    faults += [
        f"the settings name '{name}' {times} times: a tensor is in one group"
        for name, times in names.items()
        if times > 1
    ]
    if faults:
        raise OptimizerError(faults)
    return groups


def comparable(
    settings: Settings, optimizer: torch.optim.Optimizer, names: Names
) -> tuple[dict[str, GroupSettings], dict[str, GroupSettings]]:
    """The saved settings and the optimizer's own by parameter, with the same keys taken for progress in both."""
    optimizer, groups = unwrapped(optimizer), groups_of(settings)
    # Older files have progress among the settings.
    stepped = _stepped_keys(optimizer) | {key for group in groups for key in group.get("progress", ())}
    own = _settings_of(optimizer, names, stepped)
    if settings.get("optimizer") == own["optimizer"]:
        # What the first steps put into a group is not there in a fresh optimizer, and not always seen on a small twin.
        known = {key for group in own["groups"] for key in group} | _CHOSEN | NOT_SETTINGS
        numbers = {key for group in groups for key, value in group.items() if isinstance(value, int | float)}
        stepped |= numbers - known
    return _by_parameter(groups, stepped), _by_parameter(own["groups"])


def _by_parameter(groups: Iterable[Mapping[str, Any]], stepped: Collection[str] = ()) -> dict[str, GroupSettings]:
    found: dict[str, GroupSettings] = {}
    for group in groups:
        progress = {key: group[key] for key in stepped if key in group} | dict(group.get("progress", {}))
        plain = plain_group(group, without={"progress", *progress})
        found |= dict.fromkeys(group["params"], GroupSettings(plain, progress))
    return found


def saved_names(settings: Settings) -> list[str]:
    return list(dict.fromkeys(name for group in groups_of(settings) for name in group["params"]))


def renamed_settings(settings: Settings, now: Mapping[str, str]) -> Settings:
    """The settings with the names that tensors have now."""
    return {
        **settings,
        "stateless": [now.get(name, name) for name in settings.get("stateless", ())],
        "groups": [
            {**group, "params": [now.get(name, name) for name in group["params"]]} for group in settings["groups"]
        ],
    }


# --- what comes back


def values_coming_back(
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, GroupSettings],
    named: Mapping[Tensor, str],
    *,
    settings: bool,
    ignore: Collection[str],
) -> tuple[list[dict[str, Any]], list[str]]:
    """For each group how far it had come, and with `settings` these, where they differ; and what cannot be had again.

    A group's tensors may have been saved in several groups, which must then agree.
    """
    left_out = {*NOT_SETTINGS, *HARMLESS, *ignore}
    coming, faults = [], []
    for index, group in enumerate(optimizer.param_groups):
        members = list({id(one): one for p in group["params"] if (one := saved.get(named[p]))}.values())
        values: dict[str, Any] = {}
        for key in sorted({key for member in members for key in member.settings} - left_out if settings else ()):
            found: list[Any] = [member.settings.get(key) for member in members]
            if reason := _unkept(key, found, group):
                faults.append(f"group {index}: {reason}")
            elif plain_setting(group.get(key)) != found[0]:
                value = decoded(found[0], group.get(key), _place(group), f"group {index}: {key}")
                values[key] = spelt(as_rule(value)) if key == "rule" else value

        for key in sorted({key for member in members for key in member.progress} - {*ignore}):
            found = [member.progress[key] for member in members if key in member.progress]
            if key == "decay_step":  # of a group that was added later: a schedule of λ has seen one number of steps
                found = [max(found)]
            if any(value != found[0] for value in found):
                faults.append(f"group {index}: its tensors were saved in groups that had come to different {key}")
                continue
            values[key] = decoded(found[0], group.get(key), _place(group), f"group {index}: {key}")
        coming.append(values)
    return coming, faults


def _unkept(key: str, found: Sequence[Any], group: Mapping[str, Any]) -> str:
    """Why a group's tensors cannot go back to the values of a setting with which they were saved; empty if they can."""
    value, own = found[0], plain_setting(group.get(key))
    if any(other != value for other in found):
        return f"its tensors were saved with different {key}, so it cannot be kept"
    if own == value:
        return ""
    if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        return f"{key} was saved by the name of its type, {value}, and cannot be kept"
    if key in group and (
        not _is_alike(value, own) or (key in AT_LEAST_ZERO and amount(own) is not None and amount(value) is None)
    ):
        return f"{key} was saved as {value!r}, which it cannot be: it is {group[key]!r}"
    return ""


def _is_alike(saved: Any, own: Any) -> bool:
    """Whether a saved setting is of the kind of today's: a number is no text, and a pair no number."""
    if own is None or saved is None or isinstance(own, str | Mapping):
        return True  # text and what JSON cannot hold may stand for anything
    if isinstance(saved, Mapping):
        return not isinstance(own, list) and saved.keys() == {"float"}  # NaN and the infinities
    if isinstance(own, list):
        return isinstance(saved, list) and len(saved) == len(own) and all(map(_is_alike, saved, own))
    return isinstance(saved, int | float) and isinstance(saved, bool) == isinstance(own, bool)


def put_values(group: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Write values into a group; a tensor that is there already is filled, for others may hold it."""
    for key, value in values.items():
        present: Any = group.get(key)
        tensors = isinstance(present, Tensor) and isinstance(value, Tensor)
        if tensors and (present.shape, present.dtype) == (value.shape, value.dtype):
            present.copy_(value)
        else:
            group[key] = value


def _place(group: Mapping[str, Any]) -> torch.device:
    return group["params"][0].device if group["params"] else torch.device("cpu")
