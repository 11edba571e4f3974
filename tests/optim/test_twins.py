"""Every optimizer under every rule against its readable float64 twin, and against torch bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.references import directions, rules
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.lion import Lion
from weightdecay.optim.sgdw import SGDW
from weightdecay.rules import RULES
from weightdecay.schedules import Cosine, Warmup

Make = Callable[..., DecayingOptimizer]
SHAPES = ((5, 7), (3, 4, 6), (9,))
STEPS = 30
PEAK = 0.05
LR = Warmup(5, then=Cosine(PEAK, 0.0, steps=STEPS - 6))  # the last step has lr 0

# name -> (optimizer, its settings, twin)
DIRECTIONS: dict[str, tuple[Make, dict[str, Any], Callable[[], directions.Direction]]] = {
    "AdamW": (AdamW, {}, directions.Adam),
    "AdamW foreach": (AdamW, {"foreach": True}, directions.Adam),
    "AdamW fused": (AdamW, {"fused": True}, directions.Adam),
    "AdamW amsgrad": (AdamW, {"amsgrad": True, "betas": (0.8, 0.9)}, lambda: directions.Adam(0.8, 0.9, amsgrad=True)),
    "Lion": (Lion, {}, directions.Lion),
    "Lion foreach": (Lion, {"foreach": True, "betas": (0.95, 0.98)}, lambda: directions.Lion(0.95, 0.98)),
    "SGDW": (SGDW, {}, directions.Momentum),
    "SGDW momentum": (SGDW, {"momentum": 0.9, "dampening": 0.2}, lambda: directions.Momentum(0.9, 0.2)),
    "SGDW damped to its first gradient": (SGDW, {"momentum": 0.9, "dampening": 1.0},
                                          lambda: directions.Momentum(0.9, 1.0)),
    "SGDW nesterov": (SGDW, {"momentum": 0.9, "nesterov": True, "foreach": True},
                      lambda: directions.Momentum(0.9, nesterov=True)),
    "Adafactor": (Adafactor, {}, lambda: directions.Adafactor(relative_step=True)),
    "Adafactor foreach": (Adafactor, {"foreach": True}, lambda: directions.Adafactor(relative_step=True)),
    "Adafactor momentum": (Adafactor, {"beta1": 0.9, "relative_step": False}, lambda: directions.Adafactor(beta1=0.9)),
    "Adafactor as in PaLM": (Adafactor, {"beta1": 0.9, "factored": False, "relative_step": False},
                             lambda: directions.Adafactor(factored=False, beta1=0.9)),
    "Adafactor unscaled": (Adafactor, {"scale_parameter": False, "relative_step": False},
                           lambda: directions.Adafactor(scale_parameter=False)),
    "SGDW fused": (SGDW, {"momentum": 0.9, "fused": True}, lambda: directions.Momentum(0.9)),
}  # fmt: skip
SCALAR_AND_MASKED = [name for name in RULES if name != "l2"]


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def gradients(step: int, sign: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1_000 + step)
    return [sign * torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], sign: float = 1.0) -> list[Tensor]:
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR(step)
        for p, g in zip(params, gradients(step, sign), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()
    return [p.detach() for p in params]


def twin(make: Callable[[], directions.Direction], rule: str, weight_decay: float) -> list[Tensor]:
    weights = [p.detach().clone() for p in parameters()]
    initial = [w.clone() for w in weights]
    kept = [make() for _ in weights]
    for step in range(STEPS):
        for i, g in enumerate(gradients(step)):
            weights[i] = rules.step(
                kept[i], rule, weights[i], g,
                lr=LR(step), weight_decay=weight_decay, peak_lr=PEAK, initial=initial[i],
            )  # fmt: skip
    return weights


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for ours, reference in zip(found, expected, strict=True):
        assert float((ours - reference).norm() / reference.norm()) <= tolerance


@pytest.mark.parametrize("rule", SCALAR_AND_MASKED)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_direction_follows_every_rule_as_its_twin_does(name: str, rule: str) -> None:
    make, settings, reference = DIRECTIONS[name]
    weight_decay = 0.02 if rule in ("independent", "fixed") else 0.5
    params = parameters()
    optimizer = make(params, lr=PEAK, weight_decay=weight_decay, rule=rule, **settings)
    assert_close(run(optimizer, params), twin(reference, rule, weight_decay))


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("rule", ["decoupled", "cautious"])
def test_maximizing_is_minimizing_the_negative(name: str, rule: str) -> None:
    make, settings, _ = DIRECTIONS[name]
    down, up = parameters(), parameters()
    run(make(down, lr=PEAK, weight_decay=0.5, rule=rule, **settings), down)
    run(make(up, lr=PEAK, weight_decay=0.5, rule=rule, maximize=True, **settings), up, sign=-1.0)
    assert_close([p.detach() for p in up], [p.detach() for p in down])


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}], ids=["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (AdamW, torch.optim.AdamW, {}),
        (AdamW, torch.optim.AdamW, {"amsgrad": True, "maximize": True, "betas": (0.8, 0.95), "eps": 1e-6}),
        (AdamL2, torch.optim.Adam, {}),
        (AdamL2, torch.optim.Adam, {"amsgrad": True, "maximize": True}),
        (SGDW, torch.optim.SGD, {"rule": "l2", "momentum": 0.9}),
        (Adafactor, torch.optim.Adafactor, {}),
    ],
    ids=["AdamW", "AdamW all", "AdamL2", "AdamL2 all", "SGDW l2", "Adafactor"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
def test_where_torch_has_the_optimizer_ours_equals_it_bit_for_bit(
    ours: Make, theirs: Any, settings: dict[str, Any], dtype: torch.dtype, path: dict[str, Any]
) -> None:
    if "fused" in path and ours is Adafactor:
        pytest.skip("torch has no fused Adafactor")
    mine, reference = parameters(dtype=dtype), parameters(dtype=dtype)
    torch_settings = {key: value for key, value in settings.items() if key != "rule"}
    found = run(ours(mine, lr=PEAK, weight_decay=0.5, **settings, **path), mine)
    expected = run(theirs(reference, lr=PEAK, weight_decay=0.5, **torch_settings, **path), reference)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_decay_sgdw_equals_torchs_sgd_bit_for_bit() -> None:
    mine, reference = parameters(), parameters()
    run(SGDW(mine, lr=PEAK, momentum=0.9), mine)
    run(torch.optim.SGD(reference, lr=PEAK, momentum=0.9), reference)
    assert all(torch.equal(a, b) for a, b in zip(mine, reference, strict=True))


@pytest.mark.parametrize("rule", ["independent", "fixed", "lr_squared", "corrected"])
def test_a_scalar_rule_equals_the_kernel_given_the_same_decay_per_step(rule: Any) -> None:
    """At a constant lr every scalar rule is torch's AdamW with λ = a / lr."""
    weight_decay = 0.3
    decay = rules.decay_per_step(rule, PEAK, weight_decay, PEAK)
    ours, theirs = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    mine = AdamW(ours, lr=PEAK, weight_decay=weight_decay, rule=rule)
    reference = torch.optim.AdamW(theirs, lr=PEAK, weight_decay=decay / PEAK)
    for step in range(5):
        for params, optimizer in ((ours, mine), (theirs, reference)):
            for p, g in zip(params, gradients(step), strict=True):
                p.grad = g.float()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("agree", [True, False])
def test_cautious_equals_decoupled_where_all_signs_agree_and_no_decay_where_none_do(name: str, agree: bool) -> None:
    make, settings, _ = DIRECTIONS[name]
    if name == "Adafactor foreach":
        pytest.skip("the mask goes tensor by tensor, and torch's foreach rounds unlike its for-loop")
    cautious, other = parameters(3, torch.float32), parameters(3, torch.float32)
    with torch.no_grad():
        for p in cautious + other:
            p.copy_(p.sign() * (p.abs() + 10))  # so far from 0 that no sign turns
    for params, rule in ((cautious, "cautious"), (other, "decoupled")):
        weight_decay = 0.5 if rule == "cautious" or agree else 0.0
        optimizer = make(params, lr=0.01, weight_decay=weight_decay, rule=rule, **settings)
        for step in range(10):
            for p, g in zip(params, gradients(step), strict=True):
                p.grad = (g.abs().float() if agree else -g.abs().float()) * p.detach().sign()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(cautious, other, strict=True))
