"""`schedule`: λ that stays, falls to zero, falls as 1/t, or is corrected for the rate."""

from __future__ import annotations

from weightdecay.studies.analysis import Analysis, verdict_on
from weightdecay.studies.design import Arm, Json, Plan, SizeName, Study, Verdict, against_first
from weightdecay.studies.pictures import axis, bars, curves
from weightdecay.studies.sizes import RECIPE, settings, small, text

_NORM, _GRADIENT, _HELD_OUT = "norm_end_over_peak", "gradient_end_over_peak", "val_bits_per_byte"


def _plan(size: SizeName) -> Plan:
    chosen = {"optimizer__weight_decay": 3.0, "schedule__shape": "cosine", "schedule__final_fraction": 0.0}
    if size == "quick":
        common = small(size, **chosen)
    else:
        common = settings(size, **chosen, run__steps=800 if size == "full" else 4_000)
    common |= {"run.log_every": 1, "run.monitor": True}
    # λ = ω/(t + h) of the independent rule, ω = 4 as published; h keeps the first steps from decaying all.
    half = common["run.steps"] // 4
    one_over_t = {
        "optimizer.rule": "independent",
        "optimizer.weight_decay": 4 / half,
        "schedule.weight_decay_shape": "one_over_t",
        "schedule.weight_decay_half_steps": half,
    }
    arms = (
        Arm("constant", {"shape": "constant"}),
        Arm("cosine to 0", {"shape": "cosine to 0"}, {"schedule.weight_decay_shape": "cosine"}),
        Arm("4/t", {"shape": "4/t"}, one_over_t),
        Arm("corrected", {"shape": "corrected"}, {"optimizer.rule": "corrected"}),
        Arm("no decay", {"shape": "no decay"}, {"optimizer.weight_decay": 0.0}),
    )
    contrasts = tuple(
        contrast for metric in (_NORM, _GRADIENT, _HELD_OUT) for contrast in against_first(metric, arms[:-1])
    )
    return Plan(RECIPE, common, arms, contrasts, text(size), ("fit", "ending"))


def _pictures(found: Analysis) -> list[Json]:
    x = axis("shape", "how λ moves", type="nominal", sort=list(found.labels))
    return [
        bars(
            found, "norm-at-the-end", "Norm of the hidden matrices, end over half-way",
            "How far the norm of the hidden matrices falls as the rate goes to zero, by schedule of λ.", x=x, y=_NORM,
        ),
        bars(
            found, "gradient-at-the-end", "Norm of the gradient, end over half-way",
            "How far the gradient's norm grows while the rate goes to zero, by schedule of λ.", x=x, y=_GRADIENT,
        ),
        bars(found, "loss-by-schedule", "Held-out loss by schedule of λ", "Held-out loss by schedule of λ.", x=x,
             y=_HELD_OUT),
        curves(found, "held-out-loss-over-the-run", "Held-out loss over the run",
               "Held-out loss over the steps for each schedule of λ."),
    ]  # fmt: skip


def _conclude(found: Analysis) -> list[Verdict]:
    first = "constant"
    return [
        *verdict_on("`corrected` keeps the norm from falling as the rate does.",
                    found.comparison(_NORM, "corrected", first), "higher"),
        *verdict_on("`corrected` keeps the gradient from growing at the end.",
                    found.comparison(_GRADIENT, "corrected", first), "lower"),
        *verdict_on("λ should fall to zero along a cosine.", found.comparison(_HELD_OUT, "cosine to 0", first)),
        *verdict_on("λ should fall as 4/t.", found.comparison(_HELD_OUT, "4/t", first)),
    ]  # fmt: skip


SCHEDULE = Study(
    name="schedule",
    title="How λ moves over the run",
    question="What does a λ that falls, or is corrected for the rate, do to norms and gradients at the end?",
    belief="λ is a constant.",
    headline=_HELD_OUT,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=(
        "The schedules' λ were not tuned one by one, and their sums differ: losses say little here, norms more.",
        "Gains in loss by 1/t or `corrected` are claimed for sizes and lengths that this study does not reach.",
    ),
)
