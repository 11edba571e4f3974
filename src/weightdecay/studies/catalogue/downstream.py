"""`downstream`: one sweep of λ, and everything that it changes."""

from __future__ import annotations

from weightdecay.studies.analysis import Analysis, verdict_on
from weightdecay.studies.canaries import CanaryPlan, null_exposure
from weightdecay.studies.design import Arm, Contrast, Json, Plan, SizeName, Study, Verdict, number
from weightdecay.studies.metrics import metric
from weightdecay.studies.pictures import points, scatter, weight_decay_axis
from weightdecay.studies.sizes import RECIPE, settings, small, text
from weightdecay.studies.texts import OTHER, TextPlan

_HELD_OUT = "val_bits_per_byte"
_CHANGES = (
    _HELD_OUT, "finetuned_loss", "finetuning_gain", "int8_loss", "int4_loss", "compressed_bits", "exposure_1", "tasks",
)  # fmt: skip
_PLANTED = "planted"


def _plan(size: SizeName) -> Plan:
    lambdas = (0.0, 0.1, 1.0, 3.0, 10.0)
    arms = tuple(
        Arm(f"λ={number(value)}", {"weight_decay": value}, {"optimizer.weight_decay": value}, _PLANTED)
        for value in lambdas
    )
    contrasts = tuple(Contrast(name, arm.name, arms[0].name) for name in _CHANGES for arm in arms[1:])
    main = text(size)
    (plan,) = main.values()
    texts = main | {
        _PLANTED: TextPlan(of_main=True, canaries=CanaryPlan(references=511 if size == "quick" else 1_023)),
        OTHER: TextPlan(plan.n_bytes // 2, skip_bytes=plan.n_bytes),
    }
    common = (small if size == "quick" else settings)(
        size, run__steps={"quick": 600, "full": 800, "large": 4_000}[size]
    )
    return Plan(RECIPE, common, arms, contrasts, texts, ("fit", "canaries", "rounding", "tasks", "finetuning"))


def _pictures(found: Analysis) -> list[Json]:
    drawn = [
        points(
            found, f"{name.replace('_', '-')}-over-lambda", f"{metric(name).label.capitalize()} against λ",
            f"{metric(name).label} for each λ from 0 to 10.", x=weight_decay_axis(), y=name,
            rule={"y": null_exposure(1_023), "label": "never planted: 1/ln 2"} if name.startswith("exposure") else None,
        )
        for name in _CHANGES
    ]  # fmt: skip
    drawn.append(
        scatter(found, "size-and-compression", "Compressed size and size of the weights",
                "Compressed size over the RMS of the weights, a point a run.", x="weight_rms", y="compressed_bits")
    )  # fmt: skip
    return drawn


def _conclude(found: Analysis) -> list[Verdict]:
    first = next(iter(found.labels))
    best = {name: found.best(name) for name in _CHANGES}
    words = ", ".join(f"{metric(name).label}: {arm}" for name, arm in best.items() if arm)
    said = [Verdict("One λ is best for everything.", "told", f"The best mean by what is asked for: {words}.")]
    for name in _CHANGES:
        arm = best[name]
        if arm and arm != first:
            said += verdict_on(f"Decay improves {metric(name).label}.", found.comparison(name, arm, first))
    return said


DOWNSTREAM = Study(
    name="downstream",
    title="What else λ changes",
    question="What does λ change beside the held-out loss: fine-tuning, rounding, size, memorisation, tasks?",
    belief="λ is chosen by held-out loss.",
    headline=_HELD_OUT,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=(
        "The other text comes from the same library: what fine-tuning gains on a text of another kind may differ.",
        "Rounding is to the nearest, a scale a row, without calibration.",
        "The tasks are posed by the held-out files of this one text.",
    ),
)
