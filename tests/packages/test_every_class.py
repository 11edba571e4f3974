"""`control` on every optimizer class of torch and of twelve packages: exact over 300 steps, or refused, all unchanged.

`make test-all` installs the packages into an environment of their own; those that are missing are skipped by name.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from optimizer_classes import PACKAGES, Kind, installed, kinds

from tests.packages.judge import ASKED, MASKED, SCALAR, Verdict, judge, without_decay
from tests.packages.runs import Layout, NotRunError, layout_of, try_without_gradients

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`kind` is every class, `variant` every class under settings that make it another optimizer."""
    (wanted,) = {"kind", "variant"} & set(metafunc.fixturenames)
    found = []
    for package in PACKAGES:
        if not installed(package):
            missing = pytest.mark.skip(reason=f"{package} is not installed: make test-all")
            found.append(pytest.param(None, id=package, marks=missing))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = {kind.title for kind in kinds(package, variants=False)}
            found += [
                pytest.param(kind, id=f"{package}.{kind.title}")
                for kind in kinds(package)
                if (kind.title in plain) == (wanted == "kind")
            ]
    metafunc.parametrize(wanted, found)


def laid_out(kind: Kind, dtype: torch.dtype, *, reverse: bool, zero: bool = False) -> Layout:
    try:
        layout = layout_of(kind, dtype, reverse=reverse)
        if zero:
            try_without_gradients(kind, layout)
        return layout
    except NotRunError as error:
        pytest.skip(f"it makes no step here: {error}")


def judged(kind: Kind, layout: Layout, *, zero: bool = False) -> dict[str, Verdict]:
    """All rules in one optimizer, a group each; where that is not served, scalar rules and masks apart."""
    together = judge(kind, ASKED, layout, zero=zero)
    if together.outcome not in ("refused", "stopped"):
        return {"all rules": together}
    scalar, masked = judge(kind, SCALAR, layout, zero=zero), judge(kind, MASKED, layout.short, zero=zero)
    return {"all rules": together, "scalar rules": scalar, "masks": masked}


def wrong(verdicts: dict[str, Verdict]) -> list[str]:
    return [
        f"{name}: {verdict.outcome} at step {verdict.steps}: {verdict.why}"
        for name, verdict in verdicts.items()
        if not verdict.holds
    ]


def test_in_float32_with_matrices_first_each_rule_is_exact_or_refused(kind: Kind) -> None:
    layout = laid_out(kind, torch.float32, reverse=False)
    verdicts = judged(kind, layout)
    assert not wrong(verdicts)
    if kind.path in SERVED:
        assert "exact" in (verdicts["all rules"].outcome, verdicts.get("scalar rules", verdicts["all rules"]).outcome)


def test_under_other_settings_each_rule_is_exact_or_refused(variant: Kind) -> None:
    layout = laid_out(variant, torch.float32, reverse=True)
    assert not wrong(judged(variant, layout))


def test_in_bfloat16_with_biases_first_each_rule_is_exact_or_refused(kind: Kind) -> None:
    layout = laid_out(kind, torch.bfloat16, reverse=True)
    assert not wrong(judged(kind, layout))


def test_without_gradients_a_weight_is_left_with_the_product_of_its_rule_over_the_steps(kind: Kind) -> None:
    layout = laid_out(kind, torch.float32, reverse=True, zero=True)
    assert not wrong(judged(kind, layout, zero=True))


def test_control_of_groups_that_do_not_decay_changes_no_bit(kind: Kind) -> None:
    layout = laid_out(kind, torch.float32, reverse=False)
    assert not wrong({"λ = 0": without_decay(kind, layout)})


# At least these: a control that refused everything would be right, and of no use.
SERVED = {
    *(f"torch.optim.{name}" for name in (
        "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "RAdam", "RMSprop", "SGD")),
    *(f"optimi.{name}" for name in ("Adam", "AdamW", "Adan", "Lion", "RAdam", "SGD")),
    *(f"torch_optimizer.{name}" for name in ("AdaBelief", "RAdam", "QHAdam", "Yogi", "DiffGrad", "PID")),
    *(f"torchao.optim.{name}" for name in ("Adam8bit", "AdamW8bit", "AdamW4bit", "AdamWFp8", "_AdamW")),
    *(f"bitsandbytes.optim.{name}" for name in ("AdamW", "AdamW8bit", "Lion", "Lion8bit", "RMSprop", "SGD")),
    *(f"timm.optim.{name}" for name in ("AdaBelief", "AdamWLegacy", "Adan", "LaProp", "Lion", "NAdamW", "SGDW")),
    *(f"pytorch_optimizer.{name}" for name in ("Lion", "AdaBelief", "Adan", "ADOPT", "CAME", "Grams")),
    *(f"heavyball.{name}" for name in ("AdamW", "Muon", "SOAP")),
    "lion_pytorch.Lion",
}  # fmt: skip
