"""Keys of groups that were meant to scale the decay or the lr, and that nobody reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightdecay.amounts import number
from weightdecay.auditing.probed import ProbedGroup
from weightdecay.errors import misspelt

_SCALES = re.compile(r"(scale|mult|multiplier|factor|ratio|coef|coefficient)$", re.IGNORECASE)
_OF_DECAY = re.compile(r"decay|wei.*t|^wd|l2", re.IGNORECASE)
_OF_RATE = re.compile(r"lr|learning_?rate|layer", re.IGNORECASE)
# Shares that a schedule reads, and no optimizer.
_OURS = frozenset({"lr_multiplier", "decay_multiplier"})
_MEANT = ("weight_decay", "lr", *_OURS)
# What λ is called in other programs.
_OTHER_NAMES = frozenset({"wd", "decay", "l2", "l2_reg", "l2_lambda", "weightdecay", "weight_decay_rate"})


def ignored_keys(optimizer: Any, groups: Sequence[ProbedGroup]) -> list[str]:
    """For each group a key of it that should change its decay and changes nothing; "" where there is none.

    Scales count where nobody has applied them: a scheduler may have multiplied the group's lr by its `lr_scale`.
    """
    settings: Sequence[Mapping[str, Any]] = optimizer.param_groups
    defaults: Mapping[str, Any] = getattr(optimizer, "defaults", None) or {}
    found = []
    for group, own in zip(groups, settings, strict=True):
        scales = [key for key in group.unread_keys if _is_scale(key, own)]
        ignored = [key for key in scales if not _is_applied(key, settings, defaults)]
        ignored += [key for key in group.unread_keys if is_other_name(key) and number(own.get(key))]
        ignored += [str(key) for key in own if number(own[key]) and misspelt([key], {*_MEANT, *defaults})]
        found.append(ignored[0] if ignored else "")
    return found


def is_other_name(key: str) -> bool:
    """Whether a key is what others call λ, or λ misspelt."""
    return key.lower() in _OTHER_NAMES or bool(misspelt([key], ["weight_decay"]))


def is_scale(key: str) -> bool:
    """Whether a key says by its name that it scales something."""
    return _SCALES.search(key) is not None


def scaled_by(key: str) -> str:
    """Which of a group's numbers a key is meant for."""
    return "weight_decay" if _OF_DECAY.search(key) else "lr"


def _is_scale(key: str, settings: Mapping[str, Any]) -> bool:
    value = number(settings.get(key))
    is_one = value is None or math.isclose(value, 1.0)
    is_named = is_scale(key) and (_OF_RATE.search(key) or _OF_DECAY.search(key))
    return key not in _OURS and not is_one and bool(is_named)


def _is_applied(key: str, settings: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> bool:
    """Whether the numbers that it is meant for are in proportion to it."""
    what = scaled_by(key)
    pairs = [(number(group.get(key, 1.0)), number(group.get(what))) for group in settings]
    bases = [(scale, value / scale) for scale, value in pairs if scale and value]
    if not bases:
        return False
    if len({scale for scale, _ in bases}) > 1:
        return all(math.isclose(base, bases[0][1], rel_tol=1e-3) for _, base in bases)
    default = number(defaults.get(what))
    return default is not None and math.isclose(bases[0][1], default, rel_tol=1e-3)
