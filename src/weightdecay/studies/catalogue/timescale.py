"""`timescale`: is it λ that decides, or the product η·λ?"""

from __future__ import annotations

from weightdecay.studies.analysis import Analysis, verdict_on
from weightdecay.studies.design import Arm, Contrast, Json, Plan, SizeName, Study, Verdict, number
from weightdecay.studies.pictures import axis, curves, points
from weightdecay.studies.sizes import RECIPE, settings, small, text

_LOSS = "val_loss"
_PRODUCT = "equal η·λ"
_RATE = "equal η"
_CENTRE = (4e-3, 1.0)
_OTHERS = {_PRODUCT: ((8e-3, 0.5), (2e-3, 2.0), (1e-3, 4.0)), _RATE: ((4e-3, 0.25), (4e-3, 0.5), (4e-3, 4.0))}


def _arm(lr: float, value: float, group: str) -> Arm:
    labels: dict[str, float | str] = {"lr": lr, "weight_decay": value, "group": group, "product": lr * value}
    settings = {"optimizer.lr": lr, "optimizer.weight_decay": value}
    return Arm(f"η={number(lr)} λ={number(value)}", labels, settings)


def _plan(size: SizeName) -> Plan:
    centre = _arm(*_CENTRE, "both")
    arms = (centre, *(_arm(*pair, group) for group, pairs in _OTHERS.items() for pair in pairs))
    contrasts = tuple(Contrast(_LOSS, arm.name, centre.name) for arm in arms[1:])
    chosen = small(size) if size == "quick" else settings(size, run__steps=800 if size == "full" else 4_000)
    return Plan(RECIPE, chosen, arms, contrasts, text(size))


def _of_group(found: Analysis, group: str) -> list[str]:
    return [arm for arm, labels in found.labels.items() if labels["group"] in (group, "both")]


def _pictures(found: Analysis) -> list[Json]:
    return [
        points(
            found, "loss-at-equal-product", "Held-out loss at equal η·λ", "Held-out loss over η at equal η·λ.",
            x=axis("lr", "peak learning rate η", scale="log"), y=_LOSS, arms=_of_group(found, _PRODUCT),
        ),
        points(
            found, "loss-at-equal-rate", "Held-out loss at equal η", "Held-out loss for pairs of equal η, over λ.",
            x=axis("weight_decay", "weight decay λ", scale="log"), y=_LOSS, arms=_of_group(found, _RATE),
        ),
        curves(
            found, "held-out-loss-over-the-run", "Held-out loss over the run",
            "Held-out loss over the steps: early on the runs of equal η lie together, at the end those of equal η·λ "
            "would, if the product decides.", y=_LOSS,
        ),
    ]  # fmt: skip


def _conclude(found: Analysis) -> list[Verdict]:
    spread = {}
    for group in (_PRODUCT, _RATE):
        means = [mean.mean for arm in _of_group(found, group) if (mean := found.mean(_LOSS, arm))]
        if len(means) > 1:
            spread[group] = max(means) - min(means)
    said = []
    if len(spread) == 2:
        sentence = (
            f"From the lowest to the highest mean held-out loss at the end: {spread[_PRODUCT]:.3f} nats a token where "
            f"η·λ is equal (η from 1e-3 to 8e-3), {spread[_RATE]:.3f} where η is (λ from 0.25 to 4)."
        )
        said.append(Verdict("The product η·λ decides, not λ.", "told", sentence))
    centre = next(iter(found.labels))
    for arm in _of_group(found, _PRODUCT)[1:]:
        said += verdict_on(f"{arm} ends as the centre does.", found.comparison(_LOSS, arm, centre), "alike")
    return said


TIMESCALE = Study(
    name="timescale",
    title="η·λ, the timescale of forgetting",
    question="Do runs of one η·λ end alike, whatever their η?",
    belief="λ can be carried from one learning rate to another.",
    headline=_LOSS,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=(
        "That two arms differ by less than can be seen here is no proof that they are equal.",
        "η also decides how far the first steps go; the product can decide only in runs longer than 1/(η·λ) steps.",
    ),
)
