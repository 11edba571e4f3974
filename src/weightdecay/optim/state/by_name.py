"""Save an optimizer's state by name, and load it: all of it, or nothing.

torch loads state by position: two swapped parameters of one shape swap their moments without a word, and the saved lr
and λ replace the ones just asked for. Here a tensor is found by its name, every fault is reported before anything is
loaded, and a changed setting is obeyed by an explicit choice, from the first step on. Saving never steps.

    from safetensors.torch import save_file
    from weightdecay import load_state_by_name, settings_by_name, state_by_name

    tensors, settings = state_by_name(optimizer, model), settings_by_name(optimizer, model)
    save_file(tensors, "optimizer.safetensors")                        # settings are JSON
    load_state_by_name(optimizer, tensors, settings, names=model, on_change="override")
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean, gathered
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.decay import laid_out_like
from weightdecay.optim.fitting import is_left_over
from weightdecay.optim.grouping import unlike_in_one_tensor
from weightdecay.optim.roundings import COUNTS, ROUNDED, STREAM, group_rounding
from weightdecay.optim.state.expected import Expected, State, dtype_changes, expected_states, fitting_faults, impossible
from weightdecay.optim.state.names import Names, new_names, parameter_names, unwrapped
from weightdecay.optim.state.settings import (
    Change,
    GroupSettings,
    Settings,
    comparable,
    describe,
    differences,
    has_state,
    put_values,
    renamed_settings,
    saved_names,
    values_coming_back,
)
from weightdecay.optim.state.tree import flattened, unflattened
from weightdecay.optim.state.values import plain_setting, restore

OnChange = Literal["keep", "override"]


def state_by_name(optimizer: torch.optim.Optimizer, names: Names = None) -> dict[str, Tensor]:
    """The optimizer's state as `"<parameter>/<key>"` -> tensor, ready for safetensors; empty before the first step.

    Numbers, text, lists, tuples and dicts are written as `tree` says. The tensors are the optimizer's own, which its
    next step changes. Sharded state comes whole, for which all ranks must ask together.

    Raises:
        OptimizerError: a parameter has no name, or the state holds what cannot be saved, each with its path and type.
    """
    optimizer = unwrapped(optimizer)
    named = parameter_names(optimizer, names)
    tensors: dict[str, Tensor] = {}
    faults: list[str] = []
    for p, state in optimizer.state.items():
        if p not in named or not isinstance(state, Mapping):
            # Others keep it under text.
            owner = f"a tensor of shape {tuple(p.shape)}" if hasattr(p, "shape") else repr(p)
            faults.append(f"{type(optimizer).__name__} keeps state of {owner}, which is no parameter of its groups")
        elif has_state(optimizer, p):
            with gathered(faults):
                tensors |= flattened(named[p], state)
    if faults:
        raise OptimizerError(list(dict.fromkeys(faults)))
    return tensors


def load_state_by_name(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    settings: Settings | None = None,
    names: Names = None,
    *,
    on_change: OnChange | None = None,
    ignore: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
) -> list[Change]:
    """Load state and settings by name, or nothing at all.

    Args:
        tensors: what `state_by_name` gave.
        settings: what `settings_by_name` gave; without it the optimizer's own settings stay, unchecked.
        on_change: `override` goes on with the settings just asked for, lets tensors come and go, and converts state
            to the dtype that the optimizer keeps; `keep` goes back to the saved settings, and lets tensors come.
            Without a choice any change but of order or group names is an error.
        ignore: settings that are neither compared nor loaded.
        rename: patterns of saved names -> what they are called now, such as `{"fc.*": "linear.*"}`.

    Returns:
        The changes that were found.

    Raises:
        OptimizerError: with every name: missing or unknown tensors, wrong shapes, state of another optimizer or that
            no run can have left, or changes without a choice. Nothing is loaded then.
    """
    choice: Any = on_change  # whatever the caller gave, be its type what it may
    if choice is not None and not (isinstance(choice, str) and choice in ("keep", "override")):
        raise OptimizerError(f"unknown on_change '{on_change}': {did_you_mean(str(on_change), ('keep', 'override'))}")
    optimizer = unwrapped(optimizer)
    kind, groups = type(optimizer).__name__, optimizer.param_groups
    named = parameter_names(optimizer, names)
    states, settings, faults = _read(tensors, settings, rename)
    before, asked = comparable(settings, optimizer, names) if settings is not None else ({}, {})
    found = differences(before, asked, ignore=ignore)
    coming, unkept = values_coming_back(optimizer, before, named, settings=on_change == "keep", ignore=ignore)

    if isinstance(optimizer, DecayingOptimizer):
        for index, (group, values) in enumerate(zip(groups, coming, strict=True)):
            unkept += optimizer.faults_in({**group, **values}, index, optimizer.defaults, theirs=group)
    for key in {key for values in coming for key in values}:
        pairs = zip(groups, coming, strict=True)
        unkept += unlike_in_one_tensor(
            groups, key, [plain_setting((group | values).get(key)) for group, values in pairs]
        )
    if unkept:
        raise OptimizerError([*faults, *_unchosen(found, on_change, kind), *unkept])

    faults += _all_elsewhere(states, named.values())
    expected = expected_states(optimizer, named, coming)
    if settings is None:
        found = _came_or_went(states, expected)
    else:
        if settings.get("optimizer") == kind:
            faults += _leave_out_what_settings_kept(optimizer, before, named, states, expected)
        faults += _lost_and_unknown(states, set(named.values()), settings)
    dtypes, unfit, damage = _judged(kind, states, expected)
    found += dtypes
    saved_by = (settings or {}).get("optimizer", "")
    if (unfit or faults) and saved_by not in ("", kind):  # whose settings need not be compared, then
        raise OptimizerError([f"the state is of {saved_by}, and this optimizer is {kind}", *faults, *unfit])

    if faults := [*faults, *unfit, *damage, *_unchosen(found, on_change, kind)]:
        raise OptimizerError(faults)

    if settings is not None:
        restore(optimizer, settings.get("beyond", {}))
    _put_state(optimizer, states, expected)
    for group, values in zip(optimizer.param_groups, coming, strict=True):  # others than before, where it has loaded
        put_values(group, values)
    return found


def _read(
    tensors: Mapping[str, Tensor], settings: Settings | None, rename: Mapping[str, str] | None
) -> tuple[dict[str, State], Settings | None, list[str]]:
    """Parameter -> its state, and the settings, under the names of today; and faults of entries that cannot be read."""
    if not isinstance(tensors, Mapping):
        raise OptimizerError(f"tensors is {tensors!r:.60}: give what state_by_name gave when saving")
    entries: dict[str, dict[str, Tensor]] = defaultdict(dict)
    faults = []
    for full, value in tensors.items():
        name, slash, path = str(full).rpartition("/")
        if not slash:
            faults.append(f"'{full}' is no state: entries are named <parameter>/<key>")
        elif not isinstance(value, Tensor):
            faults.append(f"{full}: a tensor is wanted, and it is {value!r:.60}")
        elif value.layout is not torch.strided or value.is_meta or value.is_quantized:
            held = "meta" if value.is_meta else "quantised" if value.is_quantized else value.layout
            faults.append(f"{full}: a dense tensor with its numbers is wanted, and this one is {held}")
        else:
            entries[name][path] = value

    if rename is not None:
        now = new_names([*entries, *(saved_names(settings) if settings is not None else ())], rename)
        entries = defaultdict(dict, {now[name]: paths for name, paths in entries.items()})
        settings = renamed_settings(settings, now) if settings is not None else None

    states: dict[str, State] = {name: {} for name in entries}
    for name, paths in entries.items():
        with gathered(faults, before=f"{name}/"):
            states[name] = unflattened(paths)
    return states, settings, faults


def _all_elsewhere(states: Mapping[str, State], here: Collection[str]) -> list[str]:
    """Fault: state of other names alone, of which nothing would be loaded."""
    if not states or not here or not states.keys().isdisjoint(here):
        return []
    first, own = (", ".join(sorted(names)[:3]) for names in (states, here))
    words = "give `rename`, patterns of the saved names and what they are called now, or the model as `names`"
    return [f"no tensor that was saved ({first} …) is one of those here ({own} …): {words}"]


def _came_or_went(states: Mapping[str, State], expected: Sequence[Expected]) -> list[Change]:
    """Without settings only the state tells which parameters were there."""
    new = [Change(one.name, "tensor", "missing", "present") for one in expected if one.kept and one.name not in states]
    gone = sorted(states.keys() - {one.name for one in expected})
    return (new if states else []) + [Change(name, "tensor", "present", "missing") for name in gone]


def _lost_and_unknown(states: Mapping[str, State], here: set[str], settings: Settings) -> list[str]:
    """Faults: state that was lost, and state of nobody, as the settings tell."""
    in_settings = set(saved_names(settings))
    lost = in_settings & here - states.keys() - set(settings["stateless"]) if "stateless" in settings else set()
    return [f"{name}: it had state when the settings were saved, and none is here" for name in sorted(lost)] + [
        f"{name}: state of a tensor that neither the model nor the settings have"
        for name in sorted(states.keys() - in_settings - here)
    ]


def _leave_out_what_settings_kept(
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, GroupSettings],
    named: Mapping[Tensor, str],
    states: dict[str, State],
    expected: Sequence[Expected],
) -> list[str]:
    """Drop the state that goes with a setting of before, and look for none that goes with one of now, but for faults.

    What a rounding or a rule remembers of the weights begins with them as they are; of other state, such as the
    maximum that `amsgrad` keeps, it is not known what it would be.
    """
    saved = {one.name: state for one in expected if one.is_known and (state := states.get(one.name))}
    unlike = [one for one in expected if one.name in saved and saved[one.name].keys() != one.kept.keys()]
    as_saved, unkept = values_coming_back(optimizer, before, named, settings=True, ignore=()) if unlike else ([], [])
    kept_before = expected_states(optimizer, named, as_saved) if unlike and not unkept else []
    before_by_name = {one.name: one.kept for one in kept_before if one.is_known}
    faults = []
    for one in unlike:
        if one.name not in before_by_name:
            continue
        was, now, kind = before_by_name[one.name], one.kept, type(optimizer).__name__
        state = {
            key: value
            for key, value in states[one.name].items()
            if key in now or not (key in was or is_left_over(key, one.group))
        }
        states[one.name], one.kept = state, {key: value for key, value in now.items() if key in was or key in state}
        faults += [
            f"{one.name}/{key}: {kind} keeps it with the settings that are asked for and did not with those that were "
            "saved: choose on_change='keep', or make the optimizer with the settings that it had"
            for key in sorted(now.keys() - was.keys() - state.keys() - _beginning_by_itself(optimizer, one.group))
        ]
    return faults


def _judged(
    kind: str, states: Mapping[str, State], expected: Sequence[Expected]
) -> tuple[list[Change], list[str], list[str]]:
    """Dtypes that change; state that is not this optimizer's; and what is no optimizer's."""
    found: list[Change] = []
    unfit: list[str] = []
    damage: list[str] = []
    for one in expected:
        if one.is_known:
            state = states.get(one.name, {})
            unfit += fitting_faults(kind, one, state)
            dtypes, lossy = dtype_changes(one, state)
            found += dtypes
            damage += [*impossible(one, state), *lossy]
    return found, unfit, damage


def _unchosen(found: Sequence[Change], on_change: OnChange | None, kind: str) -> list[str]:
    """Faults: changes that nobody has chosen, or that the choice cannot bring about."""
    pressing = [change for change in found if not change.harmless]
    if on_change is None:
        wanted = "choose on_change='override' for what is asked or 'keep' for what was saved"
        return [f"{line}: {wanted}" for line in describe(pressing)]
    if on_change == "override":
        return []
    gone = [change for change in pressing if change.setting == "tensor" and change.asked == "missing"]
    other = [change for change in pressing if change.setting.startswith("dtype of ")]
    return [f"{line}; on_change='keep' cannot bring it back" for line in describe(gone)] + [
        f"{line}; on_change='keep' cannot, {kind} steps with the dtype it makes: choose 'override', or "
        "make the optimizer, or its weights, as they were"
        for line in describe(other)
    ]


def _beginning_by_itself(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> set[str]:
    """The state that a step makes where a tensor with other state does not have it."""
    if not isinstance(optimizer, DecayingOptimizer):
        return set()
    return {*group_rounding(group).memory(torch.bfloat16), ROUNDED, STREAM, "initial"}


def _put_state(optimizer: torch.optim.Optimizer, states: Mapping[str, State], expected: Sequence[Expected]) -> None:
    for one in expected:
        p, state = one.p, states.get(one.name)
        if state is not None:
            # What a rounding or a rule remembers of the weights lies as it was made, and all else as they do.
            made = _beginning_by_itself(optimizer, one.group)
            optimizer.state[p] = {
                key: _placed(value, p, one.kept.get(key), counts=key in COUNTS, as_weights=key not in made)
                for key, value in state.items()
            }
        elif not isinstance(optimizer, torch.optim.Adagrad):  # which alone has state before its first step
            optimizer.state.pop(p, None)


def _placed(value: Any, p: Tensor, expected: Any, *, counts: bool = False, as_weights: bool = True) -> Any:
    """A copy where and as the optimizer keeps it."""
    if isinstance(value, dict):
        return {key: _placed(inside, p, None) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(inside, p, None) for inside in value)
    if not isinstance(value, Tensor):
        return value

    dtype = expected.dtype if isinstance(expected, Tensor) else value.dtype
    if (value.ndim or not (p.ndim or counts)) and hasattr(p, "device_mesh"):
        from torch.distributed.tensor import Replicate, distribute_tensor

        like: Any = p
        placements = like.placements if value.shape == p.shape else [Replicate()] * like.device_mesh.ndim
        return distribute_tensor(value.to(device=p.device, dtype=dtype), like.device_mesh, placements)
    if value.ndim:
        copy = _copied(value, p.device, dtype)
        # Kernels go by place in memory. Of a matrix the file says how it lay, and strangers may multiply by it so.
        whole = as_weights and value.shape == p.shape and type(copy) is Tensor
        return laid_out_like(p, copy) if whole and (expected is not None or value.ndim > 2) else copy
    # A count is where the optimizer keeps it, which need not be where the weights are.
    return value.to(device=expected.device if isinstance(expected, Tensor) else value.device, dtype=dtype, copy=True)


def _copied(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy that shares no memory, also of a tensor that is made of others, whose `to` need not copy them."""
    if not hasattr(value, "__tensor_flatten__"):
        return value.detach().to(device=device, dtype=dtype, copy=True)
    made_of, context = value.__tensor_flatten__()
    parts = {name: _copied(getattr(value, name), device, getattr(value, name).dtype) for name in made_of}
    cls: Any = type(value)
    copy: Tensor = cls.__tensor_unflatten__(parts, context, value.shape, value.stride())
    return copy
