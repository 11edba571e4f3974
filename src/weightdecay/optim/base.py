"""What our optimizers share: groups from a plan, a decay rule for each group, and a step that keeps to it.

An optimizer is a direction and a decay rule. The direction is torch's own wherever torch has the optimizer: a scalar
rule hands torch's kernel the `weight_decay` that makes it shrink the weights by exactly the rule's decay per step, so
nothing is computed twice and the fused kernels stay fused. Masks, targets and low precision are applied here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from weightdecay.errors import OptimizerError
from weightdecay.optim.checks import group_faults, group_title, number
from weightdecay.optim.decay import decay_, local, placed_like, pull_, shrink_
from weightdecay.optim.grouping import (
    Group,
    Params,
    listed_groups,
    rule_for_the_rest,
    shared_tensors,
    tables_and_heads,
    with_rules,
)
from weightdecay.optim.pieces import Workspace
from weightdecay.optim.rounding import LOW_PRECISION, realised_decay, start_rounding
from weightdecay.optim.rules import RULES, group_decay_per_step, rule

Work: TypeAlias = list[tuple[Group, float | None]]  # groups, each with its decay per step


class UnsupportedTensorError(OptimizerError, RuntimeError):
    """A tensor or gradient that a direction has no meaning for; a RuntimeError too, as torch's own is."""


class PrecisionWarning(UserWarning):
    """Weights whose dtype rounds the decay away."""


class DecayingOptimizer(torch.optim.Optimizer):
    """The part of a step that decides how weights decay; a subclass brings the direction.

    It stands before a torch optimizer in the subclass's bases, or the subclass overrides `_direction_step`. Directions
    that take each element for itself are `ElementwiseOptimizer`s; the others step tensor by tensor with `_descend`.
    """

    kernel_decays: ClassVar[bool] = True
    """The direction's own `weight_decay` shrinks by 1 − lr·weight_decay; False where it adds to the gradient."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Rules that this direction cannot follow, and why."""
    takes_sparse: ClassVar[bool] = False
    """Whether the direction takes sparse gradients, where nothing is to decay."""

    param_groups: list[Group]

    # --- construction

    def _construct(
        self, params: Params, decay: Mapping[str, Any], *, compiled: bool | None = None, **settings: Any
    ) -> None:
        """Check everything, let torch construct itself, and make `decay` the defaults of later groups.

        Args:
            decay: the constructor's `rule`, `peak_lr` and `rounding`.
            compiled: whether steps beside torch's kernels go through compiled loops.
            settings: what torch's constructor takes, by name.
        """
        groups = self._groups(params, **settings, **decay)
        super().__init__(groups, **settings)
        self._finish(compiled=compiled, **decay)

    def _groups(self, params: Params, **settings: Any) -> Any:
        """Groups with their rule and rounding, checked together before torch sees them: all faults come at once."""
        groups = listed_groups(params, settings["lr"])
        if groups is not None:
            groups = with_rules(groups, settings["rule"], tables_and_heads(params))
        settings["rule"] = rule_for_the_rest(settings["rule"])
        ruled = [_with_rule(group, settings) for group in groups or [{}]]
        faults = [
            fault
            for index, group in enumerate(ruled)
            for fault in group_faults({**settings, **group}, group_title(group, index), self.refused)
        ] + shared_tensors(ruled)
        if faults:
            raise OptimizerError(faults)
        return params if groups is None else ruled

    def _finish(self, *, compiled: bool | None = None, **settings: Any) -> None:
        """Make `rule`, `peak_lr` and `rounding` the defaults of later groups; warn of weights that would not decay."""
        settings["rule"] = rule_for_the_rest(settings["rule"])
        self.defaults.update({key: value for key, value in settings.items() if (key, value) != ("peak_lr", None)})
        self._workspace = Workspace(compiled=compiled)
        for index, group in enumerate(self.param_groups):
            warn_of_rounding(group, index)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group as torch does; its rule and rounding are the optimizer's unless it brings its own."""
        finished = "rule" in self.defaults
        if finished and isinstance(param_group, dict):
            param_group.update(_with_rule(param_group, self.defaults))
            title = group_title(param_group, len(self.param_groups))
            faults = group_faults({**self.defaults, **param_group}, title, self.refused)
            if faults := faults + shared_tensors([*self.param_groups, param_group]):
                raise OptimizerError(faults)
        super().add_param_group(param_group)
        if finished:
            warn_of_rounding(self.param_groups[-1], len(self.param_groups) - 1)

    # --- state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_workspace": self._workspace}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a checkpoint that torch's optimizer wrote
            group.update(_with_rule(group, self.defaults))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, by position, but leave the float32 state of low-precision weights in float32.

        `weightdecay.optim.state` loads by name.
        """
        loaded: dict[str, Any] = {}  # what the last of the user's hooks made of it
        before = self.register_load_state_dict_pre_hook(lambda _, given: loaded.update(given))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_float32(loaded), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore_float32(self, loaded: Mapping[str, Any]) -> None:
        """Float32 state of low-precision weights once more: torch has rounded it to the weights' dtype."""
        saved_ids = [saved_id for group in loaded["param_groups"] for saved_id in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, params, strict=True):
            for key, value in loaded["state"].get(saved_id, {}).items():
                if p.dtype in LOW_PRECISION and isinstance(value, Tensor) and value.dtype == torch.float32:
                    self.state[p][key] = value.to(device=p.device, copy=True)

    # --- the step

    # Compiled code holds an optimizer's state for constant: one tensor would be stepped with another's.
    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step: every tensor with a gradient decays by its group's rule and follows the direction.

        Args:
            closure: reevaluates the model and returns the loss.

        Raises:
            OptimizerError: a group's decay per step cannot be known or is over 1; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        saving = is_only_saved(self)
        work = [(group, 0.0 if saving else group_decay_per_step(group)) for group in self.param_groups]
        self._refuse_unusable(work)
        if any(self._works_beside_kernel(group) for group in self.param_groups) and self._unscale_or_skip():
            return loss
        with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))):
            self._step_groups(work)
            if saving:
                for state in self.state.values():
                    if "step" in state:
                        state["step"] = torch.zeros_like(state["step"])
        return loss

    def _step_groups(self, work: Work) -> None:
        """Decay what torch's kernel cannot, hand it the rest, and leave the groups as they were."""
        as_given = [(group, group["weight_decay"], group["params"]) for group, _ in work]
        every, self.param_groups = self.param_groups, [group for group, _ in work]
        try:
            for index, (group, decay) in enumerate(work):
                group["params"] = self._step_beside(group, decay, index)
            initial = self._initial_values()
            for group, decay in work:
                group["weight_decay"] = self._decay_before(group, decay)
            self._direction_step()
            for p, value in initial.items():
                self.state[p]["initial"] = value  # not earlier: torch starts its own state only where there is none
            for group, decay in work:
                self._pull_to_target(group, decay)
        finally:
            self.param_groups = every
            for group, weight_decay, params in as_given:
                group["weight_decay"], group["params"] = weight_decay, params

    def _step_beside(self, group: Group, decay: float | None, index: int) -> list[Tensor]:  # noqa: ARG002
        """Step the tensors that torch's step cannot serve; return the others."""
        params: list[Tensor] = group["params"]
        return params

    def _direction_step(self) -> None:
        """torch's own step, without the profiler and the hooks that already ran around ours."""
        function: Any = super().step.__func__  # type: ignore[attr-defined]
        plain = function.__wrapped__ if getattr(function, "hooked", False) else function
        plain(self)

    def _decay_before(self, group: Group, decay: float | None) -> float | Tensor:
        """Apply what the kernel cannot; return the `weight_decay` with which it does the rest."""
        if self._is_kernels_own(group):
            weight_decay: float | Tensor = group["weight_decay"]
            return weight_decay  # so that it computes bit for bit what torch's optimizer does
        if not decay:
            return 0.0
        if not self.kernel_decays or float(group["lr"]) == 0.0:
            shrink_(with_gradient(group), decay)
            return 0.0
        return decay / float(group["lr"])

    def _pull_to_target(self, group: Group, decay: float | None) -> None:
        reach, weights = rule(group["rule"]).reach, with_gradient(group)
        if reach == "towards_one":
            pull_(weights, 1.0, decay or 0.0)
        elif reach == "towards_initial":
            pull_(weights, [self.state[p]["initial"] for p in weights], decay or 0.0)

    def _initial_values(self) -> dict[Tensor, Tensor]:
        """Copies of the weights that decay towards their initial value and have not been seen before."""
        groups = [group for group in self.param_groups if group["rule"] == "towards_initial"]
        return {p: p.clone() for group in groups for p in with_gradient(group) if "initial" not in self.state[p]}

    def _descend(self, p: Tensor, update: Tensor, scale: float, group: Group, decay: float | None, number: int) -> None:
        """Decay and update one whole tensor, for directions that no kernel of torch's does: w ← (decay of w) − s·u."""
        reach, state, update = rule(group["rule"]).reach, self.state[p], placed_like(update, p)
        if reach == "towards_initial" and "initial" not in state:
            state["initial"] = p.clone(memory_format=torch.contiguous_format)
        if p.dtype not in LOW_PRECISION or group["rounding"] == "nearest":
            decay_(p, reach, decay, update.clone() if reach == "agreeing" else None, state.get("initial"))
            p.add_(update, alpha=-scale)
            return
        start_rounding(p, group["rounding"], state)

        def descend(weights: Tensor, piece: Tensor, here: Mapping[str, Tensor]) -> None:
            decay_(weights, reach, decay, piece.clone() if reach == "agreeing" else None, here.get("initial"))
            weights.add_(piece, alpha=-scale)

        self._workspace.step(p, update, state, group["rounding"], descend, number)

    # --- meeting torch's tools

    def _refuse_unusable(self, work: Work) -> None:
        """Raise for gradients that the direction or a rule cannot take, before anything has changed."""
        kind, faults = type(self).__name__, []
        for index, (group, decay) in enumerate(work):
            weights, title = with_gradient(group), group_title(group, index)
            decays = bool(group["weight_decay"]) if decay is None else decay > 0
            if any(p.grad.is_sparse for p in weights) and (decays or not self.takes_sparse):
                faults.append(
                    f"{title}: {kind} does not support sparse gradients, whose step would leave most rows out of the "
                    "decay: make the embedding dense (sparse=False)"
                )
            if not self._takes_complex(group) and any(p.is_complex() for p in weights):
                faults.append(f"{title}: {kind} does not support complex parameters")
            elif group["rule"] == "cautious" and any(p.is_complex() for p in weights):
                faults.append(f"{title}: rule 'cautious' compares signs, which complex weights do not have")
            if group["rounding"] == "stochastic" and any(p.dtype == torch.float16 for p in weights):
                faults.append(
                    f"{title}: rounding='stochastic' is made for bfloat16: give 'kahan' or 'master' in float16"
                )
            if group.get("differentiable") and not self._is_kernels_own(group) and _asks_for_hypergradients(group):
                faults.append(
                    f"{title}: rule '{group['rule']}' of {kind} passes no gradient on to lr and weight_decay, only a "
                    "rule that torch's own step follows does: detach them"
                )
        if faults:
            raise UnsupportedTensorError(faults)

    def _is_kernels_own(self, group: Group) -> bool:
        """Whether the direction's kernel means by λ what the group's rule means."""
        return group["rule"] == "l2" or (group["rule"] == "decoupled" and self.kernel_decays)

    def _takes_complex(self, group: Group) -> bool:  # noqa: ARG002
        """Whether the group's direction has a meaning for complex weights."""
        return True

    def _works_beside_kernel(self, group: Group) -> bool:
        """Whether more than the fused kernel acts in this group's step, and must know what the kernel is told."""
        reach = rule(group["rule"]).reach
        scalar = reach == "weights" and self.kernel_decays and group["lr"] != 0.0
        return not (scalar or self._is_kernels_own(group)) or group["rounding"] != "nearest"

    def _unscale_or_skip(self) -> bool:
        """Do what the fused kernel would do with a GradScaler's `grad_scale` and `found_inf`; True to skip the step."""
        told: Any = self
        found_inf, scale = getattr(told, "found_inf", None), getattr(told, "grad_scale", None)
        if found_inf is not None and bool(found_inf):
            return True
        if scale is not None:
            torch._foreach_div_([local(p.grad) for group in self.param_groups for p in with_gradient(group)], scale)
            told.grad_scale = None
        return False


def is_only_saved(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch's checkpointing steps a fresh optimizer at lr 0, only to see what state it has.

    A rule that decays at lr 0 would change the weights, and the count of steps would start at 1. Nothing but the
    caller tells that step from a real one.
    """
    if any(number(group["lr"]) != 0.0 for group in optimizer.param_groups):
        return False
    frame: FrameType = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_init_optim_state":
            return True
    return False


def with_gradient(group: Group) -> list[Any]:
    """The parameters that a step changes: those with a gradient, be it zero."""
    return [p for p in group["params"] if p.grad is not None]


def _asks_for_hypergradients(group: Group) -> bool:
    return any(getattr(group[key], "requires_grad", False) for key in ("lr", "weight_decay"))


def _with_rule(group: Group, settings: Group) -> Group:
    """The group with its rule, rounding and peak lr.

    The lr that a group begins with is its peak unless one is given; a schedule may only go below it. A peak given for
    all is scaled for a group with its own lr: at ten times the lr it has ten times the peak.
    """
    chosen = {"rule": settings["rule"], "rounding": settings["rounding"], **group}
    if chosen["rule"] not in RULES or not RULES[chosen["rule"]].needs_peak or chosen.get("peak_lr") is not None:
        return chosen
    lr, base_lr, base_peak = number(group.get("lr", settings["lr"])), number(settings["lr"]), settings.get("peak_lr")
    if base_peak is None or lr is None or not base_lr:
        chosen["peak_lr"] = lr if base_peak is None else base_peak
    else:
        chosen["peak_lr"] = base_peak * (lr / base_lr)
    return chosen


def warn_of_rounding(group: Group, index: int) -> None:
    """Say which part of its decay a low-precision group will really get, where it is not all."""
    low = [p for p in group["params"] if p.dtype in LOW_PRECISION and not p.is_meta]
    decay = group_decay_per_step(group)
    if not low or not decay or group.get("rounding", "nearest") != "nearest":
        return
    shares = [realised_decay(local(p), decay) for p in low]
    realised = sum(shares) / len(shares)
    if abs(realised - 1) > 0.1:
        warnings.warn(
            f"{group_title(group, index)}: {len(low)} tensors in {str(low[0].dtype).removeprefix('torch.')} will get "
            f"{realised:.1%} of the decay per step of {decay:.3g} that was asked for, because rounding to nearest "
            "undoes it: give rounding='stochastic', 'kahan' or 'master', or keep the weights in float32",
            PrecisionWarning,
            stacklevel=_frames_to_the_user(),
        )


def _frames_to_the_user() -> int:
    """How far up the caller stands who made the optimizer, for a warning that shows that line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("weightdecay", "torch"):
        level, frame = level + 1, frame.f_back
    return level
