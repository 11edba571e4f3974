"""Values over values: a recipe, a file, flags, `--set`; and where each value of a run comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightdecay.recipes.moved import as_spelt_now

# Ways to say one thing: who gives one of them takes back the others.
_RIVALS = (
    ("run.steps", "run.tokens"),
    ("schedule.warmup_steps", "schedule.warmup_tokens", "schedule.warmup_fraction"),
)
# What moves a value over the run, or says why it is what it is: it goes when the value is given anew.
_MOVES = {
    "optimizer.weight_decay": ("optimizer.weight_decay_source",),
    "run.batch_tokens": ("run.batch_ramp", "run.batch_ramp_increment"),
    "optimizer.grad_clip": ("schedule.grad_clip_changes",),
}


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` pairs over others.

    A warm-up or a length given one way replaces one given another way below it; another batch, its ramp; another
    largest norm of the gradient, the changes of it; another λ, the reason for the one before.
    """
    below, above = as_spelt_now(below), as_spelt_now(above)
    taken_back = {key for rivals in _RIVALS if above.keys() & set(rivals) for key in rivals}
    taken_back |= {key for given, moves in _MOVES.items() if given in above for key in moves}
    return {key: value for key, value in below.items() if key not in taken_back} | above


@dataclass(frozen=True)
class Layer:
    """Some of a run's values, and what each was given by, in words: `--lr`, or a file's name."""

    values: Mapping[str, Any]
    given_by: Callable[[str], str]


def stacked(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Each layer over those before it: the values, and what each was given by."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        values = laid_over(values, layer.values)
        origins = {key: origins[key] for key in values if key in origins}
        origins |= {key: layer.given_by(key) for key in as_spelt_now(layer.values)}
    return values, origins
