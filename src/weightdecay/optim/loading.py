"""What loading and saving leave as it was: the dtype of what was saved, what a group was constructed with, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.amounts import number
from weightdecay.errors import OptimizerError, group_title
from weightdecay.optim.decay import local
from weightdecay.optim.grouping import Group, Rules, names_in, with_gradient, with_rule
from weightdecay.optim.guards import bare, uncompiled
from weightdecay.optim.pieces import Workspace
from weightdecay.optim.roundings import LOW_PRECISION, Rounding
from weightdecay.rules import plain_rule


class StateKeeping(torch.optim.Optimizer):
    """State by position, as torch keeps it, without what torch loses of it."""

    counts_steps: ClassVar[bool] = False
    """Whether each tensor's state has a `step`."""

    param_groups: list[Group]
    _workspace: Workspace
    _rules: Rules  # as given to the constructor

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_workspace": self._workspace, "_rules": self._rules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state; what its groups do not say, as those of torch's optimizers, stays as constructed."""
        constructed = self.__dict__.get("param_groups", [])
        if len(constructed) == len(state["param_groups"]):
            for own, loaded in zip(constructed, state["param_groups"], strict=True):
                loaded.update({key: value for key, value in own.items() if key not in loaded})
                if loaded["rounding"] == getattr(own["rounding"], "name", None):
                    loaded["rounding"] = own["rounding"]  # of the user's own, saved by its name
        super().__setstate__(state)
        self._workspace.checked.clear()
        for group in self.param_groups:
            group.update(with_rule(group, self.defaults))

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

        def take(_: Any, given: dict[str, Any]) -> None:
            loaded.update(given)
            if faults := list(self._unfit(given)):
                raise OptimizerError(faults)

        before = self.register_load_state_dict_pre_hook(take)
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_dtypes(loaded), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def state_shapes(self, group: Group, p: Tensor) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """Name and shape of what the direction remembers of a tensor between steps."""
        return {}

    def needed_state(self, group: Group, p: Tensor) -> set[str]:
        """The state without which a tensor that has any cannot be stepped."""
        return {"step", *self.state_shapes(group, p)} if self.counts_steps else set()

    def _unfit(self, given: Mapping[str, Any]) -> Iterator[str]:
        """Tensors whose state is another optimizer's, each named."""
        for index, (own, saved) in enumerate(zip(self.param_groups, given["param_groups"], strict=False)):
            states = {
                p: given["state"].get(saved_id) for saved_id, p in zip(saved["params"], own["params"], strict=False)
            }
            group = {**own, **saved, "params": own["params"], "param_names": own.get("param_names")}
            yield from self._lacks(group, index, states)

    def _lacks(self, group: Group, index: int, states: Mapping[Any, Any]) -> Iterator[str]:
        """Tensors that cannot be stepped with the state that they have, each named."""
        kind, names = type(self).__name__, names_in(group)
        for position, p in enumerate(group["params"]):
            state = states.get(p)
            if state and (missing := sorted(self.needed_state(group, p) - state.keys())):
                name = f"'{names[position]}'" if names else f"tensor {position}"
                yield (
                    f"{group_title(group, index)}: the state of {name} has "
                    f"{', '.join(map(str, state))} and lacks {', '.join(missing)}: it is of another optimizer, or of "
                    f"other settings, and {kind} cannot go on with it; give a state of {kind} with these settings, or "
                    "begin without one"
                )

    def _restore_dtypes(self, loaded: Mapping[str, Any]) -> None:
        saved_ids = [saved_id for group in loaded["param_groups"] for saved_id in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, params, strict=True):
            for key, value in loaded["state"].get(saved_id, {}).items():
                if not isinstance(value, Tensor) or self.state[p][key].dtype == value.dtype:
                    continue
                if value.ndim == 0 or not value.is_floating_point():
                    self.state[p][key] = value.clone()  # a counter, where it was
                elif p.dtype in LOW_PRECISION:
                    self.state[p][key] = value.to(device=p.device, copy=True)


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
