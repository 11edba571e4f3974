"""`decoupling`: the heat map of Loshchilov & Hutter, Adam with L2 beside AdamW over learning rate and λ."""

from __future__ import annotations

from weightdecay.studies.analysis import Analysis
from weightdecay.studies.design import Arm, Contrast, Json, Plan, SizeName, Study, Verdict, number
from weightdecay.studies.pictures import axis, heatmap, points
from weightdecay.studies.sizes import RECIPE, small, text

_HELD_OUT = "val_bits_per_byte"

# Each form with the λ that it takes: of `independent` λ is what a step at the peak removes; of L2 it stands beside the
# gradient, whose elements are a thousand times smaller than the weights.
_FORMS = {
    "Adam + L2": ({"optimizer.name": "adam_l2", "optimizer.rule": "l2"}, (1e-5, 1e-4, 1e-3, 1e-2)),
    "AdamW, λ·η (torch)": ({"optimizer.rule": "decoupled"}, (0.3, 1.0, 3.0, 10.0)),
    "AdamW, λ alone (the paper's)": ({"optimizer.rule": "independent"}, (1e-3, 4e-3, 1.2e-2, 4e-2)),
}
_RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def _cell(form: str, lr: float, value: float) -> Arm:
    settings = {**_FORMS[form][0], "optimizer.lr": lr, "optimizer.weight_decay": value}
    return Arm(f"{form} η={number(lr)} λ={number(value)}", {"form": form, "lr": lr, "weight_decay": value}, settings)


def _none(lr: float) -> Arm:
    settings = {"optimizer.lr": lr, "optimizer.weight_decay": 0.0}
    return Arm(f"no decay η={number(lr)}", {"form": "no decay", "lr": lr, "weight_decay": 0.0}, settings)


def _plan(size: SizeName) -> Plan:
    rates = _RATES if size != "quick" else _RATES[::2] + _RATES[-1:]
    cells = [
        _cell(form, lr, value)
        for form, (_, values) in _FORMS.items()
        if size != "quick" or "torch" not in form
        for lr in rates
        for value in (values if size != "quick" else values[1:])
    ]
    arms = (*(_none(lr) for lr in rates), *cells)
    contrasts = tuple(
        Contrast(_HELD_OUT, arm.name, _none(float(arm.labels["lr"])).name) for arm in cells if arm.labels["lr"] == 4e-3
    )
    steps = {"quick": 400, "full": 400, "large": 4_000}[size]
    return Plan(RECIPE, small(size, run__steps=steps), arms, contrasts, text(size))


def _cells(found: Analysis, form: str) -> list[str]:
    return [arm for arm, labels in found.labels.items() if labels["form"] == form]


def _pictures(found: Analysis) -> list[Json]:
    drawn = []
    for index, form in enumerate(_FORMS):
        cells = _cells(found, form)
        if not cells:
            continue
        picture = heatmap(
            found, f"loss-over-rate-and-lambda-{index + 1}", f"Held-out loss over η and λ: {form}",
            f"A grid of learning rates and λ, {form}; the darker or brighter cells lie where the loss is lowest.",
            x=axis("lr", "peak learning rate η", type="ordinal"), y=axis("weight_decay", "λ", type="ordinal"),
            value=_HELD_OUT, facet=None,
        )  # fmt: skip
        picture["data"] = [row for row in picture["data"] if row["form"] == form]
        drawn.append(picture)
        drawn.append(
            points(
                found, f"loss-over-lambda-{index + 1}", f"Held-out loss over λ at each η: {form}",
                f"One curve for each learning rate, {form}: whether their lowest points lie at one λ.",
                x=axis("weight_decay", "λ", scale="log"), y=_HELD_OUT, arms=cells,
                color=axis("lr", "η", type="ordinal"),
            )
        )  # fmt: skip
    return drawn


def _conclude(found: Analysis) -> list[Verdict]:
    said, best_of = [], {}
    for form in _FORMS:
        cells = _cells(found, form)
        rates = sorted({found.labels[arm]["lr"] for arm in cells})
        bests = {lr: found.best(_HELD_OUT, [arm for arm in cells if found.labels[arm]["lr"] == lr]) for lr in rates}
        if not bests or not all(bests.values()):
            continue
        words = ", ".join(
            f"{number(found.labels[str(arm)]['weight_decay'])} at η = {number(lr)}" for lr, arm in bests.items()
        )
        said.append(Verdict("The best λ does not depend on η.", "told", f"{form}: the best λ of the grid is {words}."))
        best = found.best(_HELD_OUT, cells)
        mean = found.mean(_HELD_OUT, best) if best else None
        if mean:
            best_of[form] = (mean.mean, best)
    if len(best_of) > 1:
        words = "; ".join(f"{form} {mean:.3f} ({arm})" for form, (mean, arm) in best_of.items())
        sentence = (
            f"Lowest means, in bits per byte, each the best of its own grid: {words}. Chosen by the same numbers."
        )
        said.append(Verdict("AdamW generalises better than Adam with L2.", "told", sentence))
    return said


DECOUPLING = Study(
    name="decoupling",
    title="AdamW against Adam with L2",
    question="Can η and λ be chosen one after the other, and is decoupled decay better than L2 in the gradient?",
    belief="AdamW decouples λ from the learning rate, and generalises better than Adam with L2.",
    headline=_HELD_OUT,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=(
        (
            "The best cell of a grid is the best by chance, too; only cells at η = 4e-3 are compared with no decay, "
            "each of them counted."
        ),
        "The forms' λ mean different things, so their grids cannot be the same; a finer one may move the best.",
    ),
)
