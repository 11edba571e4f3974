"""A rule of one's own is one object that works wherever a name does."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.covering import covering
from weightdecay.errors import OptimizerError
from weightdecay.rules import RULES, Rule, group_decay_per_step

# As modded-nanogpt decays: its matrices masked by `>= 0`, its vectors by `> 0`, both with λ·lr².
NORMUON = Rule("of matrices", lr_power=2, mask="agreeing")
ADAM = Rule("of vectors", lr_power=2, mask="strictly_agreeing")
GAINS = Rule("gains at rest", lr_power=1, peak_power=1, target="one", mask="agreeing")
ROOT = Rule("root", lr_power=0.5)
OWN = [NORMUON, ADAM, GAINS, ROOT]

LR, PEAK, DECAY = 0.2, 0.4, 0.5
SHAPES = ((6, 5), (40_000,), (3,))


def expected(rule: Rule, before: Tensor, plain: Tensor) -> Tensor:
    """What the rule makes of a step that without decay leads from `before` to `plain`."""
    update = before - plain
    a = DECAY * LR**rule.lr_power / PEAK**rule.peak_power
    mask = {
        "none": torch.ones_like(before),
        "agreeing": ((update * before) >= 0).double(),
        "strictly_agreeing": ((update * before) > 0).double(),
    }[rule.mask]
    target = {"zero": 0.0, "one": 1.0}[rule.target]
    decayed: Tensor = plain - a * mask * (before - target)
    return decayed


def params(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        p.grad.view(-1)[0] = 0.0  # where `agreeing` and `strictly_agreeing` differ
    return made


MAKERS: dict[str, Any] = {
    "AdamW for-loop": lambda p, **kw: weightdecay.AdamW(p, foreach=False, **kw),
    "AdamW foreach": lambda p, **kw: weightdecay.AdamW(p, foreach=True, **kw),
    "AdamW fused": lambda p, **kw: weightdecay.AdamW(p, fused=True, **kw),
    "AdamW compiled": lambda p, **kw: weightdecay.AdamW(p, fused=True, compiled=True, **kw),
    "Lion": weightdecay.Lion,
    "SGDW": lambda p, **kw: weightdecay.SGDW(p, momentum=0.9, nesterov=True, **kw),
    "Adafactor": lambda p, **kw: weightdecay.Adafactor(p, relative_step=False, scale_parameter=False, **kw),
    "Muon": lambda p, **kw: weightdecay.Muon(p, ns_dtype=torch.float64, **kw),
}


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.name)
@pytest.mark.parametrize("name", MAKERS)
def test_every_optimizer_follows_a_rule_of_ones_own(name: str, rule: Rule) -> None:
    dtype = torch.float32 if name == "AdamW compiled" else torch.float64
    settings = {"lr": LR, "rule": rule, "peak_lr": PEAK}
    decayed, plain = params(dtype), params(dtype)
    optimizer = MAKERS[name](decayed, weight_decay=DECAY, **settings)
    reference = MAKERS[name](plain, weight_decay=0.0, **settings)
    for _ in range(3):
        before = [p.detach().double().clone() for p in decayed]
        for p, q in zip(plain, decayed, strict=True):
            p.data.copy_(q)
        optimizer.step()
        reference.step()
        for p, q, w in zip(decayed, plain, before, strict=True):
            assert torch.allclose(p.detach().double(), expected(rule, w, q.detach().double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "rounding", "rule"),
    covering(["AdamW fused", "AdamW compiled", "Lion", "SGDW", "Muon"], ["stochastic", "kahan", "master"], OWN),
    ids=lambda of: getattr(of, "name", of),
)
def test_every_rounding_keeps_a_rule_of_ones_own(name: str, rounding: str, rule: Rule) -> None:
    low = params(torch.bfloat16)
    high = [nn.Parameter(p.detach().float()) for p in low]
    settings: dict[str, Any] = {"lr": 1e-3, "rule": rule, "peak_lr": 1e-3, "weight_decay": 0.3}
    maker: Any = MAKERS[name] if name != "Muon" else weightdecay.Muon
    ours, reference = maker(low, rounding=rounding, **settings), maker(high, **settings)
    for p, q in zip(low, high, strict=True):
        q.grad = p.grad.float() if p.grad is not None else None
    for _ in range(20):
        ours.step()
        reference.step()
    for p, q in zip(low, high, strict=True):
        moved = float((q.detach() - p.detach().float()).norm() / q.detach().norm())
        assert moved < (0.03 if rounding == "stochastic" else 0.01)  # 20 steps of noise of half a neighbour


def test_a_rule_of_ones_own_travels_with_copies_pickles_and_groups() -> None:
    p, q = params(torch.float32)[:2]
    optimizer = weightdecay.AdamW([{"params": [p], "rule": NORMUON}, {"params": [q]}], lr=LR, rule=ROOT)
    for each in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert [group["rule"] for group in each.param_groups] == [NORMUON, ROOT]
    assert group_decay_per_step(optimizer.param_groups[1]) == pytest.approx(0.01 * LR**0.5)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_by_its_name_and_by_its_value_are_one(name: str) -> None:
    ours = weightdecay.SGDW([nn.Parameter(torch.ones(2))], lr=LR, rule=RULES[name])
    assert ours.param_groups[0]["rule"] == name


def test_rules_of_ones_own_go_by_pattern_too() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = weightdecay.AdamW(net.named_parameters(), lr=LR, peak_lr=LR, rule={"1.weight": GAINS, "*": ROOT})
    assert {tuple(group["param_names"]): group["rule"] for group in optimizer.param_groups} == {
        ("0.weight", "0.bias", "1.bias"): ROOT,
        ("1.weight",): GAINS,
    }


@pytest.mark.parametrize("rule", [NORMUON, ADAM, ROOT], ids=lambda rule: rule.name)
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.NAdam])
def test_control_follows_a_rule_of_ones_own_on_an_optimizer_of_others(cls: Any, rule: Rule) -> None:
    decayed, plain = params(torch.float64), params(torch.float64)
    optimizer = cls(decayed, lr=LR, weight_decay=DECAY)
    weightdecay.control(optimizer, rule=rule, peak_lr=PEAK)
    reference = cls(plain, lr=LR, weight_decay=0.0)
    for _ in range(4):
        before = [p.detach().clone() for p in decayed]
        for p, q in zip(plain, decayed, strict=True):
            p.data.copy_(q)
        optimizer.step()
        reference.step()
        for p, q, w in zip(decayed, plain, before, strict=True):
            assert torch.allclose(p.detach(), expected(rule, w, q.detach()), rtol=1e-12, atol=1e-12)


def test_convert_goes_by_the_power_of_the_lr() -> None:
    same = Rule("mine", lr_power=2)
    assert weightdecay.convert(1.0, source="palm", target=same, lr=1e-2) == pytest.approx(1.0)
    assert weightdecay.convert(0.1, source="torch", target=same, lr=1e-2) == pytest.approx(10.0)
    with pytest.raises(weightdecay.errors.ConfigError, match=r"mask|target"):
        weightdecay.convert(0.1, source="torch", target=NORMUON, lr=1e-2)


def test_an_optimizer_says_which_rules_of_ones_own_it_cannot_follow() -> None:
    coupled = Rule("mine", coupled=True)
    for name in ("AdamW", "Lion", "Muon", "Adafactor"):
        with pytest.raises(OptimizerError, match="rule 'mine'"):
            getattr(weightdecay, name)([nn.Parameter(torch.ones(2, 2))], rule=coupled)
    assert weightdecay.SGDW([nn.Parameter(torch.ones(2, 2))], rule=coupled).param_groups[0]["rule"] == coupled
