"""What is known of the λ that a planned run wants: each number with its equation, its source and how that was read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from weightdecay.advisor.planned import PlannedRun
from weightdecay.laws import BATCH, NANOCHAT, POWER_LINES, Law
from weightdecay.recipes.published.nearest import Neighbours
from weightdecay.recipes.published.runs import PublishedRun

SHARE = 0.95
"""The part of the final weights whose origin is told."""


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; one number where both are the same."""

    low: float
    high: float

    def document(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True)
class LawSays:
    """What the law of the power lines says.

    Attributes:
        applies: whether it holds here.
        reasons: why it does not.
        all_counted: λ with N all parameters; outside the fit held at its edge.
        continued: the same with the line continued beyond the fit.
        without_embeddings: λ with N those without embeddings; a range where their number is not given.
        parameters_without: that N.
        embeddings_given: whether it was given, or is as in the nearest published runs.
    """

    applies: bool
    reasons: tuple[str, ...]
    all_counted: float
    continued: float
    without_embeddings: Range
    parameters_without: Range
    embeddings_given: bool

    @property
    def weight_decay(self) -> float | None:
        """λ at N as it was given, where the law holds; None where it does not."""
        return self.all_counted if self.applies else None

    @property
    def span(self) -> Range:
        """Over both ways to count N, and to go beyond the fit."""
        both = (self.all_counted, self.continued, self.without_embeddings.low, self.without_embeddings.high)
        return Range(min(both), max(both))


@dataclass(frozen=True)
class Carried:
    """A published run's λ, brought here by a law."""

    law: Law
    weight_decay: float
    run: PublishedRun


@dataclass(frozen=True)
class Memory:
    """What a λ amounts to in the planned run.

    Attributes:
        weight_decay: λ, decoupled.
        steps, tokens, epochs, part: the timescale 1/(ηλ) at the peak, in four units; `part` is of the run.
        half_life_tokens: ln2·B/(ηλ).
        total: Σ a_t over the run.
        last_part: the part of the run, from its end, that makes 95 % of the final weights; None where it never does.
        start: what is left of the initial weights.
    """

    weight_decay: float
    steps: float
    tokens: float
    epochs: float
    part: float
    half_life_tokens: float
    total: float
    last_part: float | None
    start: float


@dataclass(frozen=True)
class Advice:
    """What is known of the λ that a planned run wants; print it.

    Attributes:
        planned: the run.
        near: the nearest published runs; `near.low` to `near.high` is the range that heads the advice.
        law: what the law says, and whether it holds.
        carried: the nearest run's λ brought here, by each law that can.
        nanochat: λ by nanochat's formula.
        batch_tokens: B_opt.
        memories: what the λs that are named amount to, lowest first; those that no step could follow are left out.
        warnings: what to be careful of here, in words.
        always: what to be careful of with any λ.
    """

    planned: PlannedRun
    near: Neighbours
    law: LawSays
    carried: tuple[Carried, ...]
    nanochat: float
    batch_tokens: float
    memories: tuple[Memory, ...]
    warnings: tuple[str, ...]
    always: tuple[str, ...]

    @property
    def range(self) -> Range:
        """Of λ, decoupled, as the nearest published runs used it."""
        return Range(self.near.low, self.near.high)

    def __str__(self) -> str:
        from weightdecay.advisor.wording import as_text

        return as_text(self)

    def document(self) -> dict[str, Any]:
        """The same for `--json`: every λ with its equation, its source and its tag."""
        planned = {
            key: value for key, value in asdict(self.planned).items() if value == value
        }  # not a number: left out
        return {
            "planned": planned | {"steps": self.planned.steps},
            "range": {
                **self.range.document(),
                "median": self.near.median,
                "equation": "λ as torch.optim.AdamW means it: the decay per step over η, at the peak",
                "source": "the nearest published runs, one of each system",
                "tag": ", ".join(sorted({run.tag for run in self.near.runs})),
                "times_apart": self.near.far,
                "runs": [_run_document(run) for run in self.near.runs],
            },
            "law": {
                **_law_document(POWER_LINES),
                "applies": self.law.applies,
                "reasons": list(self.law.reasons),
                "weight_decay": self.law.weight_decay,
                "counting_all": self.law.all_counted,
                "continued_beyond_the_fit": self.law.continued,
                "without_embeddings": self.law.without_embeddings.document(),
                "parameters_without_embeddings": self.law.parameters_without.document(),
                "embeddings_given": self.law.embeddings_given,
            },
            "carried": [
                {**_law_document(one.law), "weight_decay": one.weight_decay, "from": one.run.name}
                for one in self.carried
            ],
            "nanochat": {**_law_document(NANOCHAT), "weight_decay": self.nanochat},
            "batch": {**_law_document(BATCH), "batch_tokens": self.batch_tokens},
            "memories": [asdict(memory) for memory in self.memories],
            "warnings": list(self.warnings),
            "always": list(self.always),
        }


def _law_document(law: Law) -> dict[str, str]:
    return {"name": law.name, "equation": law.equation, "source": law.source, "tag": law.tag, "holds": law.holds}


def _run_document(run: PublishedRun) -> dict[str, Any]:
    return {
        **{key: value for key, value in asdict(run).items() if key != "from_recipe"},
        "decoupled": run.decoupled,
        "tokens_per_parameter": run.tokens_per_parameter,
        "timescale": run.timescale if math.isfinite(run.timescale) else None,
    }
