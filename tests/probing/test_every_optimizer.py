"""The probe on every optimizer class that is installed with the development packages, beside what their sources say."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from optimizer_classes import Kind, installed, kinds
from torch import nn

from weightdecay.probing.probe import GroupReport, probe_step


class Expected(NamedTuple):
    """What a class's source says of its step; `order` is None where decay and update are of the same weights."""

    form: str
    order: str | None = None
    is_lr_times_lambda: bool = False
    reads_weights: bool = False
    hidden_decay: bool = False


# p.mul_(1 − lr·λ) first, then a step that does not look at p.
BEFORE = Expected("decoupled", "before", is_lr_times_lambda=True)
# grad.add(p, alpha=λ)
COUPLED = Expected("coupled")
NOT_READ = Expected("none")

TORCH = {
    "AdamW": BEFORE,
    "AdamW(amsgrad=True)": BEFORE,
    "AdamW(foreach=True)": BEFORE,
    "AdamW(fused=True)": BEFORE,
    "AdamW(maximize=True)": BEFORE,
    "Adam(decoupled_weight_decay=True)": BEFORE,
    "NAdam(decoupled_weight_decay=True)": BEFORE,
    "RAdam(decoupled_weight_decay=True)": BEFORE,
    "Muon": BEFORE,
    # alpha, by the weights' root mean square, is taken before they decay.
    "Adafactor": Expected("decoupled", None, is_lr_times_lambda=True, reads_weights=True),
    # −lr·(g + λ·w): λ in the gradient is lr·λ off the weights.
    "SGD": BEFORE,
    "SGD(fused=True)": BEFORE,
    "SGD(momentum=0.9)": COUPLED,
    "SGD(momentum=0.9, nesterov=True)": COUPLED,
    "Adam": COUPLED,
    "Adam(amsgrad=True)": COUPLED,
    "Adam(foreach=True)": COUPLED,
    "Adam(fused=True)": COUPLED,
    "NAdam": COUPLED,
    "RAdam": COUPLED,
    "RMSprop": COUPLED,
    "Adagrad": COUPLED,
    "Adadelta": COUPLED,
    "Adamax": COUPLED,
    # `lambd`, 1e-4 by default, decays the weights beside λ.
    "ASGD": Expected("coupled", reads_weights=True, hidden_decay=True),
    "Rprop": NOT_READ,
    "SparseAdam": NOT_READ,
    "LBFGS": NOT_READ,
}

OTHERS = {
    # lr is scaled by the weights' root mean square, and λ is multiplied by that lr.
    "Adafactor": Expected("other", reads_weights=True),
    "Adafactor(relative_step=False, scale_parameter=False)": BEFORE,
}


def reports(kind: Kind) -> tuple[GroupReport, ...]:
    """Of a group with λ, matrix first, and one without, vector first; Muon takes matrices alone."""
    shapes = [((6, 8), (4, 4)), ((8, 6),)] if kind.name == "Muon" else [((6, 8), (8,)), ((5,), (6, 8))]
    generator = torch.Generator().manual_seed(0)
    groups = [
        {"params": [nn.Parameter(torch.randn(shape, generator=generator)) for shape in part], "weight_decay": decay}
        for part, decay in zip(shapes, (0.1, 0.0), strict=True)
    ]
    if kind.name == "LBFGS":  # takes no options of groups
        groups = [{"params": groups[0]["params"]}]
    report = probe_step(kind.make(groups))
    assert report.opaque == ""
    return report.groups


def walked(package: str) -> list[Kind]:
    return list(kinds(package)) if installed(package) else []


def test_the_sources_of_every_class_of_torch_were_read() -> None:
    assert {kind.title for kind in walked("torch.optim")} == TORCH.keys()


@pytest.mark.parametrize("kind", walked("torch.optim"), ids=lambda kind: kind.title)
def test_the_probe_sees_what_the_source_of_a_class_of_torch_says(kind: Kind) -> None:
    for group in reports(kind):
        agrees(group, TORCH[kind.title])


@pytest.mark.transformers
def test_the_probe_sees_what_the_source_of_transformers_says() -> None:
    """All in one, for importing transformers takes seconds, which collecting the tests must not."""
    pytest.importorskip("transformers")
    seen = {kind.title: kind for kind in walked("transformers.optimization")}
    stand_in = seen.pop("LayerWiseDummyOptimizer")  # for those that step within the backward; its own does nothing
    assert all("moves its small tensors" in group.opaque for group in reports(stand_in))
    assert seen.keys() == OTHERS.keys()
    for title, kind in seen.items():
        for group in reports(kind):
            agrees(group, OTHERS[title])


@pytest.mark.parametrize("kind", walked("schedulefree"), ids=lambda kind: kind.title)
def test_schedule_free_decays_at_another_point_than_the_weights(kind: Kind) -> None:
    """Its weights are averages of past ones, and its lr is of its own making."""
    for group in reports(kind):
        assert group.opaque == ""
        assert group.reads_weights
        assert not group.own_decay_is_lr_times_lambda


def agrees(group: GroupReport, expected: Expected) -> None:
    assert group.opaque == ""
    assert (group.form, group.order) == (expected.form, expected.order)
    assert group.own_decay_is_lr_times_lambda == expected.is_lr_times_lambda
    assert group.reads_weights == expected.reads_weights
    assert (group.heeds_zeros, group.decays_apart) == (False, False)
    assert (group.hidden_decay > 1e-9) == expected.hidden_decay
    assert group.reads_weight_decay == (expected.form != "none")
