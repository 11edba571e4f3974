"""`selective`: which tensors should decay, and which norms' gains."""

from __future__ import annotations

from typing import Any, Literal

from weightdecay.studies.analysis import Analysis, verdict_on
from weightdecay.studies.design import Arm, Json, Plan, SizeName, Study, Verdict, against_first
from weightdecay.studies.pictures import axis, bars, curves
from weightdecay.studies.sizes import RECIPE, settings, small, text

_HELD_OUT = "val_bits_per_byte"
_POLICIES = ("default", "all", "no-embeddings", "none")
_NORMS = {
    "input": r"(attention|feedforward)_norm\.weight$",
    "output": r"output_norm\.weight$",
    "q/k": r"(query|key)_norm\.weight$",
}
# λ = 1 for the weights; a gain's share of it makes the 0.1 that gains are decayed with where they are.
_WEIGHT_DECAY, _GAIN_SHARE = 1.0, 0.1


def _plan(size: SizeName) -> Plan:
    # A decoder that has all three kinds of norms; layer norms with gains and shifts, RMS norms without would do too.
    more: dict[str, Any] = {
        "model__norms__after": "branch",
        "model__attention__qk_norm": "head",
        "optimizer__weight_decay": _WEIGHT_DECAY,
    }
    common = (small if size == "quick" else settings)(
        size, run__steps={"quick": 400, "full": 500, "large": 4_000}[size]
    )
    common |= {key.replace("__", "."): value for key, value in more.items()}
    policies = [
        Arm(f"policy {name}", {"part": "policy", "policy": name, "gains": "as the policy"}, {"optimizer.policy": name})
        for name in _POLICIES
    ]
    arms = (*policies, *(_gains(place, to_one) for place in _NORMS for to_one in (False, True)))
    return Plan(RECIPE, common, arms, against_first(_HELD_OUT, arms), text(size))


def _gains(place: str, to_one: bool) -> Arm:
    """The default policy, and the gains of one kind of norm decayed, to 0 or to 1."""
    pattern, target = _NORMS[place], "towards 1" if to_one else "towards 0"
    values: dict[str, Any] = {"optimizer.weight_decay_multipliers": [{"pattern": pattern, "factor": _GAIN_SHARE}]}
    if to_one:
        values["optimizer.rule_overrides"] = [{"pattern": pattern, "rule": "towards_one"}]
    labels = {"part": "gains", "policy": "default", "gains": f"{place}, {target}", "place": place, "target": target}
    return Arm(f"{place} gains {target}", labels, values)


def _of_part(found: Analysis, *parts: str) -> list[str]:
    return [arm for arm, labels in found.labels.items() if labels["part"] in parts]


def _pictures(found: Analysis) -> list[Json]:
    gains = ["policy default", *_of_part(found, "gains")]
    return [
        bars(
            found, "loss-by-policy", "Held-out loss by policy", "Held-out loss of the four policies, with intervals.",
            x=axis("policy", "policy", type="nominal"), y=_HELD_OUT, arms=_of_part(found, "policy"),
        ),
        bars(
            found, "loss-by-norm", "Held-out loss by which norms' gains decay",
            "Held-out loss with the gains of one kind of norm decayed, towards 0 or towards 1, beside none decayed.",
            x=axis("arm", "gains that decay (λ = 0.1)", type="nominal", sort=gains), y=_HELD_OUT, arms=gains,
        ),
        curves(
            found, "held-out-loss-over-the-run", "Held-out loss over the run, by policy",
            "Held-out loss over the steps for each policy.", arms=_of_part(found, "policy"),
        ),
    ]  # fmt: skip


def _conclude(found: Analysis) -> list[Verdict]:
    first = "policy default"
    claims: dict[str, tuple[str, Literal["lower", "higher"]]] = {
        "policy all": ("Biases and norms must be exempt.", "higher"),
        "policy no-embeddings": ("Embeddings should decay.", "higher"),
        "policy none": ("Decay matters at all here.", "higher"),
        "input gains towards 0": ("Decaying the gains of input norms is good.", "lower"),
        "output gains towards 0": ("Decaying the gains of output norms is harmful.", "higher"),
        "q/k gains towards 0": ("Decaying the gains of q/k norms is good.", "lower"),
    }
    return [
        verdict
        for arm, (claim, holds_if) in claims.items()
        for verdict in verdict_on(claim, found.comparison(_HELD_OUT, arm, first), holds_if)
    ]


SELECTIVE = Study(
    name="selective",
    title="Which tensors decay",
    question="Does it matter which tensors decay: biases and norms, embeddings, and which norms' gains?",
    belief="Weight matrices and embeddings decay; biases, norms and all vectors must not.",
    headline=_HELD_OUT,
    plan=_plan,
    pictures=_pictures,
    conclude=_conclude,
    limits=(
        "A short run: gains begin at 1 and move little in a few hundred steps, so what decays them moves little, too.",
        (
            "One model with norms before and after each branch and on queries and keys; published differences between "
            "input and output norms are at 100 times the size (arXiv:2605.26895, abstract read)."
        ),
    ),
)
