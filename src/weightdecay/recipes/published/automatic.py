"""The λ that `--weight-decay auto` stands for: the law's where it holds, else what the nearest published runs used."""

from __future__ import annotations

from dataclasses import dataclass

from weightdecay.laws import POWER_LINES, optimal_weight_decay, outside_power_lines
from weightdecay.recipes.published.nearest import SYSTEMS, Planned, neighbours


@dataclass(frozen=True)
class Automatic:
    """A λ, and why it is this one.

    Attributes:
        weight_decay: λ of the decoupled rule.
        source: for run.toml and people.
    """

    weight_decay: float
    source: str


def automatic_weight_decay(
    *, planned: Planned, steps: int, tokens_per_parameter: float, parametrization: str, schedule: str
) -> Automatic:
    """λ for a run of AdamW under the decoupled rule.

    Args:
        planned: the run.
        steps: T.
        tokens_per_parameter: D/N without embeddings.
        parametrization: `mup` or `standard`.
        schedule: `linear-to-zero`, or another.

    Raises:
        ConfigError: a learning rate of 0.
    """
    outside = list(
        outside_power_lines(
            tokens_per_parameter=tokens_per_parameter,
            parametrization=parametrization,
            schedule=schedule,
            optimizer=planned.optimizer,
        )
    )
    if not outside:
        found = optimal_weight_decay(lr=planned.lr, steps=steps, tokens_per_parameter=tokens_per_parameter)
        said = f"at {tokens_per_parameter:,.3g} tokens per parameter without embeddings"
        return Automatic(found, f"auto: {POWER_LINES.equation}, {POWER_LINES.source} [{POWER_LINES.tag}], {said}")

    near = neighbours(planned)
    names = ", ".join(run.name for run in near.runs[:SYSTEMS])
    return Automatic(
        near.median,
        f"auto: median of the {SYSTEMS} nearest published runs ({names}); {POWER_LINES.source} does not apply: "
        f"{'; '.join(outside)}",
    )
