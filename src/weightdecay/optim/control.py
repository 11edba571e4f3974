"""A decay rule, and a schedule for λ, on an optimizer that others wrote, without a change in the training loop.

    import torch
    from weightdecay import control
    from weightdecay.rules import INDEPENDENT
    from weightdecay.schedules import Linear

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1)
    control(optimizer, rule=INDEPENDENT, peak_lr=6e-4, schedule=Linear(6e-5, 0.0, steps=10_000))

Hooks before and after each step give the optimizer the λ that makes its own decay the rule's, or make λ 0 for the step
and let the weights decay beside it. `serving` says which is exact for a group, or that none is; `Watch` looks on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from weightdecay.errors import OptimizerError, group_title
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.decay import decay_, decay_all_, kernel_weight_decay, local
from weightdecay.optim.grouping import Group, with_gradient
from weightdecay.optim.loading import is_only_saved
from weightdecay.optim.precision import warn_of_rounding
from weightdecay.optim.scheduling import apply_schedules
from weightdecay.optim.serving import (
    PeakLr,
    Service,
    decays,
    optimizer_faults,
    peaks,
    rules_followed,
    services,
    step_faults,
)
from weightdecay.probing.outermost import OutermostStep
from weightdecay.probing.progress import counting_keys, steps_taken
from weightdecay.probing.watch import Watch
from weightdecay.rules import Rule, RuleLike, as_rule, group_decay_per_step, group_rule, plain_rule, spelt
from weightdecay.schedules import Schedule


class Control:
    """The hooks of one controlled optimizer; `remove()` takes them off and leaves λ as it is.

    State lies in the groups (`rule`, `peak_lr`, `decay_multiplier`, `decay_step`) and so travels with `state_dict`;
    hooks do not, as with any torch optimizer: after unpickling or copying, control the copy anew.
    """

    # What looks on at the real optimizer has no place in a copy that is tried.
    left_out_of_twins = ("_watch",)

    def __init__(self, optimizer: torch.optim.Optimizer, rule: Rule | None, schedule: Schedule | None) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self._rule = rule
        self._with_own_rule = {index for index, group in enumerate(optimizer.param_groups) if "rule" in group}
        self._is_ours = isinstance(optimizer, DecayingOptimizer)
        self._handles: list[RemovableHandle] = []
        self._rules: list[Rule] = []
        self._services: list[Service] = []
        self._counting = frozenset({"step"})  # the keys under which steps are counted
        self._watch: Watch | None = None
        self._outermost = OutermostStep()
        # Of the step in progress: each group's λ, whether it only shows what state there is, and the weights from
        # before it that masked rules decay, each with its rule and a_t.
        self._given: list[Any] | None = None
        self._saves = False
        self._whole: list[tuple[Tensor, Tensor, Rule, float]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handles": [], "_watch": None}  # which stay with the optimizer that they are on

    def __repr__(self) -> str:
        kind = type(self.optimizer).__name__
        if controlled(self.optimizer) is not self:
            return f"Control({kind}: not in effect; hooks travel with no copy and no pickle, control the copy anew)"
        self.settle()
        groups = "; ".join(self._described(group, index) for index, group in enumerate(self.optimizer.param_groups))
        seen = ""
        if self._watch and self._watch.seen:
            ended = f", {self._watch.ended}" if self._watch.ended else ""
            seen = (
                f"; exactness seen up to step {self._watch.seen} from here on copies of at most "
                f"{self._watch.largest} elements{ended}"
            )
        return f"Control({kind}: {groups}{seen})"

    def _described(self, group: Group, index: int) -> str:
        peak = f", peak lr {float(group['peak_lr']):g}" if group.get("peak_lr") is not None else ""
        step = f", step {group['decay_step']} of the schedule" if "decay_step" in group else ""
        try:
            decay = group_decay_per_step(group)
        except OptimizerError:
            decay = None
        a = "" if decay is None else f", decay per step {decay:.3g}"
        name, weight_decay = group_rule(group).name, float(group["weight_decay"])
        return f"{group_title(group, index)} rule {name}, λ {weight_decay:g}{peak}{a}{step}"

    def remove(self) -> None:
        """Take the hooks off; λ stays what it is now, and no schedule says any more what it should be."""
        self.settle()
        for handle in self._handles:
            handle.remove()
        for index, group in enumerate(self.optimizer.param_groups):
            if self.schedule is not None:
                group.pop("decay_step", None)
            if index not in self._with_own_rule:
                group.pop("rule", None)

    def decay_per_step(self) -> list[float | None]:
        """For each group the fraction that its next step will remove; None under a coupled rule."""
        self.settle()
        self._set_scheduled()
        return [group_decay_per_step(group) for group in self.optimizer.param_groups]

    def settle(self) -> None:
        """Put back each group's λ where the optimizer's step has raised, after which no hook runs."""
        if not self._outermost.is_running():
            self._restore()

    def weight_decays(self) -> list[Any]:
        """Each group's λ as it is meant, also within a step, for which the optimizer is given another."""
        own = [group["weight_decay"] for group in self.optimizer.param_groups]
        return own if self._given is None else [*self._given, *own[len(self._given) :]]

    # --- beginning

    def _attach(self) -> None:
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]
        # Others' hooks after a step are to find the weights that it leaves.
        in_order(self.optimizer._optimizer_step_post_hooks).move_to_end(self._handles[1].id, last=False)
        # Wrappers that were never made as an `Optimizer` have hooks of their step at most, and save in their own way.
        if hasattr(self.optimizer, "_optimizer_state_dict_pre_hooks"):
            self._handles.append(self.optimizer.register_state_dict_pre_hook(lambda _: self.settle()))

    def _follow(self, peak_lr: PeakLr | None = None) -> None:
        """Write into each group the rule that it follows, and find out how one that others wrote is served."""
        groups = self.optimizer.param_groups
        rules = rules_followed(self.optimizer, self._rule)
        highest = peaks(groups, rules, peak_lr)
        if not self._is_ours:
            self._services = services(self.optimizer, rules)
            self._refuse([decays(group) for group in groups])
            if self.schedule is not None:
                self._counting = counting_keys(self.optimizer)
            ways = [service.way for service in self._services]
            self._watch = Watch(self.optimizer, ways, [service.report for service in self._services])
        for group, rule, peak in zip(groups, rules, highest, strict=True):
            # As plain values where the group's optimizer knows no rules and saves what it holds.
            group["rule"] = spelt(rule) if self._is_ours else plain_rule(spelt(rule))
            if rule.needs_peak:
                group["peak_lr"] = peak
        self._rules = rules

    def _refuse(self, decaying: Sequence[bool]) -> None:
        if faults := [s.refusal for s, does in zip(self._services, decaying, strict=True) if does and s.refusal]:
            raise OptimizerError(list(dict.fromkeys(faults)))

    def _set_scheduled(self) -> None:
        """λ of this step, by each group's share and number of steps."""
        if self.schedule is None:
            return
        groups = self.optimizer.param_groups
        if any("decay_multiplier" in group for group in groups):
            for group in groups:  # one that was added since has a share of its own, whole or none
                group.setdefault("decay_multiplier", 1.0 if float(group["weight_decay"]) else 0.0)

        at = [steps_taken(self.optimizer, group, self._counting) for group in groups]
        for step in sorted(set(at)):
            chosen = [group for group, own in zip(groups, at, strict=True) if own == step]
            apply_schedules(self.optimizer, step, weight_decay=self.schedule, groups=chosen)

    def _adopt_new_groups(self) -> None:
        """Groups that were added, or loaded from an optimizer without control, follow the rule for the rest.

        So do tensors that were put into a group by hand.
        """
        groups = self.optimizer.param_groups
        known = all("rule" in group for group in groups) and [group_rule(group) for group in groups] == self._rules
        watch = self._watch
        if known and not (watch and (watch.has_other_tensors() or watch.is_passed_over() or watch.is_outgrown())):
            return
        self._follow()

    # --- each step

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hooks = in_order(optimizer._optimizer_step_pre_hooks)
        last = next(reversed(hooks))
        if last == self._handles[0].id:
            self._before_last(optimizer, args, kwargs)
            return

        # Hooks that came later may set lr and λ. While they run their order cannot change, but what the last of them
        # is can: it brings us along in this step, and before the next we stand behind it.
        theirs = hooks[last]

        def and_then(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hooks[last] = theirs
            given: Any = theirs(optimizer, args, kwargs)
            if given is None or (isinstance(given, tuple) and len(given) == 2):  # at anything else torch raises
                self._before_last(optimizer, *(given or (args, kwargs)))
            return given

        hooks[last] = and_then

    def _before_last(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._outermost.begins():
            self._begin(optimizer, args, kwargs)

    def _begin(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._restore()  # of a step before that raised
        self._saves = kwargs == {"closure": None} and is_only_saved(optimizer)
        if self._saves:
            self._given = [group["weight_decay"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                if self.schedule is not None:
                    # Which torch's own state counts as one.
                    group["decay_step"] = steps_taken(optimizer, group, self._counting)
                group["weight_decay"] = 0.0
            return

        self._adopt_new_groups()
        self._set_scheduled()
        if self._is_ours or bool(getattr(optimizer, "found_inf", None)):
            return
        amounts = [group_decay_per_step(group) for group in optimizer.param_groups]
        self._refuse([amount != 0.0 for amount in amounts])
        handed_over = [self._handed_over(index, amount) for index, amount in enumerate(amounts)]
        if faults := step_faults(optimizer, self._rules, amounts, handed_over, args[1:], kwargs):
            raise OptimizerError(faults)
        if self._watch:
            self._watch.step()
        self._decay(amounts, handed_over)

    def _handed_over(self, index: int, amount: float | None) -> Any:
        """The λ with which the optimizer's own step makes a group's decay; None where it is made outside."""
        group, way = self.optimizer.param_groups[index], self._services[index].way
        if way == "left":
            return group["weight_decay"]
        if way == "outside":
            return None if amount else 0.0  # of more, its own step might make something at lr 0, too
        return kernel_weight_decay(self._rules[index], group, amount)

    @torch.no_grad()
    def _decay(self, amounts: Sequence[float | None], handed_over: Sequence[Any]) -> None:
        """Decay what decays outside, and give each group the λ with which the optimizer does the rest."""
        groups = self.optimizer.param_groups
        self._given = [group["weight_decay"] for group in groups]
        for group, rule, amount, handed in zip(groups, self._rules, amounts, handed_over, strict=True):
            group["weight_decay"] = 0.0 if handed is None else handed
            if handed is None and rule.is_masked:  # when the update is known
                self._whole += [(p, p.detach().clone(), rule, amount or 0.0) for p in with_gradient(group)]
            elif handed is None:
                decay_all_(with_gradient(group), rule, amount or 0.0)

    @torch.no_grad()
    def _decay_masked(self) -> None:
        """w ← w − u − a·mask·w, with u as the step has shown it."""
        for p, whole, rule, amount in self._whole:
            before, after = local(whole), local(p)
            decayed = before.clone()
            decay_(decayed, rule, amount, 1 - amount, before - after)
            after.add_(decayed.sub_(before))
        self._whole = []

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if not self._outermost.ends():
            return
        self._decay_masked()
        self._restore()
        in_order(optimizer._optimizer_step_pre_hooks).move_to_end(self._handles[0].id)
        if self._watch:
            self._watch.stood()
        if self.schedule is None or self._saves or bool(getattr(optimizer, "found_inf", None)):
            return  # a GradScaler's skipped step is no step, nor is one that only shows what state there is
        for group in optimizer.param_groups:
            group["decay_step"] = steps_taken(optimizer, group, self._counting, before=True) + 1

    def _restore(self) -> None:
        self._whole = []
        if self._given is not None:
            for group, weight_decay in zip(self.optimizer.param_groups, self._given, strict=False):
                group["weight_decay"] = weight_decay
            self._given = None


def control(
    optimizer: torch.optim.Optimizer,
    *,
    rule: RuleLike | None = None,
    peak_lr: PeakLr | None = None,
    schedule: Schedule | None = None,
) -> Control:
    """Let an optimizer decay by a rule, and its λ follow a schedule.

    Args:
        optimizer: torch's, ours, or another's whose groups have `lr` and `weight_decay`.
        rule: a name, or a `Rule`; a group with its own `rule` keeps it. None: ours keep their rules, others get
            `decoupled`.
        peak_lr: the highest lr of the schedule, for rules that need it: one number where all groups have one lr, else
            one for each group, in order or by name. Where none is given a group's own `peak_lr` holds. The lr that a
            scheduler shows when one attaches is not the peak, and so it is never guessed.
        schedule: λ at each step, counted from 0. The group with the largest λ follows it, the others keep their
            proportion to it (`decay_multiplier`), and groups that do not decay go on not decaying.

    Returns:
        The hooks, to be removed when they are not wanted any more.

    Raises:
        OptimizerError: with every fault: an unknown rule, or one that reaches no group because each has its own; a peak
            that is missing or unclear; groups without `weight_decay` or a schedule over nothing but zeros; a group in
            which a step with the rule would not be exact; an optimizer that is under control already. Nothing has
            changed then.
    """
    faults = optimizer_faults(optimizer, rule, schedule)
    if not faults and controlled(optimizer) is not None:
        faults = [f"this {type(optimizer).__name__} is under control already: remove() that control first"]
    if faults:
        raise OptimizerError(faults)
    asked = None if rule is None else as_rule(rule)
    groups, rules = optimizer.param_groups, rules_followed(optimizer, asked)
    if asked is not None and asked not in rules:
        own = ", ".join(sorted({followed.name for followed in rules}))
        raise OptimizerError(
            f"rule '{asked.name}' reaches no group: each has its own ({own}), given or loaded; delete it where not "
            "wanted"
        )

    made = Control(optimizer, asked, schedule)
    before = [dict(group) for group in groups]
    try:
        made._follow(peak_lr)
        made.decay_per_step()  # a decay over 1 is to be known now
    except Exception:  # a schedule is the user's own function, and may raise anything
        for group, as_given in zip(groups, before, strict=True):
            group.clear()
            group.update(as_given)
        raise
    if isinstance(optimizer, DecayingOptimizer) and asked is not None:
        optimizer.defaults["rule"] = spelt(asked)
    made._attach()
    for index, group in enumerate(groups):
        warn_of_rounding(group, index)
    return made


def controlled(optimizer: torch.optim.Optimizer) -> Control | None:
    """The control that an optimizer is under, or None."""
    for hook in getattr(optimizer, "_optimizer_step_pre_hooks", {}).values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Control):
            return owner
    return None


def in_order(hooks: Any) -> OrderedDict[int, Any]:
    """An optimizer's table of hooks, which torch declares as a plain dict."""
    ordered: OrderedDict[int, Any] = hooks
    return ordered
