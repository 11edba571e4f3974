"""`memorization`: does decay keep a model from learning texts by heart, where it fits the rest equally well?"""

from __future__ import annotations

from typing import Any

from weightdecay.studies.analysis import Analysis, verdict_on
from weightdecay.studies.canaries import CanaryPlan, null_exposure
from weightdecay.studies.design import Arm, Contrast, Json, Plan, SizeName, Study, Verdict
from weightdecay.studies.metrics import MATCHED
from weightdecay.studies.pictures import axis, bars, points, scatter, weight_decay_axis
from weightdecay.studies.sizes import RECIPE, settings, small, text, tokens_of_run
from weightdecay.studies.texts import TextPlan

_HELD_OUT = "val_bits_per_byte"
# Of canaries planted once: over many epochs those planted more often soon rank first, and tell nothing any longer.
_EXPOSURE = "exposure_1"
_ONCE_THROUGH = "exposure_16"  # in one epoch it is the other way round
_AT_EQUAL_FIT = MATCHED + _EXPOSURE
_PLANTED, _ONE_EPOCH = "planted", "planted-once-through"
_CANARIES = {
    "quick": CanaryPlan(per_cell=50, references=511),
    "full": CanaryPlan(per_cell=50, references=1_023),
    "large": CanaryPlan(per_cell=100, references=4_095),
}
_STEPS: dict[SizeName, int] = {"quick": 600, "full": 800, "large": 4_000}
# Bytes that a token stands for at the most, with a margin: the text of one epoch must last to the end.
_BYTES_A_TOKEN = {"quick": 3.4, "full": 4.4, "large": 4.6}
_CHECKPOINTS = 10


def _arm(name: str, once: bool, **values: Any) -> Arm:
    regulariser = name.removesuffix(", one epoch")
    labels = {
        "regulariser": regulariser,
        "epochs": "one" if once else "many",
        "weight_decay": values.get("weight_decay", 0.0),
    }
    keys = {"weight_decay": "optimizer.weight_decay", "dropout": "model.training.dropout",
            "stochastic_depth": "model.training.stochastic_depth"}  # fmt: skip
    settings = {"optimizer.weight_decay": 0.0, **{keys[key]: value for key, value in values.items()}}
    return Arm(name, labels, settings, _ONE_EPOCH if once else _PLANTED)


def _arms(size: SizeName) -> tuple[Arm, ...]:
    many = [
        _arm("no regulariser", False),
        _arm("λ=1", False, weight_decay=1.0),
        _arm("λ=3", False, weight_decay=3.0),
        _arm("dropout 0.1", False, dropout=0.1),
        _arm("stochastic depth 0.2", False, stochastic_depth=0.2),
    ]
    if size != "quick":
        many += [_arm("λ=1 and dropout 0.1", False, weight_decay=1.0, dropout=0.1)]
    once = [_arm("no regulariser, one epoch", True), _arm("λ=1, one epoch", True, weight_decay=1.0)]
    return (*many, *once)


def _plan(size: SizeName) -> Plan:
    arms = _arms(size)
    many = [arm.name for arm in arms if arm.labels["epochs"] == "many"]
    first = many[0]
    contrasts = (
        *(Contrast(metric, arm, first) for metric in (_EXPOSURE, _AT_EQUAL_FIT, _HELD_OUT) for arm in many[1:]),
        *(Contrast(metric, "λ=1, one epoch", "no regulariser, one epoch") for metric in (_ONCE_THROUGH, _HELD_OUT)),
    )
    steps = _STEPS[size]
    common = (small if size == "quick" else settings)(size, run__steps=steps)
    common |= {"run.checkpoint_every": steps // _CHECKPOINTS, "run.keep": _CHECKPOINTS + 1}
    more = int(tokens_of_run(size, steps) * _BYTES_A_TOKEN[size])
    texts = text(size) | {
        _PLANTED: TextPlan(of_main=True, canaries=_CANARIES[size]),
        _ONE_EPOCH: TextPlan(of_main=True, more_bytes=more, canaries=_CANARIES[size]),
    }
    return Plan(RECIPE, common, arms, contrasts, texts, ("fit", "canaries"))


def _of(found: Analysis, epochs: str) -> list[str]:
    return [arm for arm, labels in found.labels.items() if labels["epochs"] == epochs]


def _pictures(found: Analysis) -> list[Json]:
    never = {"y": null_exposure(1_023), "label": "never planted: 1/ln 2"}
    many = _of(found, "many")
    by_arm = axis("arm", "", type="nominal", sort=list(found.labels))
    return [
        scatter(
            found, "exposure-at-equal-fit", "Memorisation against fit, along the run",
            "Exposure of canaries over the training loss as it falls: at equal training loss, a lower line memorises "
            "less.", x="train_loss", y=_EXPOSURE, arms=many, along=True, rule=never,
        ),
        bars(
            found, "exposure-at-one-training-loss", "Exposure at equal training loss",
            "Exposure where each run's training loss came down to the level that all reach.",
            x=by_arm, y=_AT_EQUAL_FIT, arms=many, rule=never,
        ),
        bars(found, "exposure-at-the-end", "Exposure at the end of the run", "Exposure of canaries planted once at "
             "the end, over many epochs and over one.", x=by_arm, y=_EXPOSURE, rule=never),
        _exposure_by_copies(found, never),
        points(
            found, "loss-over-lambda", "Held-out loss against λ", "Held-out loss over λ, without other regularisers.",
            x=weight_decay_axis(), y=_HELD_OUT, arms=[arm for arm in many if arm.startswith(("no", "λ=1", "λ=3"))
                                                      and "and" not in arm],
        ),
        bars(found, "loss-by-regulariser", "Held-out loss by regulariser", "Held-out loss at the end by regulariser.",
             x=by_arm, y=_HELD_OUT, arms=many),
        bars(found, "extracted-by-32-tokens", "Canaries extracted by their first 32 tokens",
             "Share of the canaries planted 16 times that greedy decoding continues.", x=by_arm, y="extracted_32"),
    ]  # fmt: skip


def _exposure_by_copies(found: Analysis, never: Json) -> Json:
    """Exposure of every cell: a picture over several metrics at once."""
    data = []
    for arm, labels in found.labels.items():
        for copies in (0, 1, 4, 16):
            mean = found.mean(f"exposure_{copies}", arm)
            if mean is not None:
                low, high = mean.interval or (None, None)
                data.append({**labels, "arm": arm, "copies": copies, "mean": mean.mean, "low": low, "high": high})
    return {
        "id": "exposure-by-copies", "title": "Exposure by copies in the text", "kind": "points",
        "subtitle": f"{found.n_seeds} seeds an arm, mean and 95 % interval; 0 copies is the control",
        "alt": "Exposure over how often a canary was planted; canaries that were never planted lie at 1/ln 2.",
        "x": axis("copies", "copies in the training text", scale="symlog", constant=1),
        "y": axis("mean", "exposure", "bits"), "color": axis("arm", "", type="nominal", sort=list(found.labels)),
        "facet": None, "low": "low", "high": "high", "detail": None, "rule": never, "data": data,
    }  # fmt: skip


def _conclude(found: Analysis) -> list[Verdict]:
    first = _of(found, "many")[0]
    said = []
    for arm in ("λ=1", "λ=3"):
        said += verdict_on(f"{arm} keeps from memorising (at the end of the run).",
                           found.comparison(_EXPOSURE, arm, first))  # fmt: skip
        said += verdict_on(f"{arm} keeps from memorising where it fits the text equally well.",
                           found.comparison(_AT_EQUAL_FIT, arm, first))  # fmt: skip
    for arm in ("dropout 0.1", "stochastic depth 0.2"):
        said += verdict_on(f"{arm} keeps from memorising at equal fit.", found.comparison(_AT_EQUAL_FIT, arm, first))
    said += verdict_on("In one epoch decay regularises.",
                       found.comparison(_HELD_OUT, "λ=1, one epoch", "no regulariser, one epoch"))  # fmt: skip
    controls = [run.values["exposure_0"] for run in found.counted if run.values.get("exposure_0") is not None]
    if controls:
        mean = sum(value for value in controls if value is not None) / len(controls)
        sentence = f"Canaries that were never planted: {mean:.2f} bits over {len(controls)} runs (1/ln 2 = 1.44). "
        sentence += "The canaries are the same in all runs, so these are not independent."
        said.append(Verdict("Exposure is measured rightly.", "told", sentence))
    return said


MEMORIZATION = Study(
    name="memorization",
    title="Memorisation",
    question="Does decay keep a model from learning texts by heart, at equal fit, and what do dropout and stochastic "
    "depth do?",
    belief="Weight decay restrains memorisation.",
    headline=_AT_EQUAL_FIT,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=(
        "Canaries are random words; what a model does with sentences that make sense may differ.",
        "Copies are a large part of a text this small; with more text between them less would be kept.",
        "Exposure ends at log₂ of the number of references plus one: 9 bits at the quick size, 10 at the full one.",
        "The runs of one epoch read another, larger text with the same held-out part and the same canaries.",
        "At equal training loss the runs are at different steps and rates: equal fit is not equal history.",
    ),
)
