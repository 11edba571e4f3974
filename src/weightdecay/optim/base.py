"""What our optimizers share: groups from a plan, a decay rule for each group, and a step that keeps to it.

An optimizer is a direction, a decay rule and a rounding. The direction is torch's own wherever torch has the optimizer:
a scalar rule hands torch's kernel the `weight_decay` that makes it shrink the weights by exactly the rule's decay per
step, so nothing is computed twice and the fused kernels stay fused. Masks, targets and low precision are applied here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightdecay.amounts import number
from weightdecay.errors import OptimizerError, group_title
from weightdecay.optim.checks import explained, group_faults, with_plain_numbers
from weightdecay.optim.decay import kernel_weight_decay, placed_like
from weightdecay.optim.fitting import kinds_of, misfits, places_of
from weightdecay.optim.grouping import (
    Group,
    Params,
    Rules,
    drop_repeats,
    listed_groups,
    misnamed,
    name_empty,
    rule_for_the_rest,
    shared_tensors,
    tables_and_heads,
    with_names_like,
    with_rule,
    with_rules,
)
from weightdecay.optim.guards import bare, uncompiled
from weightdecay.optim.loading import StateKeeping, is_only_saved
from weightdecay.optim.noise import noise_stream
from weightdecay.optim.pieces import Flat, StepKind, Workspace, flattened
from weightdecay.optim.precision import warn_of_rounding
from weightdecay.optim.roundings import (
    ROUNDED,
    ROUNDINGS,
    STREAM,
    Rounding,
    as_rounding,
    dtype_name,
    group_rounding,
    spelt_rounding,
)
from weightdecay.optim.work import Work, decay_now, unscales_or_skips
from weightdecay.planning.groups import misspelt_keys
from weightdecay.rules import Rule, as_rule, group_rule, spelt

# What each step computes its decay of; also what schedules change at each.
_CHECKED_ANYWAY = ("params", "lr", "weight_decay")


def _settings(group: Group) -> list[Any]:
    return [value for key, value in group.items() if key not in _CHECKED_ANYWAY]


def _no_closure() -> None:
    """What `step` was called without, to be told from a closure that is given as None."""


class UnsupportedTensorError(OptimizerError, RuntimeError):
    """A tensor or gradient that a direction has no meaning for; a RuntimeError too, as torch's own is."""


class DecayingOptimizer(StateKeeping):
    """The part of a step that decides how weights decay; a subclass brings the direction.

    It stands before a torch optimizer in the subclass's bases, or the subclass overrides `_direction_step`. Directions
    that take each element for itself are `ElementwiseOptimizer`s; the others step tensor by tensor with `_descend`.
    """

    kernel_decays: ClassVar[bool] = True
    """The direction's own `weight_decay` shrinks by 1 − lr·weight_decay; False where it adds to the gradient."""
    no_coupled_form: ClassVar[str] = "this direction has no coupled form; that belongs to AdamL2 and SGDW"
    """Why coupled rules are refused; empty where they are not."""
    only_coupled: ClassVar[str] = ""
    """Why all other rules are refused; empty where they are not."""
    own_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that its constructor takes and torch's does not, beside those of the decay."""
    takes_complex: ClassVar[bool] = True
    """Whether the direction has a meaning for complex weights."""
    takes_sparse: ClassVar[bool] = False
    """Whether the direction takes sparse gradients, where nothing is to decay."""

    param_groups: list[Group]
    grad_scale: Tensor | None  # a GradScaler's, during a step

    @classmethod
    def refusal(cls, rule: Rule) -> str:
        return cls.no_coupled_form if rule.coupled else cls.only_coupled

    # --- construction

    def _construct(self, given: Mapping[str, Any]) -> None:
        """Check everything, let torch construct itself, and make the rest the defaults of later groups.

        Args:
            given: all arguments of the constructor, as its `locals()`.
        """
        settings = with_plain_numbers({key: value for key, value in given.items() if key not in ("self", "params")})
        params, compiled = given["params"], settings.pop("compiled", None)
        decay = {key: settings.pop(key, None) for key in ("rule", "peak_lr", "rounding")}
        own = {key: settings.pop(key) for key in self.own_settings}
        self._rules: Rules = decay["rule"]
        self._lr = number(settings["lr"]) or 0.0
        rest = rule_for_the_rest(self._rules)
        lr = settings["lr"] if number(settings["lr"]) is not None else 1.0  # one that is no number is told below
        groups = listed_groups(params, lr)
        divided = [{}] if groups is None else self.groups_of_plan(params, groups)
        ruled = self._ruled(divided, {**settings, **own, **decay, "rule": rest, "compiled": compiled})
        name_empty(ruled)
        checked: Any = params if groups is None else ruled  # torch explains what is no parameters at all
        with explained("params", params, "a decay plan, parameters, (name, parameter) pairs, or groups"):
            super().__init__(checked, **settings)

        spellings = {"rule": spelt(as_rule(rest)), "rounding": spelt_rounding(as_rounding(decay["rounding"]))}
        self.defaults.update({**own, **decay, **spellings})
        if decay["peak_lr"] is None:
            del self.defaults["peak_lr"]
        self._workspace = Workspace(compiled=compiled)
        for index, group in enumerate(self.param_groups):
            group.update({key: value for key, value in own.items() if key not in group})
            warn_of_rounding(group, index)

    def groups_of_plan(self, plan: Params, groups: list[Group]) -> list[Group]:
        """Groups of a plan, or of parameters, divided so that all tensors of one follow one rule."""
        return with_rules(groups, self._rules, tables_and_heads(plan))

    def _ruled(self, groups: Iterable[Group], settings: Mapping[str, Any], others: Sequence[Group] = ()) -> list[Group]:
        """Groups that come behind others, with their rule and rounding; all faults are told, before torch sees them."""
        ruled = [with_plain_numbers(with_rule(group, settings)) for group in groups]
        faults = [
            fault
            for index, group in enumerate(ruled, start=len(others))
            for fault in [*misnamed(group, index), *self.faults_in(group, index, settings)]
        ]
        if faults := faults + shared_tensors([*others, *ruled]):
            raise OptimizerError(list(dict.fromkeys(faults)))
        return ruled

    def faults_in(self, group: Group, index: int, defaults: Mapping[str, Any], theirs: Iterable[str] = ()) -> list[str]:
        """What is wrong with the settings of a group that may lean on `defaults`; keys in `theirs` are others' own."""
        title = group_title(group, index)
        return [
            *(f"{title} has {fault}" for fault in misspelt_keys(group, {*self._known_keys(defaults), *theirs})),
            *group_faults({**defaults, **group}, title, self.refusal),
        ]

    def _known_keys(self, defaults: Mapping[str, Any]) -> set[str]:
        """The settings that a group may have."""
        return set(defaults)

    def _settings_of(self, group: Group) -> set[str]:  # noqa: ARG002
        """The settings that a step reads of a group."""
        # One not every rule needs; the other torch adds to all defaults that it unpickles.
        return self.defaults.keys() - {"peak_lr", "differentiable"}

    @uncompiled
    def add_param_group(self, param_group: Group) -> None:
        """Add a group as torch does; its rule and rounding are the optimizer's unless it brings its own.

        Named and nameless groups stand beside each other: a tensor without a name is called by its place.
        """
        joins = "rule" in self.defaults  # else torch's constructor is at it, with groups that are checked already
        wanted = "a dictionary with params, in a list or a tuple"
        with explained("param_group", param_group, wanted) if joins else nullcontext():
            self._complete(param_group)
            if joins and isinstance(param_group, dict):
                named = with_names_like(param_group, self.param_groups)
                [ruled] = self._ruled([named], self._constructed_settings(), self.param_groups)
                param_group.clear()
                param_group.update(ruled)
                name_empty([*self.param_groups, param_group])
            bare(super().add_param_group)(param_group)
        drop_repeats(self.param_groups[-1])
        if joins:
            warn_of_rounding(self.param_groups[-1], len(self.param_groups) - 1)

    def _complete(self, param_group: Any) -> None:
        """Give a group what the direction's groups have beside torch's settings."""

    # --- the step

    # Compiled code holds an optimizer's state for constant: one tensor would be stepped with another's.
    @uncompiled
    def step(self, closure: Callable[[], Any] | None = _no_closure) -> Any:
        """One step: every tensor with a gradient decays by its group's rule and follows the direction.

        Args:
            closure: reevaluates the model and returns the loss.

        Raises:
            OptimizerError: a group's decay per step cannot be known or is over 1, or a setting was written into it
                that is none; nothing has changed then.
        """
        loss = None
        if closure is not None and closure is not _no_closure:
            with torch.enable_grad():
                loss = closure()

        saving = closure is None and is_only_saved(self)
        work = self._work(saving)
        self._refuse_unusable(work)
        if any(self._works_beside_kernel(one) for one in work) and unscales_or_skips(self):
            return loss

        # A step that is made under autocast is the same: products of moments and matrices keep their precision.
        with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))), torch._C._DisableAutocast():
            self._step_groups(work)
        if saving:
            for state in self.state.values():
                state.update({key: torch.zeros_like(state[key]) for key in ("step", ROUNDED) if key in state})
        return loss

    def _work(self, saving: bool = False) -> list[Work]:
        work = []
        for place, group in enumerate(self.param_groups):
            if lacking := sorted(self._settings_of(group) - group.keys()):
                raise OptimizerError(f"{group_title(group, place)} has no {', '.join(lacking)} any more: give it again")
            if not all(isinstance(group[key], float | int | Tensor) for key in ("lr", "weight_decay")):
                group.update(with_plain_numbers(group))  # which somebody counts in fractions, say
            rule = group_rule(group)
            decay = 0.0 if saving else decay_now(group, self._is_kernels_own(rule))
            kernels = group["weight_decay"] if rule.coupled else None
            if self.kernel_decays and not rule.coupled:
                kernels = kernel_weight_decay(rule, group, decay)
            work.append(Work(group, rule, group_rounding(group), decay, kernels, place))
        return work

    def _step_groups(self, work: list[Work]) -> None:
        """Step what torch's kernel cannot, and let it step the rest with the λ that makes its decay the rule's."""
        shown = []
        initial = self._initial_values(work)
        for one in work:
            weight_decay = 0.0 if one.kernels is None else one.kernels
            told = {"params": self._step_beside(one), "weight_decay": weight_decay}
            shown.append({"differentiable": False, **one.group, **told})

        own, self.param_groups = self.param_groups, shown
        try:
            self._direction_step()
        finally:
            self.param_groups = own
        for p, value in initial.items():
            self.state[p]["initial"] = value  # not earlier: torch starts its own state only where there is none

    def _step_beside(self, one: Work) -> list[Any]:
        """Step what torch's step cannot; the tensors that are left to it."""
        params: list[Any] = one.group["params"]
        return params

    def _direction_step(self) -> None:
        """torch's own step, without the profiler and the hooks that already ran around ours."""
        bare(super().step)()

    def _initial_values(self, work: list[Work]) -> dict[Tensor, Tensor]:
        """Copies of the weights that decay towards their initial value and have not been seen before."""
        return {
            p: p.clone(memory_format=torch.contiguous_format)
            for one in work
            if one.rule.target == "initial"
            for p in one.weights
            if "initial" not in self.state[p]
        }

    def _descend(self, one: Work, direction: Callable[[Any, Work], tuple[Tensor, float]]) -> None:
        """Decay and update whole tensors, for directions that no kernel of torch's does: w ← (decay of w) − s·u.

        Args:
            direction: gives (u, s) for a tensor.
        """
        for position, p in enumerate(one.group["params"]):
            if p.grad is None or not p.numel():
                continue
            self._begin(p, one, position)
            update, scale = direction(p, one)

            def descend(pieces: Sequence[Flat], scale: float = scale) -> None:
                pieces[0].weights.add_(pieces[0].gradient, alpha=-scale)

            with flattened([(p, placed_like(update, p), self.state[p])], self._kept_beside(one)) as flats:
                self._workspace.step(flats, StepKind(one.rule, one.decay, one.rounding, descend))
            self._count_roundings([p], one.rounding)

    def _kept_beside(self, one: Work) -> tuple[str, ...]:
        """Names of the state that has a number for each weight, for the rule and the rounding."""
        initial = ("initial",) if one.rule.target == "initial" else ()
        return (*one.rounding.memory(torch.bfloat16), *initial)

    def _begin(self, p: Tensor, one: Work, position: int) -> None:
        """Put what direction, rounding and rule remember of a tensor into its state, where it is not there yet."""
        state, rounding = self.state[p], one.rounding
        widened = rounding.acts_on(p.dtype)
        own = torch.float32 if widened else p.dtype
        for key, shape in self.state_shapes(one.group, p).items():
            dtype = torch.promote_types(own, torch.float32) if key in self.wide_state else own
            kept = state.get(key)
            if kept is None:
                state[key] = p.new_zeros(shape, dtype=dtype) if shape != p.shape else torch.zeros_like(p, dtype=dtype)
            elif kept.dtype != dtype:  # torch kept it in the weights' low precision
                state[key] = kept.to(dtype)

        if widened and not state.keys() >= rounding.memory(p.dtype).keys():
            state.update(rounding.begin(p))
        if widened and rounding.needs_noise and STREAM not in state:
            assert p.grad is not None
            state[STREAM] = noise_stream(one.label(position), p, p.grad)
        if widened and rounding.needs_noise and ROUNDED not in state:
            state[ROUNDED] = torch.zeros((), dtype=torch.int64)
        if one.rule.target == "initial" and "initial" not in state:
            state["initial"] = p.clone(memory_format=torch.contiguous_format)

    def _count_roundings(self, params: list[Any], rounding: Rounding) -> None:
        if rounding.needs_noise and (rounded := [p for p in params if rounding.acts_on(p.dtype)]):
            torch._foreach_add_([self.state[p][ROUNDED] for p in rounded], 1)

    # --- meeting torch's tools

    def _refuse_unusable(self, work: list[Work]) -> None:
        """Raise for what a step cannot do, before anything has changed."""
        checked, places = self._workspace.checked, places_of(self.state)
        undisturbed = places == self._workspace.places
        unfit: list[str] = []
        seen: dict[int, Any] = {}
        for one in work:
            group, place = one.group, one.place
            settings, kinds = _settings(group), kinds_of(one.weights)
            before, kinds_before = checked.get(place, ((), ()))
            if len(settings) != len(before) or not all(map(operator.is_, settings, before)):
                group.update(with_plain_numbers(group))
                # Whose key is whose cannot be told any more: others' schedulers have some of their own.
                if faults := group_faults({**self.defaults, **group}, group_title(group, place), self.refusal):
                    raise OptimizerError(faults)
            elif undisturbed and kinds == kinds_before:
                continue  # nothing was written into it, and nothing moved, since the last step
            seen[place] = _settings(group), kinds
            unfit += [
                f"{group_title(group, place)}: {fault}"
                for fault in misfits(one, self.state, self.state_shapes, self.wide_state)
            ]
            unfit += self._lacks(group, place, {p: self.state.get(p) for p in one.weights})

        if seen:
            unfit += shared_tensors(self.param_groups)
        faults = [f"{group_title(one.group, one.place)}: {fault}" for one in work for fault in self._step_faults(one)]
        if faults := unfit + faults:
            raise UnsupportedTensorError(faults)
        checked.update(seen)
        self._workspace.places = places

    def _step_faults(self, one: Work) -> Iterator[str]:
        """Gradients and weights of a group that the direction, the rule or the rounding cannot take."""
        kind, group, weights = type(self).__name__, one.group, one.weights
        sparse = [p for p in weights if p.grad.is_sparse]
        if sparse and (group["weight_decay"] or not self.takes_sparse or one.rounding.acts_on(sparse[0].dtype)):
            yield (
                f"{kind} does not support sparse gradients, whose step would leave most rows out of the decay and of a "
                "rounding: make the embedding dense (sparse=False)"
            )

        if any(p.is_complex() for p in weights):
            if not self.takes_complex:
                yield f"{kind} does not support complex parameters"
            elif one.rule.is_masked:
                yield f"rule '{one.rule.name}' compares signs, which complex weights do not have"

        if group.get("fused") and (group.get("differentiable") or any(p.is_complex() for p in weights)):
            yield f"fused=True of {kind} takes no complex weights and no differentiable=True: give fused=False"

        unfit = {p.dtype for p in weights if one.rounding.acts_on(p.dtype) and p.dtype not in one.rounding.dtypes}
        if unfit:
            yield (
                f"rounding='{one.rounding.name}' is made for bfloat16, not for "
                f"{', '.join(sorted(map(dtype_name, unfit)))}: give one that remembers "
                f"what is lost ({', '.join(r.name for r in ROUNDINGS.values() if r.memory(torch.bfloat16))})"
            )

        asks_for_gradients = any(getattr(group[key], "requires_grad", False) for key in ("lr", "weight_decay"))
        if group.get("differentiable") and not self._is_kernels_own(one.rule) and asks_for_gradients:
            yield (
                f"rule '{one.rule.name}' of {kind} passes no gradient on to lr and weight_decay, only a rule that "
                "torch's own step follows does: detach them"
            )

    def _is_kernels_own(self, rule: Rule) -> bool:
        """Whether the direction's kernel means by λ what the rule means."""
        return rule.coupled or (self.kernel_decays and rule.is_torchs)

    def _works_beside_kernel(self, one: Work) -> bool:
        """Whether more than the fused kernel acts in this group's step, and must know what the kernel is told."""
        return one.rounding.acts_on(torch.bfloat16) or one.kernels is None
