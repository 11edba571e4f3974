"""Our optimizers on a GPU: against their float64 twins, against torch's own bit for bit, and their exact decay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.optim.test_muon import FORMS
from tests.optim.test_twins import (
    DIRECTIONS,
    LR,
    PEAK,
    SCALAR_AND_MASKED,
    STEPS,
    Make,
    assert_close,
    gradients,
    parameters,
    twin,
)
from tests.references import directions, rules
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.clipping import total_norm
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW
from weightdecay.rules import RULES

pytestmark = pytest.mark.anywhere

CASES = DIRECTIONS | {
    "AdamW for-loop": (AdamW, {"foreach": False}, directions.Adam),
    "Lion for-loop": (Lion, {"foreach": False}, directions.Lion),
    "SGDW foreach": (SGDW, {"momentum": 0.9, "foreach": True}, lambda: directions.Momentum(0.9)),
}
CAPTURABLE: dict[str, dict[str, Any]] = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "amsgrad": {"foreach": True, "amsgrad": True},
}


def on(device: torch.device, params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().to(device, copy=True)) for p in params]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR(step)
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.to(p.device, p.dtype)
        optimizer.step()
    return [p.detach().cpu() for p in params]


@pytest.mark.parametrize("rule", SCALAR_AND_MASKED)
@pytest.mark.parametrize("name", CASES)
def test_every_direction_follows_every_rule_as_its_twin_does(name: str, rule: str, device: torch.device) -> None:
    make, settings, reference = CASES[name]
    weight_decay = 0.02 if rule in ("independent", "fixed") else 0.5
    params = on(device, parameters())
    optimizer = make(params, lr=PEAK, weight_decay=weight_decay, rule=rule, **settings)
    assert_close(run(optimizer, params), twin(reference, rule, weight_decay))


@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"foreach": True, "amsgrad": True}], ids=str)
def test_the_coupled_adam_follows_its_twin(settings: dict[str, Any], device: torch.device) -> None:
    params = on(device, parameters())
    found = run(AdamL2(params, lr=PEAK, weight_decay=0.5, **settings), params)
    assert_close(found, twin(lambda: directions.Adam(amsgrad="amsgrad" in settings), "l2", 0.5))


@pytest.mark.parametrize("rule", SCALAR_AND_MASKED)
@pytest.mark.parametrize("path", CAPTURABLE)
def test_a_capturable_adamw_follows_every_rule_as_its_twin_does(path: str, rule: Any, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("capturable is refused on a processor")
    settings = CAPTURABLE[path]
    weight_decay = 0.02 if rule in ("independent", "fixed") else 0.5
    params = on(device, parameters())
    optimizer = AdamW(params, lr=PEAK, weight_decay=weight_decay, rule=rule, capturable=True, **settings)
    expected = twin(lambda: directions.Adam(amsgrad="amsgrad" in settings), rule, weight_decay)
    # Its counter is a float32 on the device, and so are the powers of β that are taken of it.
    assert_close(run(optimizer, params), expected, tolerance=1e-5)


@pytest.mark.parametrize("rule", SCALAR_AND_MASKED)
@pytest.mark.parametrize("form", FORMS)
def test_muon_follows_every_rule_as_its_twin_does(form: str, rule: Any, device: torch.device) -> None:
    shapes = ((6, 8), (9, 4), (3, 6, 4))
    generator = torch.Generator().manual_seed(0)
    expected = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    initial = [w.clone() for w in expected]
    params = [nn.Parameter(w.to(device, copy=True)) for w in expected]
    ours, its = FORMS[form]
    optimizer = Muon(params, lr=0.03, weight_decay=0.2, rule=rule, ns_dtype=torch.float64, **ours)
    twins = [directions.Muon(**its) for _ in shapes]

    for number in range(12):
        lr = 0.03 * (1 - number / 12)
        optimizer.param_groups[0]["lr"] = lr
        for i, p in enumerate(params):
            g = torch.randn(shapes[i], generator=generator, dtype=torch.float64)
            p.grad = g.to(device)
            expected[i] = rules.step(
                twins[i], rule, expected[i], g, lr=lr, weight_decay=0.2, peak_lr=0.03, initial=initial[i]
            )
        optimizer.step()
    assert_close([p.detach().cpu() for p in params], expected, tolerance=1e-11)


PATHS: list[dict[str, Any]] = [{}, {"foreach": False}, {"foreach": True}, {"fused": True}]


@pytest.mark.parametrize("path", PATHS, ids=["default", "for-loop", "foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (AdamW, torch.optim.AdamW, {}),
        (AdamW, torch.optim.AdamW, {"amsgrad": True, "maximize": True, "betas": (0.8, 0.95), "eps": 1e-6}),
        (AdamL2, torch.optim.Adam, {}),
        (SGDW, torch.optim.SGD, {"rule": "l2", "momentum": 0.9}),
        (Adafactor, torch.optim.Adafactor, {}),
    ],
    ids=["AdamW", "AdamW all", "AdamL2", "SGDW l2", "Adafactor"],
)
def test_where_torch_has_the_optimizer_ours_equals_it_bit_for_bit(
    ours: Make, theirs: Any, settings: dict[str, Any], dtype: torch.dtype, path: dict[str, Any], device: torch.device
) -> None:
    if "fused" in path and ours is Adafactor:
        pytest.skip("torch has no fused Adafactor")
    mine, reference = (on(device, parameters(dtype=dtype)) for _ in range(2))
    its = {key: value for key, value in settings.items() if key != "rule"}
    found = run(ours(mine, lr=PEAK, weight_decay=0.5, **settings, **path), mine)
    expected = run(theirs(reference, lr=PEAK, weight_decay=0.5, **its, **path), reference)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


EVERY: list[tuple[Make, dict[str, Any]]] = [
    (AdamW, {}), (AdamW, {"fused": True}), (Lion, {}), (SGDW, {"momentum": 0.9}), (SGDW, {"fused": True}),
    (Adafactor, {"beta1": 0.9}), (Muon, {}),
]  # fmt: skip


def idle(make: Make, dtype: torch.dtype, device: torch.device, **settings: Any) -> tuple[Tensor, Tensor]:
    """A matrix before and after 20 steps of lr 0.01 and λ 0.5 in which no gradient moves it."""
    start = torch.randn(256, 512, generator=torch.Generator().manual_seed(3)).to(dtype)
    p = nn.Parameter(start.to(device, copy=True))
    optimizer = make([p], lr=0.01, weight_decay=0.5, **settings)
    for _ in range(20):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    return start.double(), p.detach().cpu().double()


@pytest.mark.parametrize(("make", "settings"), EVERY, ids=str)
@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.is_scalar])
def test_without_a_gradient_only_the_decay_is_left_and_it_is_exact(
    make: Make, settings: dict[str, Any], rule: str, device: torch.device
) -> None:
    a = rules.decay_per_step(rule, 0.01, 0.5, 0.01)
    before, after = idle(make, torch.float32, device, rule=rule, **settings)
    assert_close([after], [before * (1 - a) ** 20], tolerance=1e-6)


@pytest.mark.parametrize(("make", "settings"), EVERY, ids=str)
@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
def test_bfloat16_weights_lose_what_the_decay_takes(
    make: Make, settings: dict[str, Any], rounding: str, device: torch.device
) -> None:
    before, after = idle(make, torch.bfloat16, device, rounding=rounding, **settings)
    expected = before * (1 - 0.01 * 0.5) ** 20
    assert float((after * expected).sum() / expected.square().sum()) == pytest.approx(1, abs=5e-4)
    if rounding != "stochastic":  # each weight is the nearest, or all but
        assert float(((after - expected) / expected).abs().max()) <= 1.02 * 2**-8


def with_gradients(device: torch.device, scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in ((400, 700), (3, 1_500), (9,), ()):
        p = nn.Parameter(torch.randn(shape, generator=generator).to(device))
        p.grad = (scale * torch.randn(shape, generator=generator)).to(device)
        params.append(p)
    return params


@pytest.mark.parametrize("make", [torch.optim.AdamW, AdamW, torch.optim.SGD, SGDW, Lion])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_a_clipped_step_is_that_of_clipped_gradients(
    make: Any, fused: bool, scale: float, device: torch.device
) -> None:
    if fused and make is Lion:
        pytest.skip("there is no fused Lion")
    settings = {"lr": 1e-2, "weight_decay": 0.1} | ({"fused": True} if fused else {})
    ours, theirs = with_gradients(device, scale), with_gradients(device, scale)
    optimizer, reference = make(ours, **settings), make(theirs, **settings)
    exact = float(sum(p.grad.double().square().sum() for p in theirs if p.grad is not None)) ** 0.5
    done = weightdecay.clipped_step(optimizer, 1.0)
    assert done.grad_norm == pytest.approx(exact, rel=1e-6)
    assert not hasattr(optimizer, "grad_scale")

    for p in theirs:
        assert p.grad is not None
        p.grad.mul_(min(1.0, 1.0 / (exact + 1e-6)))
    reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing(device: torch.device) -> None:
    params = with_gradients(device)
    optimizer = AdamW(params, lr=1e-2, fused=True)
    weightdecay.clipped_step(optimizer, 1.0)
    before = copy.deepcopy((params, optimizer.state_dict()["state"]))
    assert params[0].grad is not None
    params[0].grad[3, 4] = torch.nan
    assert weightdecay.clipped_step(optimizer, 1.0, on_nonfinite="skip").skipped
    assert all(torch.equal(a, b) for a, b in zip(params, before[0], strict=True))
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[key], before[1][number][key]) for key in state)


def stepped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], device: torch.device) -> list[Tensor]:
    params = with_gradients(device)
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    return params  # type: ignore[return-value]


@pytest.mark.compiler
@pytest.mark.parametrize("rule", ["decoupled", "cautious"])
def test_a_compiled_step_is_the_eager_one(rule: Any, device: torch.device) -> None:
    def compiled(params: list[nn.Parameter]) -> Any:
        optimizer = AdamW(params, lr=torch.tensor(1e-2, device=device), weight_decay=0.1, rule=rule)
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
        return optimizer

    found = stepped(compiled, device)
    eager = stepped(lambda params: AdamW(params, lr=1e-2, weight_decay=0.1, rule=rule), device)
    for a, b in zip(found, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("rule", "dtype", "rounding"), [("cautious", torch.float32, "nearest"), ("decoupled", torch.bfloat16, "kahan")]
)
def test_a_step_in_one_compiled_loop_is_that_of_the_pieces(
    rule: Any, dtype: torch.dtype, rounding: Any, device: torch.device
) -> None:
    def weights(compiled: bool) -> list[Tensor]:
        params = [nn.Parameter(p.detach().to(dtype)) for p in with_gradients(device)]
        optimizer = AdamW(params, lr=1e-2, weight_decay=0.1, rule=rule, rounding=rounding, fused=True,
                          compiled=compiled)  # fmt: skip
        for p, given in zip(params, with_gradients(device), strict=True):
            assert given.grad is not None
            p.grad = given.grad.to(dtype)
        for _ in range(4):
            optimizer.step()
        return [p.detach().float() for p in params]

    rtol, atol = (2**-7, 2e-3) if dtype is torch.bfloat16 else (1e-5, 1e-6)
    for a, b in zip(weights(True), weights(False), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_the_norm_of_gradients_keeps_its_digits(device: torch.device) -> None:
    """Also of a large table, of low precision beside float32, and of numbers whose squares have no float32."""
    torch.manual_seed(0)
    shapes = ((50_304, 768), (7,), (768, 3072), (0,), (1_025,))
    for dtypes in ((torch.float32,), (torch.bfloat16, torch.float32), (torch.float64, torch.float32)):
        tensors = [torch.randn(shape).to(device, dtypes[at % len(dtypes)]) for at, shape in enumerate(shapes)]
        exact = torch.stack([tensor.double().norm() for tensor in tensors]).norm()
        assert float(total_norm(tensors)) == pytest.approx(float(exact), rel=1e-6)
    large = torch.full((100, 100), 1e25, device=device)
    assert float(total_norm([large])) == pytest.approx(1e27, rel=1e-6)
