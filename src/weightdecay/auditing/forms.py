"""How the decay of each group follows its numbers: a = factor · lr^p · λ, seen on a few of its real tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from weightdecay.auditing.measuring import Removed
from weightdecay.auditing.sharding import added_over_shards
from weightdecay.auditing.sighting import Sighting
from weightdecay.auditing.stepping import Bench, Settings

LARGE = 0.25
"""What a large λ is to remove: more than any rounding hides, and less than any rule refuses."""

_WORKABLE = (0.05, 0.6)
_TRIES = 6
_USUAL_LR = 1e-3
_PEAKS = ("peak_lr", "max_lr", "initial_lr")
# cos² of what a decay removes and the weights; of a λ that goes through a sign it is 2/π.
ALONG = 0.98
_POWERS = (0.0, 0.5, 1.0, 2.0, 3.0)


@dataclass
class Form:
    """How one group's λ removes.

    Attributes:
        lr, weight_decay: as they stand in the group.
        large: numbers of a step in which about a quarter is removed, if any do so.
        factor, lr_power: None where no such form fits.
        along: what is removed goes along the weights.
    """

    lr: float | None
    weight_decay: float | None
    peak_lr: float | None = None
    peak_key: str = ""
    large: dict[str, float] = field(default_factory=dict)
    factor: float | None = None
    lr_power: float | None = None
    reads_weight_decay: bool = False
    reads_lr: bool = True
    along: bool = True

    def removes(self) -> float | None:
        """What the group's own numbers ask for."""
        if self.factor is None or self.lr_power is None or self.weight_decay is None:
            return None
        lr = 1.0 if self.lr is None else self.lr
        if lr == 0.0:
            return 0.0 if self.lr_power > 0 else self.factor * self.weight_decay
        return float(self.factor * lr**self.lr_power * self.weight_decay)


def number(value: Any) -> float | None:
    """A setting as a number; None where it is none."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def settings_of(optimizer: Any, group: Mapping[str, Any]) -> Form:
    """What stands in a group."""
    known = {key: number(group.get(key)) for key in ("lr", *_PEAKS)}
    peaks = {key: value for key, value in known.items() if value is not None}
    default = number(getattr(optimizer, "defaults", {}).get("lr"))
    if default is not None:
        peaks["defaults"] = default
    peak_key = max(peaks, key=lambda key: peaks[key], default="")
    return Form(known["lr"], number(group.get("weight_decay")), peaks.get(peak_key), peak_key)


def find_forms(bench: Bench, forms: Sequence[Form]) -> None:
    """Find the form of each group of which a tensor stands on the bench."""
    groups = sorted({place.group for place in bench.places if forms[place.group].weight_decay is not None})
    if not groups:
        return
    lrs = {group: _usable_lr(forms[group]) for group in groups}
    tries = {group: _first(lrs[group]) for group in groups}
    seen: dict[int, Removed] = {}
    open_groups = list(groups)
    for _ in range(_TRIES):
        now = _removed(bench, {group: {**lrs[group], "weight_decay": tries[group]} for group in groups})
        if now is None:  # a rule that knows its bound refuses more
            tries = {group: value / 8 for group, value in tries.items()}
            continue
        seen = now
        open_groups = [group for group in groups if not _is_workable(seen[group])]
        if not open_groups:
            break
        for group in open_groups:
            tries[group] *= _next(seen[group])
    for group in groups:
        form = forms[group]
        form.large = {"weight_decay": tries[group]}
        if form.lr is not None and not form.lr:
            form.large |= lrs[group]
        if group in seen:
            form.reads_weight_decay = seen[group].dd > 0
            form.along = max(seen[group].along_before, seen[group].along_after) > ALONG
    _find_powers(bench, forms, groups, lrs, tries, seen)


def _find_powers(
    bench: Bench, forms: Sequence[Form], groups: Sequence[int], lrs: Mapping[int, dict[str, float]],
    tries: Mapping[int, float], seen: Mapping[int, Removed],
) -> None:  # fmt: skip
    slower = {g: {**{key: lr / 2 for key, lr in lrs[g].items()}, "weight_decay": tries[g]} for g in groups}
    smaller = {g: {**lrs[g], "weight_decay": tries[g] / 2} for g in groups}
    at_half_lr, at_half = _removed(bench, slower), _removed(bench, smaller)
    if at_half_lr is None or at_half is None:
        return
    for group in groups:
        form, whole = forms[group], seen.get(group)
        if whole is None:
            continue
        form.reads_lr = not lrs[group] or at_half_lr[group] != whole
        a, less, half = (_fraction(one) for one in (whole, at_half_lr[group], at_half[group]))
        if not form.along or a <= 0 or less <= 0 or abs(half / a - 0.5) > 0.02:
            continue
        power = math.log2(a / less) if lrs[group] else 0.0
        nearest = min(_POWERS, key=lambda known: abs(known - power))
        power = nearest if abs(nearest - power) < 0.05 else power
        form.lr_power = power
        lr = lrs[group].get("lr", 1.0)
        form.factor = a / (lr**power * tries[group])


def _removed(bench: Bench, settings: Settings) -> dict[int, Removed] | None:
    """What is removed from each group's tensors at these numbers; None where a step refuses them."""
    try:
        moments = [
            added_over_shards(one, place.tensor)
            for one, place in zip(Sighting(bench, settings).seen_large(), bench.places, strict=True)
        ]
    except Exception:  # others' code
        return None
    found: dict[int, Removed] = {}
    for group in settings:
        own = [one for one, place in zip(moments, bench.places, strict=True) if place.group == group]
        found[group] = Removed.of(sum(own[1:], own[0]))
    return found


def _usable_lr(form: Form) -> dict[str, float]:
    if form.lr is None:
        return {}
    return {"lr": form.lr or form.peak_lr or _USUAL_LR}


def _first(lr: Mapping[str, float]) -> float:
    return LARGE / lr["lr"] if lr else LARGE


def _fraction(seen: Removed) -> float:
    """Of the elements on which it acts."""
    return seen.wd / seen.acted if seen.acted > 0 else 0.0


def _is_workable(seen: Removed) -> bool:
    return _WORKABLE[0] <= _fraction(seen) <= _WORKABLE[1]


def _next(seen: Removed) -> float:
    a = _fraction(seen)
    return LARGE / a if a > 1e-6 else 1e3
