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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.decay import laid_out_like
from weightdecay.optim.roundings import group_rounding
from weightdecay.optim.state.expected import State, dtype_changes, expected_states, fitting_faults, impossible
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
from weightdecay.optim.state.values import restore

OnChange = Literal["keep", "override"]


def state_by_name(optimizer: torch.optim.Optimizer, names: Names = None) -> dict[str, Tensor]:
    """The optimizer's state as `"<parameter>/<key>"` -> tensor, ready for safetensors; empty before the first step.

    Python numbers, lists, tuples and dicts are written as `tree` says. The tensors are the optimizer's own, which its
    next step changes. Sharded state comes whole, for which all ranks must ask together.

    Raises:
        OptimizerError: a parameter has no name, or the state holds what cannot be saved, each with its path and type.
    """
    optimizer = unwrapped(optimizer)
    named = parameter_names(optimizer, names)
    tensors: dict[str, Tensor] = {}
    faults = []
    for p, state in optimizer.state.items():
        if p not in named or not isinstance(state, Mapping):
            # Others keep it under text.
            owner = f"a tensor of shape {tuple(p.shape)}" if hasattr(p, "shape") else repr(p)
            faults.append(f"{type(optimizer).__name__} keeps state of {owner}, which is no parameter of its groups")
            continue
        try:
            tensors |= flattened(named[p], state) if has_state(optimizer, p) else {}
        except OptimizerError as error:
            faults += error.faults
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
    named = parameter_names(optimizer, names)
    states, settings, faults = _read(tensors, settings, rename)
    before, asked = comparable(settings, optimizer, names) if settings is not None else ({}, {})
    found = differences(before, asked, ignore=ignore)
    coming, unkept = values_coming_back(optimizer, before, named, settings=on_change == "keep", ignore=ignore)

    expected = expected_states(optimizer, coming)
    loading = _Loading(optimizer, named, expected, states, settings, faults, found)
    if settings is None:
        loading.found = loading.tensors_that_came_or_went()
    elif on_change != "keep":
        loading.leave_out_what_settings_kept(before)
    loading.judge_state()
    loading.judge_choice(on_change)
    if on_change == "keep" and isinstance(optimizer, DecayingOptimizer) and not unkept:
        for index, (group, values) in enumerate(zip(optimizer.param_groups, coming, strict=True)):
            unkept += optimizer.faults_in({**group, **values}, index, optimizer.defaults)
    if faults := loading.faults + unkept:
        raise OptimizerError(faults)

    if settings is not None:
        restore(optimizer, settings.get("beyond", {}))
    loading.put_state()
    for group, values in zip(optimizer.param_groups, coming, strict=True):
        put_values(group, values)
    return loading.found


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
        else:
            entries[name][path] = value

    if rename is not None:
        now = new_names([*entries, *(saved_names(settings) if settings is not None else ())], rename)
        entries = defaultdict(dict, {now[name]: paths for name, paths in entries.items()})
        settings = renamed_settings(settings, now) if settings is not None else None

    states: dict[str, State] = {}
    for name, paths in entries.items():
        try:
            states[name] = unflattened(paths)
        except OptimizerError as error:
            states[name] = {}
            faults += [f"{name}/{fault}" for fault in error.faults]
    return states, settings, faults


@dataclass
class _Loading:
    """One load: what is found on the way, and what stands against it."""

    optimizer: torch.optim.Optimizer
    named: dict[Tensor, str]
    expected: dict[Tensor, State | None]
    states: dict[str, State]  # as saved, by name
    settings: Settings | None
    faults: list[str]
    found: list[Change] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return type(self.optimizer).__name__

    def tensors_that_came_or_went(self) -> list[Change]:
        """Without settings only the state tells which parameters were there."""
        states, named = self.states, self.named
        keeps_state = [name for p, name in named.items() if self.expected[p]]
        new = [Change(name, "tensor", "missing", "present") for name in keeps_state if name not in states]
        gone = sorted(states.keys() - set(named.values()))
        return (new if states else []) + [Change(name, "tensor", "present", "missing") for name in gone]

    def leave_out_what_settings_kept(self, before: Mapping[str, GroupSettings]) -> None:
        """Drop the state that goes with a setting of before, and look for none that goes with one of now.

        What a rounding or a rule remembers of the weights begins with them as they are; of other state, such as the
        maximum that `amsgrad` keeps, it is not known what it would be.
        """
        unlike = [
            (group, p, expected)
            for group in self.optimizer.param_groups
            for p in group["params"]
            if (expected := self.expected[p]) is not None
            and (state := self.states.get(self.named[p]))
            and state.keys() != expected.keys()
        ]
        if not unlike or self.settings is None or self.settings.get("optimizer") != self.kind:
            return
        as_saved, unkept = values_coming_back(self.optimizer, before, self.named, settings=True, ignore=())
        kept_before = {} if unkept else expected_states(self.optimizer, as_saved)
        for group, p, now in unlike:
            name, was = self.named[p], kept_before.get(p)
            if was is None:
                continue
            state = {key: value for key, value in self.states[name].items() if key in now or key not in was}
            self.states[name] = state
            self.expected[p] = {key: value for key, value in now.items() if key in was or key in state}
            self.faults += [
                f"{name}/{key}: {self.kind} keeps it with the settings that are asked for and did not with those that "
                "were saved: choose on_change='keep', or make the optimizer with the settings that it had"
                for key in sorted(now.keys() - was.keys() - state.keys() - _beginning_by_itself(self.optimizer, group))
            ]

    def judge_state(self) -> None:
        """Entries of nobody, and state that is not this optimizer's, or no optimizer's."""
        self.faults += self._lost_and_unknown()
        fitting: list[str] = []
        damage: list[str] = []
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                name, expected = self.named[p], self.expected[p]
                state = self.states.get(name, {})
                fitting += fitting_faults(self.kind, group, p, name, state, expected)
                if expected is not None:
                    damage += impossible(name, state, group, expected)
                    dtypes, unfit = dtype_changes(name, state, expected)
                    self.found += dtypes
                    damage += unfit

        saved_by = (self.settings or {}).get("optimizer", "")
        if (fitting or self.faults) and saved_by not in ("", self.kind):  # whose settings need not be compared, then
            raise OptimizerError(
                [f"the state is of {saved_by}, and this optimizer is {self.kind}", *self.faults, *fitting]
            )
        self.faults += fitting + damage

    def _lost_and_unknown(self) -> list[str]:
        """Where the settings tell: state that was lost or is of nobody."""
        settings, present = self.settings, self.states.keys()
        if settings is None:
            return []
        in_settings, named = set(saved_names(settings)), set(self.named.values())
        lost: set[str] = set()
        if "stateless" in settings:
            lost = in_settings & named - present - set(settings["stateless"])
        unknown = present - in_settings - named
        return [f"{name}: it had state when the settings were saved, and none is here" for name in sorted(lost)] + [
            f"{name}: state of a tensor that neither the model nor the settings have" for name in sorted(unknown)
        ]

    def judge_choice(self, on_change: OnChange | None) -> None:
        pressing = [change for change in self.found if not change.harmless]
        if on_change is None:
            self.faults += [
                f"{line}: choose on_change='override' for what is asked or 'keep' for what was saved"
                for line in describe(pressing)
            ]
        elif on_change == "keep":
            gone = [change for change in pressing if change.setting == "tensor" and change.asked == "missing"]
            other = [change for change in pressing if change.setting.startswith("dtype of ")]
            self.faults += [f"{line}; on_change='keep' cannot bring it back" for line in describe(gone)]
            self.faults += [
                f"{line}; on_change='keep' cannot, {self.kind} steps with the dtype it makes: choose 'override', or "
                "make the optimizer, or its weights, as they were"
                for line in describe(other)
            ]

    def put_state(self) -> None:
        for p, name in self.named.items():
            if name in self.states:
                kept_as, state = self.expected[p] or {}, self.states[name]
                self.optimizer.state[p] = {key: _placed(value, p, kept_as.get(key)) for key, value in state.items()}
            elif not isinstance(self.optimizer, torch.optim.Adagrad):  # which alone has state before its first step
                self.optimizer.state.pop(p, None)


def _beginning_by_itself(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> set[str]:
    """The state that a step makes where a tensor with other state does not have it."""
    return {*group_rounding(group).keeps, "initial"} if isinstance(optimizer, DecayingOptimizer) else set()


def _placed(value: Any, p: Tensor, expected: Any) -> Any:
    """A copy where and as the optimizer keeps it."""
    if isinstance(value, dict):
        return {key: _placed(inside, p, None) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(inside, p, None) for inside in value)
    if not isinstance(value, Tensor):
        return value

    dtype = expected.dtype if isinstance(expected, Tensor) else value.dtype
    if value.ndim and hasattr(p, "device_mesh"):
        from torch.distributed.tensor import Replicate, distribute_tensor

        like: Any = p
        placements = like.placements if value.shape == p.shape else [Replicate()] * like.device_mesh.ndim
        return distribute_tensor(value.to(device=p.device, dtype=dtype), like.device_mesh, placements)
    if value.ndim:
        copy = _copied(value, p.device, dtype)
        # Kernels go by place in memory. Of a matrix the file says how it lay, and strangers may multiply by it so.
        lies_as_weights = value.shape == p.shape and type(copy) is Tensor and (expected is not None or value.ndim > 2)
        return laid_out_like(p, copy) if lies_as_weights else copy
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
