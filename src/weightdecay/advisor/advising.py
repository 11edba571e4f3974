"""Advice, worked out: the nearest runs, the law, what can be carried over, and what each λ amounts to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weightdecay.advisor.advice import SHARE, Advice, Carried, LawSays, Memory, Range
from weightdecay.advisor.cautions import ALWAYS, cautions
from weightdecay.advisor.planned import PlannedRun, planned_run
from weightdecay.laws import (
    Rate,
    carried,
    nanochat_weight_decay,
    optimal_batch_tokens,
    optimal_weight_decay,
    outside_power_lines,
)
from weightdecay.recipes.published.nearest import Neighbours, neighbours
from weightdecay.recipes.published.runs import PublishedRun


def advise(
    *,
    params: float,
    tokens: float,
    batch_tokens: float,
    lr: float,
    epochs: float = 1.0,
    parametrization: str = "unknown",
    schedule: str = "unknown",
    optimizer: str = "adamw",
    embeddings: float | None = None,
    width: int | None = None,
) -> Advice:
    """What is known of the λ that a planned run wants.

        import weightdecay

        advice = weightdecay.advise(params=124e6, tokens=2.5e9, batch_tokens=0.5e6, lr=6e-4)
        print(advice)
        advice.range, advice.law.applies

    Args:
        params: N, all parameters; of a mixture of experts, those that a token passes through.
        tokens: D, tokens of the whole run.
        batch_tokens: B, tokens of a step.
        lr: η, the peak learning rate of the matrices.
        epochs: passes over the text.
        parametrization: how rates and initialisation follow the width, `standard` or `mup`; the law needs `mup`.
        schedule: the learning rate's way after its warm-up, `constant`, `linear-to-zero`, `linear-to-tenth`,
            `cosine-to-zero`, `cosine-to-tenth` or `wsd-to-zero`; the law needs `linear-to-zero`.
        optimizer: of the matrices, `adamw` or `muon`; of the others that this package has there is no theory.
        embeddings: the parameters among `params` that are tables of tokens and positions.
        width: d_model, for what λ would be at another width.

    Raises:
        ConfigError: every fault at once.
    """
    return advise_for({name: value for name, value in locals().items() if value is not None})


def advise_for(given: Mapping[str, Any]) -> Advice:
    """The same from values by name, which may be text as flags have it.

    Raises:
        ConfigError: every fault at once.
    """
    planned = planned_run(given)
    near = neighbours(planned.compared)
    law = _law(planned, near)
    named = {near.low, near.median, near.high}
    named |= {law.span.low, law.span.high} if law.weight_decay is None else {law.weight_decay}
    memories = _memories(planned, named)
    return Advice(
        planned=planned,
        near=near,
        law=law,
        carried=_carried(planned, near.runs[0]),
        nanochat=nanochat_weight_decay(planned.batch_tokens, planned.tokens),
        batch_tokens=optimal_batch_tokens(planned.tokens),
        memories=memories,
        warnings=tuple(cautions(planned, near, law, memories)),
        always=ALWAYS,
    )


def _law(planned: PlannedRun, near: Neighbours) -> LawSays:
    """The law at both ways to count N: which of them it means is not settled."""
    given = not math.isnan(planned.embeddings)
    shares = [run.embeddings / run.used for run in near.runs]
    tables = Range(planned.embeddings, planned.embeddings)
    if not given:
        tables = Range(min(shares) * planned.params, max(shares) * planned.params)
    fewest, most = planned.params - tables.high, planned.params - tables.low
    reasons = outside_power_lines(
        tokens_per_parameter=planned.tokens_per_parameter,
        parametrization=planned.parametrization,
        schedule=planned.schedule,
        optimizer=planned.optimizer,
    )
    said = tuple(reasons)
    return LawSays(
        applies=not said,
        reasons=said,
        all_counted=_by_law(planned, planned.params),
        continued=_by_law(planned, planned.params, held=False),
        without_embeddings=Range(_by_law(planned, most), _by_law(planned, fewest)),
        parameters_without=Range(fewest, most),
        embeddings_given=given,
    )


def _by_law(planned: PlannedRun, parameters: float, *, held: bool = True) -> float:
    return optimal_weight_decay(
        lr=planned.lr, steps=planned.steps, tokens_per_parameter=planned.tokens / parameters, held=held
    )


def _carried(planned: PlannedRun, run: PublishedRun) -> tuple[Carried, ...]:
    there = Rate(run.lr, run.steps, run.batch_tokens, run.width)
    here = Rate(planned.lr, planned.steps, planned.batch_tokens, planned.width)
    return tuple(Carried(law, value, run) for law, value in carried(run.decoupled, there, here).values())


def _memories(planned: PlannedRun, named: set[float]) -> tuple[Memory, ...]:
    found = []
    for λ in sorted(named):
        a = planned.lr * λ
        if not 0 < a <= 1:
            continue
        from_where = planned.origins(λ)
        found.append(
            Memory(
                weight_decay=λ,
                steps=1 / a,
                tokens=planned.batch_tokens / a,
                epochs=planned.batch_tokens / a / planned.epoch_tokens,
                part=1 / (a * planned.steps),
                half_life_tokens=math.log(2) * planned.batch_tokens / a,
                total=from_where.total,
                last_part=from_where.last_part(SHARE),
                start=from_where.start,
            )
        )
    return tuple(found)
