"""`equilibrium`: do matrices rotate as fast as theory says, and does L2 make each one rotate at its own speed?"""

from __future__ import annotations

from weightdecay.studies.analysis import Analysis, verdict_on
from weightdecay.studies.design import Arm, Contrast, Json, Plan, SizeName, Study, Verdict
from weightdecay.studies.pictures import axis, bars
from weightdecay.studies.sizes import RECIPE, small, text

_AS_TOLD, _SPREAD = "rotating_as_told", "rotation_spread"
_ADAMW, _L2, _NONE = "AdamW", "Adam + L2", "no decay"


def _plan(size: SizeName) -> Plan:
    steps = {"quick": 1_200, "full": 4_000, "large": 8_000}[size]
    # So that the run is many relaxation times, ln 2/(2·η·λ) steps each, long.
    decay = {"quick": 2.0, "full": 0.5, "large": 0.5}[size]
    common = small(
        size, run__steps=steps, optimizer__lr=2e-3, schedule__shape="constant", run__monitor=True, run__monitor_every=10
    )
    arms = (
        Arm(_ADAMW, {"form": _ADAMW}, {"optimizer.weight_decay": decay}),
        Arm(_L2, {"form": _L2}, {"optimizer.name": "adam_l2", "optimizer.rule": "l2", "optimizer.weight_decay": 1e-3}),
        Arm(_NONE, {"form": _NONE}, {"optimizer.weight_decay": 0.0}),
    )
    contrasts = (Contrast(_SPREAD, _L2, _ADAMW),)
    return Plan(RECIPE, common, arms, contrasts, text(size), ("fit", "rotation"))


def _pictures(found: Analysis) -> list[Json]:
    x = axis("form", "how the weights decay", type="nominal", sort=list(found.labels))
    return [
        bars(
            found, "spread-of-rotation", "Spread of the rotation over the hidden matrices",
            "How differently fast the hidden matrices turn, for AdamW, Adam with L2, and no decay.", x=x, y=_SPREAD,
        ),
        bars(
            found, "rotating-as-told", "Hidden matrices that rotate as the formula says",
            "The share of hidden matrices within 25 % of the formula over the last quarter.", x=x, y=_AS_TOLD,
        ),
        bars(found, "size-of-the-weights", "Size of the weights at the end", "The RMS of the weights by form of decay.",
             x=x, y="weight_rms"),
    ]  # fmt: skip


def _conclude(found: Analysis) -> list[Verdict]:
    said = verdict_on(
        "L2 makes matrices rotate at different speeds, AdamW at one.", found.comparison(_SPREAD, _L2, _ADAMW), "higher"
    )
    spreads = {arm: found.mean(_SPREAD, arm) for arm in found.labels}
    if words := ", ".join(f"{arm} {mean.mean:.3f} (n = {mean.n})" for arm, mean in spreads.items() if mean):
        said.append(
            Verdict("Decay is what makes matrices rotate at one speed.", "told", f"The spread by arm: {words}.")
        )
    share = found.mean(_AS_TOLD, _ADAMW)
    if share is not None:
        sentence = (
            f"AdamW: {100 * share.mean:.0f} % of the hidden matrices, mean of {share.n} seeds, rotate within 25 % "
        )
        sentence += "of the formula over the last quarter of the run."
        said.append(Verdict("In equilibrium rotation is set by η, λ and β₁ alone.", "told", sentence))
    return said


EQUILIBRIUM = Study(
    name="equilibrium",
    title="Rotation in equilibrium",
    question="Do the hidden matrices rotate as fast as η, λ and β₁ say, and all alike?",
    belief="Decay makes weights small; that is what it does.",
    headline=_SPREAD,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=(
        "The formula holds for gradients that are mostly noise; where the loss still falls fast they are not.",
        "λ of the L2 arm was set once, to a size of weights like AdamW's, not searched for.",
    ),
)
