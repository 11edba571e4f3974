"""What is planned, as it is given: every fault of it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from weightdecay import schedules
from weightdecay.declared.fields import CLOSED, Consistent, Contradiction, Count, Number
from weightdecay.declared.reading import attempt
from weightdecay.errors import ConfigError
from weightdecay.recipes.published.nearest import Planned
from weightdecay.schedules import Schedule
from weightdecay.timescale import Origins, origins

Positive = Annotated[Number, Gt(0)]
# A learning rate's way, as `weightdecay.schedules` spells it: its shape, and where it ends.
_SCHEDULES = {
    "unknown": ("constant", 0.0),
    "constant": ("constant", 0.0),
    "linear-to-zero": ("linear", 0.0),
    "linear-to-tenth": ("linear", 0.1),
    "cosine-to-zero": ("cosine", 0.0),
    "cosine-to-tenth": ("cosine", 0.1),
    "wsd-to-zero": ("warmup_stable_decay", 0.0),
}


_ADAMW_ALONE = "no theory here: no public run of it is in the database, and the laws were fitted on AdamW"
# Optimizers of which nothing is known that would be advice, and why.
_NO_THEORY = {
    "adafactor": (
        "no theory here: its step grows with the weight, so λ has no timescale; PaLM removed η² of a weight in a step "
        "(Chowdhery et al. 2022, arXiv:2204.02311, section 5 [V])"
    ),
    "adam_l2": (
        "no theory here: what a step removes depends on the gradients (arXiv:1711.05101 [V]), so no λ is comparable"
    ),
    "lion": _ADAMW_ALONE,
    "sgdw": _ADAMW_ALONE,
}


@dataclass(frozen=True, kw_only=True)
class PlannedRun(Consistent):
    """A run that is planned."""

    __pydantic_config__ = CLOSED

    params: Positive
    """N, all parameters; of a mixture of experts, those that a token passes through."""
    tokens: Positive
    """D, tokens of the whole run."""
    batch_tokens: Positive
    """B, tokens of a step."""
    lr: Positive
    """η, the peak learning rate of the matrices."""
    epochs: Positive = 1.0
    """Passes over the text."""
    parametrization: Literal["unknown", "standard", "mup"] = "unknown"
    """How rates and initialisation follow the width."""
    schedule: Literal[
        "unknown", "constant", "linear-to-zero", "linear-to-tenth", "cosine-to-zero", "cosine-to-tenth", "wsd-to-zero"
    ] = "unknown"
    """The learning rate's way after its warm-up."""
    optimizer: Literal["adamw", "muon", "adafactor", "adam_l2", "lion", "sgdw"] = "adamw"
    """Of the matrices."""
    embeddings: Annotated[Number, Ge(0)] = math.nan
    """Of the parameters, those in tables of tokens and positions; not a number where it is not given."""
    width: Annotated[Count, Ge(0)] = 0
    """d_model; 0 where it is not given."""

    def contradictions(self) -> Iterator[Contradiction]:
        if self.optimizer in _NO_THEORY:
            yield Contradiction(("optimizer",), f"optimizer = {self.optimizer}: {_NO_THEORY[self.optimizer]}")
        if self.batch_tokens > self.tokens:
            words = f"batch_tokens = {self.batch_tokens:g} of {self.tokens:g} tokens: not one step"
            yield Contradiction(("batch_tokens", "tokens"), f"{words}: make the run longer, or the batch smaller")
        if self.embeddings >= self.params:
            words = f"embeddings = {self.embeddings:g} of {self.params:g} params: params must count all"
            yield Contradiction(("embeddings", "params"), words)

    @property
    def steps(self) -> int:
        """T."""
        return math.ceil(self.tokens / self.batch_tokens)

    @property
    def tokens_per_parameter(self) -> float:
        """D/N with all parameters counted."""
        return self.tokens / self.params

    @property
    def epoch_tokens(self) -> float:
        """Tokens of one pass."""
        return self.tokens / self.epochs

    @property
    def compared(self) -> Planned:
        """What published runs are compared by."""
        return Planned(self.params, self.tokens, self.lr, self.optimizer)

    @cached_property
    def rates(self) -> Schedule:
        """η_t without its warm-up; constant where the schedule is unknown."""
        shape, final = _SCHEDULES[self.schedule]
        return schedules.schedule(shape, peak=self.lr, steps=self.steps, final_fraction=final)

    def origins(self, weight_decay: float) -> Origins:
        """Where the final weights are from under this λ."""
        return origins(self.rates, weight_decay, self.steps)


def planned_run(given: Mapping[str, Any]) -> PlannedRun:
    """What is given, read.

    Raises:
        ConfigError: every fault at once.
    """
    found, faults = attempt(PlannedRun, given)
    if found is None or faults:
        raise ConfigError([_said(fault.kind, fault.words) for fault in faults])
    return found


def _said(kind: str, words: str) -> str:
    return f"{words}: give a number over 0" if kind == "missing" else words
