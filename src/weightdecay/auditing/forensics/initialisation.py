"""What the embedding's numbers had for a standard deviation at the start, by whoever says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightdecay.auditing.forensics.stored import Stored
from weightdecay.errors import ConfigError
from weightdecay.models.config import ModelConfig

# Deviation of a unit normal distribution that is cut at ±3, of which our `truncated` draws.
_CUT_AT_3 = math.sqrt(1 - 2 * 3 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
_KEYS = ("initializer_range", "init_std", "embedding_init_std", "init_method_std")


@dataclass(frozen=True)
class InitStd:
    """The standard deviation that the embedding's numbers had at the start.

    Attributes:
        low, high: between which it lies; equal where it is known.
        basis: who says so.
    """

    low: float
    high: float
    basis: str


def init_std_of(stored: Stored, given: float | tuple[float, float] | None) -> InitStd | None:
    """What is given, else what the configuration says; None where nobody does.

    Raises:
        ConfigError: a deviation that no initialisation has.
    """
    if given is not None:
        low, high = given if isinstance(given, tuple) else (given, given)
        if not 0 < low <= high < math.inf:
            raise ConfigError(
                f"the standard deviation at the start is {low:g} to {high:g}: give positive ones, lowest first"
            )
        said = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return InitStd(low, high, f"a standard deviation of {said} at the start, as given")
    if stored.model is not None:
        std = _of_model(stored.model)
        return InitStd(std, std, f"a standard deviation of {std:.5g} at the start, as the model's configuration says")
    for config in (stored.config, stored.config.get("text_config") or {}):
        for key in _KEYS:
            if isinstance(found := config.get(key), int | float) and 0 < found < math.inf:
                basis = (
                    f"a standard deviation of {found:g} at the start, if the training began as config.json's {key} says"
                )
                return InitStd(found, found, basis)
    return None


def _of_model(config: ModelConfig) -> float:
    initial = config.initialisation
    small = math.sqrt(2 / (5 * config.d_model))
    std = initial.embedding_std or (small if initial.kind == "small" else initial.std)
    return std * _CUT_AT_3 if initial.kind == "truncated" else std
