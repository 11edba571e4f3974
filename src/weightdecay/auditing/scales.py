"""By which rule each group decays: the rule that was told, its own, or the one that most of its optimizer follow.

A rule is a_t = λ · η_t^p / η_peak^q. What the probe has seen of a group is a = factor · η^p · λ, so that a group
follows a rule where the powers are the same and factor · η_peak^q = 1, with the group's own peak.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightdecay.amounts import number
from weightdecay.auditing.probed import ProbedGroup
from weightdecay.errors import WeightDecayError
from weightdecay.rules import CORRECTED, DECOUPLED, FIXED, INDEPENDENT, LR_SQUARED, Rule, as_rule

# The simplest first: where several fit, as at an lr of 1, it counts.
KNOWN = (DECOUPLED, INDEPENDENT, FIXED, LR_SQUARED, CORRECTED)
_OWN_PEAKS = ("peak_lr", "max_lr", "initial_lr")
_SOME_LR = 1e-3  # at which two forms are compared where a group's lr is 0
_ALIKE = 0.05  # of two factors, of which one may have been seen in bfloat16
_OF_NO_SCALE = frozenset({"params", "lr", "weight_decay", "initial_lr", "max_lr", "min_lr", "peak_lr"})


@dataclass(frozen=True)
class Scale:
    """How one group decays, beside the rule by which it should.

    Attributes:
        rule: the rule.
        told: somebody said that it is this one: the caller, or the group itself.
        peak: the group's own highest lr, as far as it is known.
        off: what its form gives, divided by what the rule gives; None where the form was not seen.
        astray: it follows another lr, another peak or another power, and not its own.
        explained: what its lr is multiplied by: the number of a key of the group, as learning-rate-free optimizers do,
            or a function of its matrices' shape, as Muons do.
    """

    rule: Rule
    told: bool
    peak: float | None
    off: float | None = None
    astray: bool = False
    explained: str = ""


def scales(groups: Sequence[ProbedGroup], settings: Sequence[Mapping[str, Any]], told: Rule | None) -> list[Scale]:
    """For each group of one optimizer its rule, and how it stands to it.

    Args:
        groups: as probed.
        settings: the groups themselves.
        told: the rule that the caller wants.
    """
    peaks = [own_peak(group, given) for group, given in zip(groups, settings, strict=True)]
    main = told or _most_followed(groups, peaks)
    found = []
    for group, given, peak in zip(groups, settings, peaks, strict=True):
        own = None if told is not None else _own_rule(given)
        found.append(Scale(own or main, told is not None or own is not None, peak, _off(group, own or main, peak)))
    if law := _law_of_shapes(found, settings):
        return [_with(scale, explained="" if scale.told or scale.off is None else law) for scale in found]
    return [_judged(found, groups, place, settings[place]) for place in range(len(found))]


def own_peak(group: ProbedGroup, settings: Mapping[str, Any]) -> float | None:
    """The highest lr that the group itself has: the constructor's counts where no key of its own says one."""
    own = [value for value in (number(settings.get(key)) for key in _OWN_PEAKS) if value]
    if own:
        return max([*own, group.lr or 0.0])
    return max(group.peak_lr or 0.0, group.lr or 0.0) or None


def per_step(rule: Rule, weight_decay: float, lr: float | None, peak: float | None) -> float | None:
    """a_t of a rule; that of lr·λ for the coupled one, which has none; None where the peak or the lr is not known."""
    if lr is None or (rule.needs_peak and not peak):
        return None
    if rule.coupled:
        return lr * weight_decay
    return rule.decay_per_step(lr, weight_decay, peak)


def _own_rule(settings: Mapping[str, Any]) -> Rule | None:
    if "rule" not in settings:
        return None
    try:
        return as_rule(settings["rule"])
    except WeightDecayError:
        return None


def _most_followed(groups: Sequence[ProbedGroup], peaks: Sequence[float | None]) -> Rule:
    """The rule of most groups' form; of present amounts where no form is clean; `decoupled` where nothing tells."""
    seen = [(group, peak) for group, peak in zip(groups, peaks, strict=True) if group.factor is not None]
    decaying = [(group, peak) for group, peak in seen if group.weight_decay] or seen
    votes: Counter[str] = Counter()
    for group, peak in decaying:
        followed = next((rule for rule in KNOWN if _follows(group, rule, peak)), None)
        if followed is not None:
            votes[followed.name] += 1
    if votes:
        most = max(votes.values())
        return next(rule for rule in KNOWN if votes[rule.name] == most)
    return DECOUPLED


def _follows(group: ProbedGroup, rule: Rule, peak: float | None) -> bool:
    if group.lr_power is None or abs(group.lr_power - rule.lr_power) > _ALIKE:
        return False
    off = _off(group, rule, peak)
    return off is not None and abs(off - 1.0) < _ALIKE


def _off(group: ProbedGroup, rule: Rule, peak: float | None) -> float | None:
    if group.factor is None or group.lr_power is None or rule.coupled or group.lr is None:
        return None
    lr = group.lr or peak or _SOME_LR
    expected = per_step(rule, 1.0, lr, peak)
    return None if not expected else group.factor * lr**group.lr_power / expected


def _judged(found: Sequence[Scale], groups: Sequence[ProbedGroup], place: int, settings: Mapping[str, Any]) -> Scale:
    scale, group = found[place], groups[place]
    if not scale.told and (key := _own_rate(settings)):
        return _with(scale, explained=key)
    if scale.off is None or group.lr_power is None or abs(scale.off - 1.0) < _ALIKE:
        return scale
    if abs(group.lr_power - scale.rule.lr_power) > _ALIKE:
        return _with(scale, astray=True)

    seen = [(one, of) for one, of in zip(found, groups, strict=True) if one.off is not None and of.lr_power is not None]
    uniform = all(_near(one.off, scale.off) for one, _ in seen)
    if uniform and (key := _key_of(scale.off, group, settings)):
        return _with(scale, explained=key)
    # One factor for all, or one for this group alone that is nobody else's lr or peak, comes from elsewhere.
    others = {value for one, of in seen if of is not group for value in (one.peak, of.lr, of.peak_lr) if value}
    mine = scale.peak or group.lr
    foreign = mine is not None and any(_near(scale.off, mine / other) or _near(scale.off, other / mine)
                                       for other in others if not _near(mine, other))  # fmt: skip
    return _with(scale, astray=foreign or not (uniform or scale.off >= 1.5 or scale.off <= 0.5))


def _with(scale: Scale, *, astray: bool = False, explained: str = "") -> Scale:
    return Scale(scale.rule, scale.told, scale.peak, scale.off, astray, explained)


def _near(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and math.isclose(one, other, rel_tol=_ALIKE)


def _own_rate(settings: Mapping[str, Any]) -> str:
    """The key by which an optimizer has a rate of its own, that the group's lr is only a part of."""
    if "d" in settings and ("d0" in settings or "growth_rate" in settings):  # D-Adaptation, Prodigy
        return "d"
    return next((key for key in ("relative_step", "scale_parameter") if settings.get(key) is True), "")


# What the lr of a matrix with so many rows and columns is multiplied by.
_LAWS_OF_SHAPES: dict[str, Callable[[int, int], float]] = {
    "√max(1, rows/columns)": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),  # KellerJordan/Muon
    "√(rows/columns)": lambda rows, columns: math.sqrt(rows / columns),
    "max(1, rows/columns)": lambda rows, columns: max(1.0, rows / columns),
    "0.2·√max(rows, columns)": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),  # Moonlight
}


def _law_of_shapes(found: Sequence[Scale], settings: Sequence[Mapping[str, Any]]) -> str:
    """The law by which each group's lr goes with the one shape of its matrices; "" where there is none.

    One factor for all is no law: whoever decays twice takes twice as much from every shape.
    """
    seen = [
        (scale.off, {tuple(p.shape) for p in group.get("params", ())})
        for scale, group in zip(found, settings, strict=True)
        if scale.off is not None
    ]
    if not all(len(shapes) == 1 and len(next(iter(shapes))) == 2 for _, shapes in seen):
        return ""
    shaped = [(off, *next(iter(shapes))) for off, shapes in seen]
    for name, law in _LAWS_OF_SHAPES.items():
        factors = [law(rows, columns) for _, rows, columns in shaped]
        differ = bool(factors) and not _near(min(factors), max(factors))
        if differ and all(_near(off, factor) for (off, _, _), factor in zip(shaped, factors, strict=True)):
            return name
    return ""


def _key_of(off: float, group: ProbedGroup, settings: Mapping[str, Any]) -> str:
    """The key whose number the lr is multiplied by, or that holds the lr as it is used."""
    for key, value in settings.items():
        amount = None if key in _OF_NO_SCALE else number(value)
        if amount and amount != 1.0 and (_near(amount, off) or (group.lr and _near(amount, off * group.lr))):
            return str(key)
    return ""
