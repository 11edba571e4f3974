"""What the name of an optimizer's class makes one expect of its decay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Adam itself, whoever fused it; what others call after it (RAdam, StableAdam) may well decouple.
_COUPLED = re.compile(
    r"^((deepspeed|distributed|fused|paged|cpu|hybrid|torch)*n?adam|adamax|amsgrad|rmsprop|adagrad|adadelta)"
    r"(_?(8|4|32)_?bit)?(l2)?$",
    re.IGNORECASE,
)
_DECOUPLED = re.compile(r"(adamw|sgdw|lion|muon|adafactor|decoupled)", re.IGNORECASE)
_SAYS_SO = re.compile(r"decoupl|adam_?w", re.IGNORECASE)


def is_named_coupled(bases: Sequence[str]) -> bool:
    """Whether the first of its classes whose name tells anything is an adaptive one with L2, such as `Adam`."""
    for name in bases:
        if _DECOUPLED.search(name):
            return False
        if _COUPLED.search(name):
            return True
    return False


def is_linear(bases: Sequence[str]) -> bool:
    """Whether a step is the gradient times a number, so that λ in it is nearly what it is beside it."""
    return is_sgd(bases) or any("lars" in name.lower() for name in bases)


def is_sgd(bases: Sequence[str]) -> bool:
    """Whether it is SGD, of which a step with λ in the gradient takes lr·λ."""
    return any("sgd" in name.lower() for name in bases)


def says_it_decouples(settings: Mapping[str, Any]) -> bool:
    """Whether its group says so itself: `decoupled_weight_decay=True`."""
    return any(value is True and _SAYS_SO.search(str(key)) for key, value in settings.items())
