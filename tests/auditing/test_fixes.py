"""The code that a finding prints is pasted into the loop, and then the finding is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from examples.museum.collection import exhibits
from examples.museum.exhibit import Loop
from examples.museum.language_model import two_groups
from torch import nn

import weightdecay
from tests.auditing.loops import hostile
from tests.auditing.loops.parts import adamw, seeded, train
from weightdecay import Audit, Finding
from weightdecay.errors import PlanError

# Where the loop is as its author wants it, or nothing that can be pasted mends it.
NOTHING_TO_PASTE = ("by-design", "opaque")


def audited(loop: Loop) -> Audit:
    return weightdecay.audit(loop.model, loop.optimizer, **loop.asked)


def pasted(finding: Finding, loop: Loop) -> Loop:
    names: dict[str, Any] = {"model": loop.model, "optimizer": loop.optimizer, **loop.asked}
    exec(finding.fix, names)
    return Loop(loop.model, names["optimizer"], loop.asked)


LOOPS: list[tuple[str, Callable[[], Loop], str]] = [
    *((one.make.__name__, one.make, one.code) for one in hostile.LOOPS),
    *((one.project, one.wrong, one.code) for one in exhibits()),
]


def cases() -> Iterator[Any]:
    """The first loop of each code, and with more time all."""
    seen: set[str] = set()
    for name, make, code in LOOPS:
        marks = [pytest.mark.long] if code in seen else []
        seen.add(code)
        yield pytest.param(make, code, id=f"{name} {code}", marks=marks)


@pytest.mark.parametrize(("make", "code"), list(cases()))
def test_a_fix_that_is_pasted_ends_its_finding_and_brings_no_other(make: Callable[[], Loop], code: str) -> None:
    loop = make()
    finding = next(one for one in audited(loop) if one.code == code)
    if not finding.fix:
        # Where it is the only tensor that decays, whoever gave λ has decided.
        assert code in NOTHING_TO_PASTE or list(weightdecay.probe(loop.model, loop.optimizer).tensors)[1:] == []
        return

    mended = audited(pasted(finding, loop))
    assert not [one for one in mended if one.code == code and set(one.tensors) & set(finding.tensors)]
    # λ that float32 cannot hold is none, and who asks for it is told so.
    expected = ["stale"] if finding.title.endswith("float32 rounds away") else []
    assert [one.code for one in mended if one.severity != "note"] == expected


def test_several_optimizers_are_mended_by_the_names_that_they_were_given_under() -> None:
    model = seeded()
    optimizers = [
        torch.optim.Adam([model.tokens.weight, model.head.weight], lr=1e-3, weight_decay=0.1),
        torch.optim.RMSprop(model.blocks.parameters(), lr=1e-3, weight_decay=0.1),
        torch.optim.AdamW([model.norm.weight], lr=1e-3, weight_decay=0.1),
    ]
    names: dict[str, Any] = {"model": model, "optimizers": optimizers}
    for code in ("coupled", "decays-exempt"):
        audit = weightdecay.audit(model, optimizers=names["optimizers"])
        exec(next(one for one in audit if one.code == code).fix, names)
    assert weightdecay.audit(model, optimizers=names["optimizers"]).ok


def test_a_fix_of_a_policy_names_the_policy() -> None:
    model = seeded()
    optimizer = adamw(model)
    audit = weightdecay.audit(model, optimizer, policy="all")
    assert "policy='all'" in audit.findings[0].fix
    exec(audit.findings[0].fix, {"model": model, "optimizer": optimizer})
    assert weightdecay.audit(model, optimizer, policy="all").ok
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)


def test_regrouping_keeps_state_rates_and_settings_and_moves_no_weight() -> None:
    model = seeded()
    groups: list[dict[str, Any]] = [
        {"params": list(model.blocks.parameters()), "lr": 1e-4},
        {"params": [model.tokens.weight]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = {p: (p.detach().clone(), optimizer.state[p]["exp_avg"].clone()) for p in optimizer.state}
    lrs = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}

    weightdecay.regroup(optimizer, weightdecay.plan(model))

    after = {p: group for group in optimizer.param_groups for p in group["params"]}
    assert after.keys() == lrs.keys()
    for p, (weights, moment) in before.items():
        assert torch.equal(p, weights)
        assert torch.equal(optimizer.state[p]["exp_avg"], moment)
        assert after[p]["lr"] == lrs[p]
        assert after[p]["betas"] == (0.8, 0.9)
        assert after[p]["weight_decay"] == (0.1 if p.ndim == 2 else 0.0)
    optimizer.step()


def test_regrouping_leaves_what_has_no_known_role_and_keeps_names_beside_their_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.thing = nn.Parameter(torch.randn(3, 3))
            self.linear = nn.Linear(4, 4)

    model = Odd()
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(named, lr=1e-3, weight_decay=0.1)
    plan = weightdecay.plan(model, unknown="exempt")
    assert plan["thing"].unknown
    weightdecay.regroup(optimizer, plan, weight_decay=0.2)
    λ = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    assert λ == {"thing": 0.1, "linear.weight": 0.2, "linear.bias": 0.0}
    held = {name: p for g in optimizer.param_groups for name, p in zip(g["param_names"], g["params"], strict=True)}
    assert all(held[name] is p for name, p in named)


def test_regrouping_wants_a_plan_and_an_optimizer() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(PlanError, match="plan is a float"):
        weightdecay.regroup(torch.optim.SGD(model.parameters()), 0.1)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="give a torch optimizer"):
        weightdecay.regroup(model, weightdecay.plan(model))


class LateDecay(torch.optim.SGD):
    """Decays what the update has made, as several libraries' kernels do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0
        super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
            for p in group["params"]:
                p.mul_(1 - group["lr"] * decay)


def test_a_decay_after_the_update_is_brought_before_it() -> None:
    model = seeded()
    optimizer = LateDecay(two_groups(model.parameters(), 0.1), lr=0.1, momentum=0.9)
    train(model, optimizer)
    (finding,) = [one for one in weightdecay.audit(model, optimizer) if one.code == "wrong-order"]
    exec(finding.fix, {"model": model, "optimizer": optimizer})
    assert "wrong-order" not in [one.code for one in weightdecay.audit(model, optimizer)]


def test_rows_that_no_token_asked_for_are_spared() -> None:
    model = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 100))
    optimizer = torch.optim.AdamW(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer, loss=lambda model: model(torch.arange(10)).square().mean())
    (finding,) = [one for one in weightdecay.audit(model, optimizer) if one.code == "idle-decay"]
    assert finding.title.startswith("rows")
    exec(finding.fix, {"model": model, "optimizer": optimizer})
    assert "idle-decay" not in [one.code for one in weightdecay.audit(model, optimizer)]


def test_whoever_asks_for_no_decay_is_shown_how_to_ask() -> None:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    (finding,) = weightdecay.audit(model, optimizer)
    assert finding.code == "by-design"
    exec(finding.fix, {"model": model, "optimizer": optimizer})
    assert weightdecay.audit(model, optimizer).findings == ()
