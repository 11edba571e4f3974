"""What loading and saving leave as it was: the dtype of what was saved, what a group was constructed with, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.amounts import number
from weightdecay.errors import OptimizerError, group_title
from weightdecay.naming import without_wrappers
from weightdecay.optim.checks import group_faults
from weightdecay.optim.decay import local
from weightdecay.optim.fitting import Shape, count_fault, is_left_over
from weightdecay.optim.grouping import Group, Rules, called, names_in, with_gradient, with_rule
from weightdecay.optim.guards import bare, uncompiled
from weightdecay.optim.pieces import Workspace
from weightdecay.optim.roundings import COUNTS, LOW_PRECISION, Rounding, group_rounding
from weightdecay.rules import Rule, plain_rule

# For older files, in which counts went the way of the weights.
_COUNTED_IN = dict.fromkeys(COUNTS, torch.int64) | {"step": torch.float32}
# The last of these that a group has is its direction's; another's state may look alike, and means something else.
_MARKS = ("betas", "momentum", "beta2_decay", "ns_steps")


class StateKeeping(torch.optim.Optimizer):
    """State by position, as torch keeps it, without what torch loses of it."""

    counts_steps: ClassVar[bool] = False
    """Whether each tensor's state has a `step`."""
    wide_state: ClassVar[frozenset[str]] = frozenset()
    """State that is float32 also where weights are not."""

    param_groups: list[Group]
    _workspace: Workspace
    _rules: Rules  # as given to the constructor, and so the lr, which a schedule may move where it is a tensor
    _lr: float

    def __getstate__(self) -> dict[str, Any]:
        ours = {"_workspace": self._workspace, "_rules": self._rules, "_lr": self._lr}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state; what its groups do not say, as those of torch's optimizers, stays as constructed."""
        constructed = self.__dict__.get("param_groups", [])
        if len(constructed) == len(state["param_groups"]):
            for own, loaded in zip(constructed, state["param_groups"], strict=True):
                loaded.update(self._going_on(own, loaded))
        super().__setstate__(state)
        self.__dict__.setdefault("_lr", number(self.defaults["lr"]))  # which older pickles lack
        self._workspace.checked.clear()
        for group in self.param_groups:
            group.update(with_rule(group, self._constructed_settings()))

    def _going_on(self, own: Group, saved: Mapping[str, Any]) -> Group:
        """A group as it is with the settings that were saved; what they do not say, and the tensors' names, stay."""
        group: Group = {**own, **saved}
        group.update({key: own[key] for key in ("params", "param_names") if key in own})
        if group["rounding"] == getattr(own["rounding"], "name", None):
            group["rounding"] = own["rounding"]  # of the user's own, saved by its name
        return group

    def _constructed_settings(self) -> dict[str, Any]:
        """The settings of a group that brings none."""
        return {**self.defaults, "lr": self._lr}

    @uncompiled
    def state_dict(self) -> dict[str, Any]:
        """As torch's, with a rule of one's own by its fields, so that the state stays one of plain values."""
        plain: dict[str, Any] = bare(super().state_dict)()
        for group in plain["param_groups"]:
            group["rule"] = plain_rule(group["rule"])
            if isinstance(group["rounding"], Rounding):
                group["rounding"] = group["rounding"].name
        return plain

    @uncompiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        bare(super().zero_grad)(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, by position, but leave every state in the dtype in which it was saved.

        torch makes all of it the weights' dtype but `step`: moments and masters of low-precision weights would lose
        what they are there for, and a counter in bfloat16 stops at 256. `weightdecay.load_state_by_name` loads by name.

        Raises:
            OptimizerError: the state is of another optimizer, with which this one cannot go on; nothing is loaded then.
        """
        loaded: dict[str, Any] = {}  # what the last of the user's hooks made of it

        def take(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            loaded.update(_without_none(given))
            if faults := list(self._unfit(loaded)):
                raise OptimizerError(faults)
            return loaded

        before = self.register_load_state_dict_pre_hook(take)
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_dtypes(loaded), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    @classmethod
    def refusal(cls, rule: Rule) -> str:  # noqa: ARG003
        """Why this optimizer cannot follow a rule; empty if it can."""
        return ""

    def state_shapes(self, group: Group, p: Tensor) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """Name and shape of what the direction remembers of a tensor between steps."""
        return {}

    def needed_state(self, group: Group, p: Tensor) -> set[str]:
        """The state without which a tensor that has any cannot be stepped."""
        return {*(["step"] if self.counts_steps else ()), *self.state_shapes(group, p)}

    def _unfit(self, given: Mapping[str, Any]) -> Iterator[str]:
        """What of a state with its groups cannot go on here, each with group and tensor."""
        here = {without_wrappers(name): name for group in self.param_groups for name in names_in(group) or ()}
        for index, (own, saved) in enumerate(zip(self.param_groups, given["param_groups"], strict=False)):
            group, title = self._going_on(own, saved), group_title(own, index)
            pairs = zip(own["params"], saved["params"], strict=False)
            states = {p: given["state"].get(saved_id, {}) for p, saved_id in pairs}
            faults = [
                f"{title}: {called(own, position)} {fault}"
                for position in range(len(states))
                if (fault := _misplaced(position, own, saved, here))
            ]
            faults = faults or [*self._lacks(group, index, states)]
            *_, mark = (mark for mark in _MARKS if mark in own)
            if mark not in saved and saved["params"]:
                faults.append(f"{title} was saved without {mark}: its settings are another optimizer's")
            else:
                faults += group_faults({**self.defaults, **group}, title, self.refusal)
            yield from faults
            for position, (p, state) in enumerate(states.items() if not faults else ()):
                if fault := self._strange(group, p, state):
                    yield f"{title}: {called(own, position)} {fault}"

    def _strange(self, group: Group, p: Tensor, state: Mapping[str, Any]) -> str:
        """What is wrong with a state that is to be a tensor's; empty if nothing is."""
        kind, rounding = type(self).__name__, group_rounding(group)
        memory = {*rounding.memory(p.dtype), *rounding.memory(torch.bfloat16), "initial"}
        shapes: dict[str, Shape] = {**dict.fromkeys(memory, p.shape), **self.state_shapes(group, p)}
        known = {*shapes, *(["step"] if self.counts_steps else ())}
        if odd := sorted(str(key) for key in state.keys() - known if not is_left_over(key, group)):
            return (
                f"was saved with {', '.join(odd)}, which {kind} does not keep: it is of another optimizer; give a "
                f"state of {kind}, take out what is your own, or begin without one"
            )
        for key in [key for key in COUNTS if key in state]:
            if fault := count_fault(state[key]):
                return f"was saved with a {key} that is {fault}"
        for key, shape in shapes.items():
            value = state.get(key, p)
            if not isinstance(value, Tensor) or (key in state and value.shape != shape):
                shown = tuple(value.shape) if isinstance(value, Tensor) else f"{value!r:.40}"
                return f"needs {key} of shape {tuple(shape)} and was saved with {shown}: it is of another tensor"
        return ""

    def _lacks(self, group: Group, index: int, states: Mapping[Any, Any]) -> Iterator[str]:
        """Tensors that cannot be stepped with the state that they have, each named."""
        kind = type(self).__name__
        for position, p in enumerate(group["params"]):
            state = {key: value for key, value in (states.get(p) or {}).items() if value is not None}
            if state and (missing := sorted(self.needed_state(group, p) - state.keys())):
                yield (
                    f"{group_title(group, index)}: the state of {called(group, position)} has "
                    f"{', '.join(map(str, state))} and lacks {', '.join(missing)}: it is of another optimizer, or of "
                    f"other settings, and {kind} cannot go on with it; give a state of {kind} with these settings, or "
                    "begin without one"
                )

    def _restore_dtypes(self, loaded: Mapping[str, Any]) -> None:
        saved_ids = [saved_id for group in loaded["param_groups"] for saved_id in group["params"]]
        params = [(p, group_rounding(group)) for group in self.param_groups for p in group["params"]]
        for saved_id, (p, rounding) in zip(saved_ids, params, strict=True):
            for key, value in loaded["state"].get(saved_id, {}).items():
                if not isinstance(value, Tensor):
                    continue
                if key in COUNTS and value.dtype in LOW_PRECISION:  # which older files hold
                    self.state[p][key] = value.to(_COUNTED_IN[key])
                elif self.state[p][key].dtype == value.dtype:
                    continue
                elif value.ndim == 0 or not value.is_floating_point():
                    self.state[p][key] = value.clone()  # a counter, where it was
                elif rounding.acts_on(p.dtype) or key in self.wide_state:  # else no step could use it so
                    self.state[p][key] = value.to(device=p.device, copy=True)


def _misplaced(position: int, own: Group, saved: Group, here: Mapping[str, str]) -> str:
    """Why a place of a saved group is not that of the tensor here; empty if it may be."""
    names, theirs = names_in(own), names_in(saved)
    was = without_wrappers(theirs[position]) if names and theirs else ""
    if not names or was not in here or was == without_wrappers(names[position]):
        return ""
    return (
        f"stands where '{here[was]}' was saved, whose state it would get: give the tensors in the order in which they "
        "were, or load by name (from_positional, load_state_by_name)"
    )


def _without_none(given: Any) -> dict[str, Any]:
    """A state_dict without the state that torch saves as None: where there was no step yet.

    Raises:
        OptimizerError: it is none.
    """
    states, groups = (given.get(key) if isinstance(given, Mapping) else None for key in ("state", "param_groups"))
    listed = isinstance(groups, list | tuple) and all(
        isinstance(group, Mapping) and "params" in group for group in groups
    )
    params = [saved for group in groups or () for saved in group["params"]] if listed else []
    if not listed or not isinstance(states, Mapping) or not all(isinstance(states.get(p, {}), Mapping) for p in params):
        raise OptimizerError(
            f"no optimizer's state_dict, which has state and param_groups with params, but {given!r:.60}: give what "
            "state_dict() gave; of a checkpoint that holds more, the optimizer's part"
        )

    def kept(state: Any) -> Any:
        mapping = isinstance(state, Mapping)  # others keep numbers of their own beside it
        return {key: value for key, value in state.items() if value is not None} if mapping else state

    return {**given, "state": {saved: kept(state) for saved, state in states.items() if kept(state) != {}}}


def is_only_saved(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step with `closure=None` is torch's checkpointing, which looks what state a fresh optimizer has.

    A rule that decays at lr 0 would change the weights, and the count of steps would start at 1. torch's
    `_init_optim_state` says nothing of itself, but leaves marks that no training leaves together: no state yet, every
    lr 0, every gradient exactly 0, and the default closure given by name. The caller sees to the last.
    """
    groups = optimizer.param_groups
    if optimizer.state or any(number(group["lr"]) != 0.0 for group in groups):
        return False
    return not any(bool(local(p.grad).any()) for group in groups for p in with_gradient(group))
