"""`lambda`: how much decay, and does the best λ follow the batch? And `demo`, its shortest form."""

from __future__ import annotations

from collections.abc import Sequence

from weightdecay.studies.analysis import Analysis, verdict_on
from weightdecay.studies.design import Arm, Json, Plan, SizeName, Study, Verdict, against_first, number
from weightdecay.studies.pictures import axis, curves, points, weight_decay_axis
from weightdecay.studies.sizes import RECIPE, SMALL_MODEL, settings, text

_HELD_OUT = "val_bits_per_byte"
_LAMBDAS = (0.0, 0.1, 1.0, 3.0, 10.0, 30.0)
_OF_BATCHES = (0.3, 1.0, 3.0, 10.0)
_LIMITS = (
    (
        "One text, one model size, one learning rate, one length: the place of the best λ moves with all of them, "
        "above all with how often the text is read."
    ),
    "The interval is over seeds (first weights, order of batches), not over texts.",
    "Smaller weights and a larger effective learning rate come together with λ; this study cannot tell them apart.",
)


def _strengths(values: Sequence[float]) -> tuple[Arm, ...]:
    return tuple(
        Arm(f"λ={number(value)}", {"weight_decay": value, "part": "strength"}, {"optimizer.weight_decay": value})
        for value in values
    )


def _batches(size: SizeName) -> tuple[Arm, ...]:
    """Three batches of the same tokens in all, each over a grid of λ, with the small model."""
    tokens = 600 * 512 if size == "quick" else 500 * 2_048 if size == "full" else 4_000 * 16_384
    middle = 512 if size == "quick" else 2_048 if size == "full" else 16_384
    model = {} if size == "large" else SMALL_MODEL
    lambdas = _OF_BATCHES if size != "quick" else _OF_BATCHES[1:]
    return tuple(
        Arm(
            f"B={batch} λ={number(value)}",
            {"weight_decay": value, "batch_tokens": batch, "part": "batch"},
            {
                **model,
                "optimizer.weight_decay": value,
                "run.batch_tokens": batch,
                "run.steps": tokens // batch,
                "run.eval_every": tokens // batch,
                "run.checkpoint_every": tokens // batch,
            },
            stage=1,
        )
        for batch in (middle // 2, middle, 2 * middle)
        for value in lambdas
    )


def _plan(size: SizeName) -> Plan:
    arms = _strengths(_LAMBDAS)
    return Plan(
        RECIPE, settings(size), arms + _batches(size), against_first(_HELD_OUT, arms), text(size), ("fit",)
    )  # fmt: skip


def _of_part(found: Analysis, part: str) -> list[str]:
    return [arm for arm, labels in found.labels.items() if labels["part"] == part]


def _pictures(found: Analysis) -> list[Json]:
    strengths, batches = _of_part(found, "strength"), _of_part(found, "batch")
    best = found.best(_HELD_OUT, strengths)
    drawn = [
        points(
            found, "loss-over-lambda", "Held-out loss against λ",
            f"Held-out loss over λ from 0 to 30; the lowest mean is at {best}.",
            x=weight_decay_axis(), y=_HELD_OUT, arms=strengths,
        ),
        curves(
            found, "held-out-loss-over-the-run", "Held-out loss over the run",
            "Held-out loss over the steps for each λ: whether it turns up again as the text is learnt by heart.",
            arms=strengths,
        ),
        points(
            found, "gap-over-lambda", "Held-out minus training loss against λ",
            "The gap between held-out and training loss for each λ.",
            x=weight_decay_axis(), y="gap", arms=strengths,
        ),
        points(
            found, "size-of-the-weights", "Size of the weights against λ", "The RMS of the weights for each λ.",
            x=weight_decay_axis(), y="weight_rms", arms=strengths,
        ),
    ]  # fmt: skip
    if batches:
        color = axis("batch_tokens", "batch", "tokens", "ordinal")
        drawn.append(
            points(
                found, "best-lambda-and-batch", "Best λ for three batch sizes, equal tokens",
                "Held-out loss over λ for each of three batch sizes.",
                x=weight_decay_axis(), y=_HELD_OUT, arms=batches, color=color,
            )
        )  # fmt: skip
    return drawn


def _conclude(found: Analysis) -> list[Verdict]:
    strengths = _of_part(found, "strength")
    best = found.best(_HELD_OUT, strengths)
    first = strengths[0]
    said = verdict_on("The usual λ = 0.1 matters.", found.comparison(_HELD_OUT, "λ=0.1", first))
    if best and best != first:
        claim = "Decay improves the loss on unseen text when a text is read many times."
        said += verdict_on(claim, found.comparison(_HELD_OUT, best, first))
    if stopping := _stopping_early(found, first, best):
        said.append(stopping)
    batches: dict[float, list[str]] = {}
    for arm in _of_part(found, "batch"):
        batches.setdefault(found.labels[arm]["batch_tokens"], []).append(arm)
    bests = {batch: found.best(_HELD_OUT, arms) for batch, arms in batches.items()}
    if bests and all(bests.values()):
        words = "; ".join(
            f"{batch:,} tokens: λ = {number(found.labels[str(arm)]['weight_decay'])}" for batch, arm in bests.items()
        )
        sentence = f"Lowest mean held-out loss at equal tokens, by batch: {words}. The grid's steps are a factor of 3."
        said.append(Verdict("The best λ doubles when the batch does.", "told", sentence))
    return said


def _stopping_early(found: Analysis, first: str, best: str | None) -> Verdict | None:
    """Whether the run without decay, stopped at its best moment, comes to what decay comes to at the end."""
    along = found.mean("best_val_bits_per_byte", first)
    end = found.mean(_HELD_OUT, best) if best else None
    if along is None or end is None or best == first:
        return None
    sentence = (
        f"{first} at its best along the way: {along.mean:.3f} bits per byte; {best} at its end: {end.mean:.3f}. The "
        "best moment was chosen on the same held-out text, which flatters it."
    )
    return Verdict("Stopping early does the same as decay.", "told", sentence)


LAMBDA = Study(
    name="lambda",
    title="How much decay",
    question="Which λ predicts unseen text best when a small text is read many times, and does it follow the batch?",
    belief="λ = 0.1 is right, and what it does is prevent overfitting.",
    headline=_HELD_OUT,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=_LIMITS,
)


def _demo_plan(size: SizeName) -> Plan:
    arms = _strengths((0.0, 0.1, 1.0, 3.0))
    return Plan(RECIPE, settings(size), arms, against_first(_HELD_OUT, arms), text(size))


DEMO = Study(
    name="demo",
    title="Weight decay on a text that is read many times",
    question="What do λ = 0.1, 1 and 3 do to the loss on unseen text, against no decay?",
    belief=LAMBDA.belief,
    headline=_HELD_OUT,
    plan=_demo_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=_LIMITS,
)
