"""The code that mends a finding, to be pasted where `model` and the optimizer are at hand.

Whatever can be mended in place is, so that moments and schedules stay; where another optimizer is needed, its groups
are those of the old one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightdecay.amounts import number
from weightdecay.auditing.arguments import UNSAID, Told
from weightdecay.auditing.asking import steps_taken
from weightdecay.auditing.judging import Judgement
from weightdecay.auditing.keys import is_scale, scaled_by
from weightdecay.auditing.losing import LOW_PRECISION
from weightdecay.auditing.placing import Placing
from weightdecay.auditing.probed import Probe, ProbedTensor
from weightdecay.auditing.scales import Scale

# What our optimizers take over of a group of another's.
_CARRIED = ("params", "lr", "weight_decay", "betas")
_IN_PLACE = "decoupled_weight_decay"  # of torch's Adam, NAdam and RAdam; with it they are decoupled


class Fixes:
    """Fixes for the findings of one audit.

    Args:
        told: the arguments, with what the caller calls the optimizers.
        placing: where tensors stand.
        probe: what was seen.
        scales: of each group, by (optimizer, group).
    """

    def __init__(self, told: Told, placing: Placing, probe: Probe, scales: Mapping[tuple[int, int], Scale]) -> None:
        self.told, self.placing, self.probe, self.scales = told, placing, probe, scales

    def of(self, code: str, ones: Sequence[Judgement]) -> str:
        """The code that mends these; "" where nothing is to be done, or no code does it."""
        about = ones[0].about
        ways: dict[str, Callable[[Sequence[Judgement]], str]] = {
            "decays-exempt": self._regrouped,
            "exempt-matrix": self._regrouped,
            "missing": self._added,
            "doubled": self._once,
            "stale": self._set,
            "lost-to-rounding": self._rounded,
            "coupled": self._decoupled,
            "decoupled": self._replaced,
            "decays-twice": self._once_a_step,
            "not-decaying": lambda ones: self._without_hooks(ones) or self._controlled(ones),
            "wrong-scale": self._controlled,
            "wrong-order": self._controlled,
            "ignored-key": self._controlled if about == "weight_decay" else self._scaled,
        }
        if code == "idle-decay":
            return self._left_alone(ones) if about == "whole" else self._spared(ones)
        if about == "nobody asks":
            return self._asked_for(ones)
        is_opinion = ones[0].severity == "note" and code in ("wrong-scale", "coupled")
        return "" if code not in ways or is_opinion else ways[code](ones)

    # --- groups

    def _regrouped(self, ones: Sequence[Judgement]) -> str:
        """Whoever asked for no decay at all has nobody to be regrouped."""
        given = self.told.weight_decay[ones[0].optimizer]
        if given == 0.0:
            return self._without_hooks(ones)
        told = "" if given is None else f", weight_decay={given:g}"
        if self._has_plan and given is None and not self._is_scheduled(ones):
            told = ", weight_decay=plan.weight_decay"
        lines = [f"weightdecay.regroup({name}, plan{told})" for name in self._names(ones)]
        own = [] if self._has_plan else [f"plan = {self._plan()}"]
        return "\n".join(["import weightdecay", "", *own, *lines])

    def _spared(self, ones: Sequence[Judgement]) -> str:
        """Tables whose rows are to stay while no token asks for them; a policy that was given has decided.

        Where nothing else decays, whoever gave a λ has decided, too.
        """
        names = {one.name for one in ones}
        decaying = {(group.optimizer, group.group) for group in self.probe.groups if group.weight_decay}
        others = [t for t in self.probe.tensors if (t.optimizer, t.group) in decaying and t.name not in names]
        if self.told.policy_is_given or not others:
            return ""
        spared = ", ".join(f'r"^{re.escape(one.name)}$": 0.0' for one in ones)
        plan = f'weightdecay.plan(model, overrides={{{spared}}}, unknown="exempt", trace="optional")'
        lines = [f"weightdecay.regroup({name}, plan)" for name in self._names(ones)]
        return "\n".join(["import weightdecay", "", f"plan = {plan}", *lines])

    def _left_alone(self, ones: Sequence[Judgement]) -> str:
        """Zeros made None, or a step that passes by what has None."""
        tensors = [self._tensor(one) for one in ones]
        has_zeros = any(tensor is None or tensor.has_gradient for tensor in tensors)
        return _LEFT_ALONE if has_zeros else self._ours(ones)

    def _asked_for(self, ones: Sequence[Judgement]) -> str:
        remark = "  # if decay is wanted; weightdecay.advise says how much"
        lines = [f"weightdecay.regroup({name}, plan)" for name in self.told.names[: len(self._names(ones)) or 1]]
        return "\n".join(["import weightdecay", "", f"plan = {self._plan(0.1)}{remark}", *lines])

    def _is_scheduled(self, ones: Sequence[Judgement]) -> bool:
        """Whether λ follows a schedule, so that a plan says no more than its shares."""
        places = {one.optimizer for one in ones}
        return any("decay_step" in group for place in places for group in self.told.optimizers[place].param_groups)

    @property
    def _has_plan(self) -> bool:
        return self.told.plan is not None and self.told.policy is UNSAID

    def _plan(self, weight_decay: float | None = None) -> str:
        policy = self.told.policy
        given = "" if policy is UNSAID else f", policy={policy!r}" if isinstance(policy, str) else ", policy=policy"
        λ = "" if weight_decay is None else f", weight_decay={weight_decay:g}"
        return f'weightdecay.plan(model{λ}{given}, unknown="exempt", trace="optional")'

    def _added(self, ones: Sequence[Judgement]) -> str:  # noqa: ARG002  # all that are missing, wherever
        place = self._for_the_rest()
        name, optimizer = self.told.names[place], self.told.optimizers[place]
        λ = self._weight_decay(place)
        plan = "plan" if self._has_plan else self._plan(λ)
        head = "" if self._has_plan else "import weightdecay\n\n"
        if self._holds_some(place) and hasattr(optimizer, "add_param_group"):
            return f"{head}{plan}.add_to({name})"
        if not hasattr(optimizer, "add_param_group"):
            return ""
        lr = self._lr(place)
        return f"{head}{name} = type({name})({plan}.param_groups(lr={lr:g}){_settings(optimizer)})"

    def _for_the_rest(self) -> int:
        """The optimizer that takes any tensor: Muon takes matrices alone."""
        kinds = [type(one).__name__.lower() for one in self.told.optimizers]
        return next((place for place, kind in enumerate(kinds) if "muon" not in kind), 0)

    def _holds_some(self, place: int) -> bool:
        held = (p for group in self.told.optimizers[place].param_groups for p in group["params"])
        return any(p in self.placing.names for p in held)

    def _once(self, ones: Sequence[Judgement]) -> str:
        places = range(len(self.told.names)) if ones[0].about == "several optimizers" else {o.optimizer for o in ones}
        loops = "\n".join(
            f"for group in {self.told.names[place]}.param_groups:\n"
            '    group["params"] = [p for p in dict.fromkeys(group["params"]) if p not in seen]\n'
            '    seen.update(group["params"])'
            for place in places
        )
        return f"seen = set()\n{loops}"

    def _set(self, ones: Sequence[Judgement]) -> str:
        if ones[0].about == "lr":
            return "\n".join(self._lr_set(place) for place in dict.fromkeys(one.optimizer for one in ones))
        by_policy = self.told.policy_is_given or not self._decays_anywhere(ones)
        if by_policy and self.told.weight_decay[ones[0].optimizer] != 0.0:
            return self._regrouped(ones)
        return "\n".join(
            f"for group in {self.told.names[place]}.param_groups:\n"
            '    if group["weight_decay"]:\n'
            f'        group["weight_decay"] = {self._weight_decay(place):g}'
            for place in dict.fromkeys(one.optimizer for one in ones)
        )

    def _decays_anywhere(self, ones: Sequence[Judgement]) -> bool:
        places = {one.optimizer for one in ones}
        return any(group.weight_decay for group in self.probe.groups if group.optimizer in places)

    def _lr_set(self, place: int) -> str:
        rate = self.told.lr[place]
        if callable(rate):
            rate = rate(steps_taken(self.told.optimizers[place]) or 0)
        shared = any("lr_multiplier" in group for group in self.told.optimizers[place].param_groups)
        times = ' * group.get("lr_multiplier", 1.0)' if shared else ""
        return f'for group in {self.told.names[place]}.param_groups:\n    group["lr"] = {rate:g}{times}'

    def _scaled(self, ones: Sequence[Judgement]) -> str:
        key = ones[0].about
        what = scaled_by(key)
        if not is_scale(key):
            body = f'    if "{key}" in group:\n        group["{what}"] = group.pop("{key}")'
        else:
            keys = '("lr", "initial_lr")' if what == "lr" else '("weight_decay",)'
            body = (
                f'    for key in {keys}:\n        if key in group:\n            group[key] *= group.get("{key}", 1.0)'
            )
        return "\n".join(f"for group in {name}.param_groups:\n{body}" for name in self._names(ones))

    # --- optimizers

    def _rounded(self, ones: Sequence[Judgement]) -> str:
        if ones[0].about not in LOW_PRECISION:
            return "\n".join(
                f"for group in {name}.param_groups:  # lr·λ is below what {ones[0].about} can take off a weight\n"
                '    group["weight_decay"] = 0.0  # which is what happens; ask for no less than lr·λ = 1e-7, or for 0'
                for name in self._names(ones)
            )
        return self._ours(ones, 'rounding="kahan"', "  # or master, stochastic")

    def _ours(self, ones: Sequence[Judgement], settings: str = "", remark: str = "", kind: str = "") -> str:
        """One of our optimizers over the same groups."""
        blocks = []
        for place in dict.fromkeys(one.optimizer for one in ones):
            name, optimizer = self.told.names[place], self.told.optimizers[place]
            ours = kind or _our_kind(self.probe.optimizers[place].bases)
            carried = [key for key in _CARRIED if all(key in group for group in optimizer.param_groups)]
            keys = ", ".join(f'"{key}"' for key in carried)
            also = f", {settings}" if settings else ""
            blocks.append(
                f"keys = ({keys})\n"
                f"groups = [{{key: group[key] for key in keys}} for group in {name}.param_groups]\n"
                f"{name} = weightdecay.{ours}(groups, lr={self._lr(place):g}{also}){remark}"
            )
        return "\n".join(["import weightdecay", "", *blocks])

    def _decoupled(self, ones: Sequence[Judgement]) -> str:
        places = dict.fromkeys(one.optimizer for one in ones)
        if all(_IN_PLACE in group for place in places for group in self.told.optimizers[place].param_groups):
            return "\n".join(
                f'for group in {self.told.names[place]}.param_groups:\n    group["{_IN_PLACE}"] = True'
                for place in places
            )
        return self._ours(ones)

    def _replaced(self, ones: Sequence[Judgement]) -> str:
        """By what decays as its name says: as L2 where that is wanted, and else as before."""
        return self._ours(ones, kind="AdamL2" if self._wants_l2 else "AdamW")

    @property
    def _wants_l2(self) -> bool:
        return self.told.rule is not None and self.told.rule.coupled

    def _once_a_step(self, ones: Sequence[Judgement]) -> str:
        if all(self._is_done_elsewhere(one) for one in ones):
            return "\n".join(
                f"for group in {name}.param_groups:\n"
                '    group["weight_decay"] = 0.0  # what stands around the optimizer decays already'
                for name in self._names(ones)
            )
        tensors = [self._tensor(one) for one in ones]
        if not self._wants_l2 and any(tensor is not None and tensor.beside for tensor in tensors):
            return self._ours(ones)  # the gradient's way is no better
        return self._without_hooks(ones) or self._ours(ones)

    def _is_done_elsewhere(self, one: Judgement) -> bool:
        tensor = self._tensor(one)
        elsewhere = tensor.from_elsewhere if tensor is not None else None
        return bool(one.asked and elsewhere and abs(elsewhere / one.asked - 1.0) < 0.1)

    def _tensor(self, one: Judgement) -> ProbedTensor | None:
        held = (t for t in self.probe.tensors if (t.optimizer, t.group) == (one.optimizer, one.group))
        return next((tensor for tensor in held if tensor.name == one.name), None)

    def _without_hooks(self, ones: Sequence[Judgement]) -> str:
        lines = []
        for place in dict.fromkeys(one.optimizer for one in ones):
            name = self.told.names[place]
            for kind in ("pre", "post"):
                hooks = [hook for hook in self.probe.optimizers[place].hooks if hook.startswith(f"{kind} hook")]
                if hooks:
                    lines.append(f"{name}._optimizer_step_{kind}_hooks.clear()  # {', '.join(hooks)}")
        return "\n".join(lines)

    def _controlled(self, ones: Sequence[Judgement]) -> str:
        lines = []
        for place in dict.fromkeys(one.optimizer for one in ones):
            own = [scale for (optimizer, _), scale in self.scales.items() if optimizer == place]
            rule = own[0].rule if own else None
            peak = ""
            if rule is not None and rule.needs_peak:
                peak = f", peak_lr=[{', '.join(f'{scale.peak or 0.0:g}' for scale in own)}]"
            called = "decoupled" if rule is None else rule.name
            lines.append(f'weightdecay.control({self.told.names[place]}, rule="{called}"{peak})')
        return "\n".join(["import weightdecay", "", *lines])

    # --- numbers

    def _names(self, ones: Sequence[Judgement]) -> list[str]:
        return [self.told.names[place] for place in dict.fromkeys(one.optimizer for one in ones)]

    def _weight_decay(self, place: int) -> float:
        """λ that was told, or that most of an optimizer's tensors have."""
        given = self.told.weight_decay[place]
        if given is not None:
            return given
        if self.told.plan is not None:
            return self.told.plan.weight_decay
        found = [group.weight_decay for group in self.probe.groups if group.optimizer == place and group.weight_decay]
        return max(found, key=found.count, default=0.1)

    def _lr(self, place: int) -> float:
        rates = (number(group.get("lr")) for group in self.told.optimizers[place].param_groups)
        return max((rate for rate in rates if rate is not None), default=1e-3)


_LEFT_ALONE = """\
for p in model.parameters():
    if p.grad is not None and not p.grad.any():
        p.grad = None  # left alone; zero_grad(set_to_none=True) leaves none behind"""


def _our_kind(bases: Sequence[str]) -> str:
    """Ours that steps as that class does."""
    for name in bases:
        for part, ours in (("lion", "Lion"), ("sgd", "SGDW"), ("adafactor", "Adafactor"), ("adam", "AdamW")):
            if part in name.lower():
                return ours
    return "AdamW"


def _settings(optimizer: Any) -> str:
    """The settings of an optimizer that are not its class's defaults, as keywords."""
    known = inspect.signature(type(optimizer)).parameters
    defaults: Mapping[str, Any] = getattr(optimizer, "defaults", None) or {}
    given = {
        key: value
        for key, value in defaults.items()
        if key in known
        and key not in ("lr", "weight_decay")
        and isinstance(value, bool | int | float | str | tuple)
        and value != known[key].default
    }
    return "".join(f", {key}={value!r}" for key, value in given.items())
