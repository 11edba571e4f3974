"""Optimizer state keyed by name, and what a resume would change.

torch loads state by position: two swapped parameters of one shape swap their moments without a word, and the saved lr
and λ replace the ones just asked for. Here a tensor is found by its name, every fault is reported before anything is
loaded, and a changed setting is obeyed by an explicit choice, from the first step on. Saving never steps.

    tensors, settings = state_by_name(optimizer, model), settings_by_name(optimizer, model)
    save_file(tensors, "optimizer.safetensors")                        # settings are JSON
    load_state_by_name(optimizer, tensors, settings, names=model, on_change="override")
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.settings import (
    HARMLESS,
    NOT_SETTINGS,
    Change,
    Names,
    Settings,
    by_parameter,
    changes,
    describe,
    names_a_type,
    parameter_names,
    plain_setting,
    progress_keys,
)  # fmt: skip

OnChange = Literal["keep", "override"]

_PYTHON_NUMBERS = {"int": int, "float": float, "bool": bool}  # state that is no tensor is saved as "<key>:<type>"
_PRIMES = (2, 3, 5, 7, 11, 13, 17)


def state_by_name(optimizer: torch.optim.Optimizer, names: Names = None) -> dict[str, Tensor]:
    """The optimizer's state as `"<parameter>/<key>"` -> tensor, ready for safetensors; empty before the first step.

    A Python number becomes a scalar tensor under `"<parameter>/<key>:int"` (or `float`, `bool`). Sharded state comes
    whole, for which all ranks must ask together.

    Raises:
        OptimizerError: a parameter has no name, or the state holds what is neither tensor nor number.
    """
    named = parameter_names(optimizer, names)
    tensors: dict[str, Tensor] = {}
    faults = []
    for p, state in optimizer.state.items():
        if p not in named or not isinstance(state, Mapping):
            faults.append(f"{type(optimizer).__name__} keeps state that belongs to no parameter of its groups")
            continue
        try:
            tensors |= flattened(named[p], state)
        except OptimizerError as error:
            faults += error.faults
    if faults:
        raise OptimizerError(list(dict.fromkeys(faults)))
    return tensors


def flattened(name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """One parameter's state as `"<name>/<key>"` -> tensor.

    Raises:
        OptimizerError: something in it is neither tensor nor number.
    """
    tensors: dict[str, Tensor] = {}
    faults = []
    for key, value in state.items():
        if isinstance(value, Tensor):
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            tensors[f"{name}/{key}"] = whole.detach().contiguous()
        elif type(value).__name__ in _PYTHON_NUMBERS:
            tensors[f"{name}/{key}:{type(value).__name__}"] = torch.tensor(value, dtype=_scalar_dtype(value))
        elif value is not None:
            faults.append(f"{name}/{key} is a {type(value).__name__}: only tensors and numbers can be saved")
    if faults:
        raise OptimizerError(faults)
    return tensors


def load_state_by_name(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    settings: Settings | None = None,
    names: Names = None,
    *,
    on_change: OnChange | None = None,
    ignore: Collection[str] = (),
) -> list[Change]:
    """Load state and settings by name, or nothing at all.

    Args:
        tensors: what `state_by_name` gave.
        settings: what `settings_by_name` gave; without it the optimizer's own settings stay, unchecked.
        on_change: `override` goes on with the settings just asked for, and lets tensors come and go; `keep` goes back
            to the saved ones. Without a choice any change but of order or group names is an error.
        ignore: settings that are neither compared nor loaded.

    Returns:
        The changes that were found.

    Raises:
        OptimizerError: with every name: missing or unknown tensors, wrong shapes, state of another optimizer, or
            changes without a choice. Nothing is loaded then.
    """
    named = parameter_names(optimizer, names)
    if on_change not in (None, "keep", "override"):
        raise OptimizerError(f"unknown on_change '{on_change}': {did_you_mean(str(on_change), ('keep', 'override'))}")
    states, expected = _states(tensors), _expected_states(optimizer)
    if settings is not None:
        found = changes(optimizer, settings, names, ignore=ignore)
    else:
        found = _tensor_changes(states, {name: bool(expected[p]) for p, name in named.items()})
    kind, faults = type(optimizer).__name__, _entry_faults(tensors, settings, named)
    for group in optimizer.param_groups:
        for p in group["params"]:
            faults += _state_faults(kind, group, p, named[p], states.get(named[p], {}), expected[p])
    saved_by = settings["optimizer"] if settings else ""
    if faults and saved_by not in ("", kind):  # whose settings need not be compared, then
        raise OptimizerError([f"the state is of {saved_by}, and this optimizer is {kind}", *faults])
    faults += _choice_faults(found, on_change)
    kept = _kept_settings(optimizer, settings, named, ignore, faults) if settings and on_change == "keep" else []
    if faults:
        raise OptimizerError(faults)
    for p, name in named.items():
        if name in states:
            kept_as = expected[p] or {}
            optimizer.state[p] = {key: _placed(value, p, kept_as.get(key)) for key, value in states[name].items()}
        elif not isinstance(optimizer, torch.optim.Adagrad):  # which alone has state before its first step
            optimizer.state.pop(p, None)
    for group, values in zip(optimizer.param_groups, kept, strict=False):
        _set_group(group, values)
    _restore_progress(optimizer, settings, named)
    return found


# --- faults


def _tensor_changes(states: Mapping[str, Any], asked: Mapping[str, bool]) -> list[Change]:
    """Without settings only the state tells which parameters were there. `asked`: name -> whether it keeps state."""
    new = [Change(name, "tensor", "missing", "present") for name in asked if asked[name] and name not in states]
    return (new if states else []) + [Change(name, "tensor", "present", "missing") for name in states.keys() - asked]


def _entry_faults(tensors: Mapping[str, Tensor], settings: Settings | None, named: Mapping[Tensor, str]) -> list[str]:
    """Entries that are no state, and where the settings tell, state that was lost or is of nobody."""
    faults = [f"'{full}' is no state: entries are named <parameter>/<key>" for full in tensors if "/" not in full]
    if settings is None:
        return faults
    saved, present = by_parameter(settings), {full.rpartition("/")[0] for full in tensors if "/" in full}
    if "stateless" in settings:
        lost = saved.keys() & set(named.values()) - present - set(settings["stateless"])
        faults += [f"{name}: it had state when the settings were saved, and none is here" for name in sorted(lost)]
    strangers = present - saved.keys() - set(named.values())
    return faults + [
        f"{name}: state of a tensor that neither the model nor the settings have" for name in sorted(strangers)
    ]


def _choice_faults(found: Sequence[Change], on_change: OnChange | None) -> list[str]:
    pressing = [change for change in found if not change.harmless]
    if on_change == "override" or not pressing:
        return []
    if on_change == "keep":
        tensors = [change for change in pressing if change.setting == "tensor"]
        return [f"{line}; on_change='keep' cannot bring it back" for line in describe(tensors)]
    return [
        f"{line}: choose on_change='override' for what is asked or 'keep' for what was saved"
        for line in describe(pressing)
    ]


def _state_faults(
    kind: str,
    group: Mapping[str, Any],
    p: Tensor,
    name: str,
    state: Mapping[str, Any],
    expected: Mapping[str, Any] | None,
) -> list[str]:
    if not state or expected is None:
        return []
    faults = [f"{name}/{key}: {kind} has no such state; it is another optimizer's" for key in state.keys() - expected]
    faults += [f"{name}/{key}: {kind} needs it and it is missing" for key in expected.keys() - state.keys()]
    for key in state.keys() & expected.keys():
        shape = tuple(getattr(state[key], "shape", ()))
        wanted = _scaled_shape(expected[key], group, p)
        if wanted is not None and shape != wanted:
            faults.append(f"{name}/{key}: saved with shape {shape}, this model needs {wanted}")
    return sorted(faults)


def _expected_states(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Any] | None]:
    """For each parameter the state that the optimizer keeps for a tensor of its kind of shape and dtype.

    None for optimizers that are neither torch's nor ours: their state may depend on more than that.
    """
    ours = type(optimizer).__module__.partition(".")[0] in ("torch", "weightdecay")
    expected: dict[Tensor, dict[str, Any] | None] = {}
    for group in optimizer.param_groups:
        known: dict[Any, dict[str, Any] | None] = {}
        for p in group["params"]:
            key = (_twin_shape(group, p), p.dtype)
            if key not in known:
                known[key] = _twin_state(optimizer, group, p) if ours and len(key[0]) == p.ndim else None
            expected[p] = known[key]
    return expected


def _twin_shape(group: Mapping[str, Any], p: Tensor) -> tuple[int, ...]:
    """A small shape of p's kind, with a prime for each axis: as wide or tall as p, and of as many stacked matrices."""
    stacked = group.get("stacked", 1)
    shape = [prime for prime in _PRIMES if prime > stacked][: p.ndim]
    if p.ndim > 1 and p.shape[-2] >= stacked * p.shape[-1]:
        shape[-2:] = shape[:-3:-1]
    if stacked > 1:
        shape[-2] *= stacked
    return tuple(shape)


def _twin_state(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> dict[str, Any] | None:
    """What a step leaves behind, seen on a twin of the optimizer with a few numbers in a tensor like p."""
    tiny = nn.Parameter(torch.zeros(_twin_shape(group, p), dtype=p.dtype))
    tiny.grad = torch.zeros_like(tiny)
    twin = object.__new__(type(optimizer))
    twin.__setstate__(
        {**optimizer.__getstate__(), "state": defaultdict(dict), "param_groups": [{**group, "params": [tiny]}]}
    )
    function: Any = type(optimizer).step
    try:
        getattr(function, "__wrapped__", function)(twin)  # not the hooks: nobody is to count this step
    except (RuntimeError, TypeError):  # it wants sparse gradients or a closure
        return None
    return {key: value for key, value in twin.state[tiny].items() if value is not None}


def _scaled_shape(expected: Any, group: Mapping[str, Any], p: Tensor) -> tuple[int, ...] | None:
    """The twin's shape with p's sizes for the twin's; None where an axis is neither p's nor 1."""
    stacked, twin = group.get("stacked", 1), _twin_shape(group, p)
    sizes = {1: 1, stacked: stacked, **dict(zip(twin, p.shape, strict=False))}
    if stacked > 1:
        sizes[twin[-2] // stacked] = p.shape[-2] // stacked
    shape = tuple(getattr(expected, "shape", ()))
    return tuple(sizes[n] for n in shape) if all(n in sizes for n in shape) else None


# --- values


def _states(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    states: dict[str, dict[str, Any]] = defaultdict(dict)
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        key, _, kind = key.partition(":")
        states[name][key] = _PYTHON_NUMBERS[kind](value.item()) if kind in _PYTHON_NUMBERS else value
    return states


def _placed(value: Any, p: Tensor, expected: Any) -> Any:
    """A copy where and as the optimizer keeps it."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim and hasattr(p, "device_mesh"):
        from torch.distributed.tensor import Replicate, distribute_tensor

        like: Any = p
        placements = like.placements if value.shape == p.shape else [Replicate()] * like.device_mesh.ndim
        dtype = expected.dtype if isinstance(expected, Tensor) else value.dtype
        return distribute_tensor(value.to(device=p.device, dtype=dtype), like.device_mesh, placements)
    if not isinstance(expected, Tensor):
        return value.to(p.device, copy=True) if value.ndim else value.clone()
    device = p.device if value.ndim else expected.device
    return value.to(device=device, dtype=expected.dtype, copy=True)


def _kept_settings(
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    named: Mapping[Tensor, str],
    ignore: Collection[str],
    faults: list[str],
) -> list[dict[str, Any]]:
    """For each group the saved values that differ from its own; a fault where they cannot be had again."""
    saved = by_parameter(settings)
    left_out = NOT_SETTINGS | HARMLESS | progress_keys(optimizer) | set(ignore)
    kept = []
    for index, group in enumerate(optimizer.param_groups):
        members = [saved[named[p]] for p in group["params"] if named[p] in saved]
        values = {}
        for key in sorted({key for member in members for key in member} - left_out):
            if any(member.get(key) != members[0].get(key) for member in members):
                faults.append(f"group {index}: its tensors were saved with different {key}, so it cannot be kept")
            value = members[0].get(key)
            if plain_setting(group.get(key)) == value:
                continue
            if names_a_type(value):
                faults.append(f"group {index}: {key} was saved by the name of its type, {value}, and cannot be kept")
            values[key] = value
        kept.append(values)
    return kept


def _set_group(group: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        present = group.get(key)
        if isinstance(present, Tensor):
            present.fill_(value)
        else:
            group[key] = tuple(value) if isinstance(present, tuple) else value


def _restore_progress(optimizer: torch.optim.Optimizer, settings: Settings | None, named: Mapping[Tensor, str]) -> None:
    """How far each group had come, such as the number of steps that a λ schedule has seen."""
    saved = by_parameter(settings) if settings else {}
    for group in optimizer.param_groups:
        members = [saved[named[p]] for p in group["params"] if named[p] in saved]
        for key in progress_keys(optimizer):
            if found := [member[key] for member in members if key in member]:
                group[key] = max(found)


def _scalar_dtype(value: float) -> torch.dtype:
    return torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64
