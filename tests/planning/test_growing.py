"""Tensors that a new plan has and an optimizer lacks."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import PlanError
from weightdecay.schedules import Linear


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 6)
        self.hidden = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 12)

    def forward(self, ids: Any) -> Any:
        return self.head(self.norm(self.hidden(self.embed(ids))))


def frozen() -> Tied:
    model = Tied()
    for part in (model.embed, model.hidden, model.norm):
        part.requires_grad_(False)
    return model


def thawed(model: nn.Module) -> Any:
    model.requires_grad_(True)
    return weightdecay.plan(model, weight_decay=0.1)


MAKERS: dict[str, Any] = {
    "torch AdamW": lambda plan, **kw: torch.optim.AdamW(plan.param_groups(lr=1e-3), **kw),
    "torch AdamW, nameless": lambda plan, **kw: torch.optim.AdamW(plan.param_groups(lr=1e-3, names=False), **kw),
    "AdamW": lambda plan, **kw: weightdecay.AdamW(plan, lr=1e-3, **kw),
    "Lion": lambda plan, **kw: weightdecay.Lion(plan, lr=1e-3, **kw),
    "Muon": lambda plan, **kw: weightdecay.Muon(plan, lr=1e-3, **kw),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_frozen_joins_with_the_plans_lambda_and_the_optimizer_then_carries_the_plan(name: str) -> None:
    model = frozen()
    optimizer = MAKERS[name](weightdecay.plan(model, weight_decay=0.1))
    plan = thawed(model)
    assert set(plan.add_to(optimizer)) == {"embed.weight", "hidden.weight", "hidden.bias", "norm.weight", "norm.bias"}
    assert plan.check(optimizer).ok, plan.check(optimizer)
    assert plan.add_to(optimizer) == []
    model(torch.arange(12)).square().mean().backward()
    optimizer.step()


def test_an_optimizer_of_another_model_gets_nothing() -> None:
    optimizer = torch.optim.AdamW(Tied().parameters())
    with pytest.raises(PlanError, match="trains no tensor of the plan's model"):
        thawed(frozen()).add_to(optimizer)
    assert len(optimizer.param_groups) == 1


def test_they_join_at_the_lr_lambda_and_peak_of_now() -> None:
    model = frozen()
    optimizer = weightdecay.AdamW(
        weightdecay.plan(model, weight_decay=0.1), lr=1e-3, betas=(0.8, 0.9), rule="independent", rounding="kahan"
    )
    weightdecay.apply_schedules(optimizer, 5, lr=4e-4, weight_decay=0.02)
    before = len(optimizer.param_groups)
    plan = thawed(model)
    plan.add_to(optimizer)
    for group in optimizer.param_groups[before:]:
        assert group["lr"] == 4e-4
        assert group["weight_decay"] == pytest.approx(0.02 * group["decay_multiplier"])
        assert (group["peak_lr"], group["rule"], group["rounding"]) == (1e-3, "independent", "kahan")
        assert group["betas"] == (0.8, 0.9)
    assert plan.check(optimizer).ok, plan.check(optimizer)


def test_lr_multipliers_scale_what_joins_its_peak_too() -> None:
    model = frozen()
    optimizer = weightdecay.AdamW(weightdecay.plan(model), lr=1e-3, rule="corrected", peak_lr=2e-3)
    model.requires_grad_(True)
    plan = weightdecay.plan(model, overrides=[weightdecay.Override("hidden.weight", 0.5, lr_multiplier=10.0)])
    plan.add_to(optimizer)
    (group,) = (group for group in optimizer.param_groups if group["param_names"] == ["hidden.weight"])
    assert group["lr"] == pytest.approx(1e-2)
    assert group["peak_lr"] == pytest.approx(2e-2)
    assert group["weight_decay"] == pytest.approx(0.05)


def test_roles_decide_for_what_joins_as_for_what_was_there() -> None:
    model = frozen()
    corrected = weightdecay.AdamW(weightdecay.plan(model), lr=1e-3, rule="corrected")
    muon = weightdecay.Muon(weightdecay.plan(model), lr=1e-3)
    plan = thawed(model)
    plan.add_to(corrected)
    plan.add_to(muon)
    rules = {name: group["rule"] for group in corrected.param_groups for name in group["param_names"]}
    assert rules["hidden.weight"] == "corrected"
    assert rules["embed.weight"] == rules["head.weight"] == "decoupled"
    algorithms = {name: group["algorithm"] for group in muon.param_groups for name in group["param_names"]}
    assert [name for name, algorithm in algorithms.items() if algorithm == "muon"] == ["hidden.weight"]


@pytest.mark.parametrize("name", ["torch AdamW", "AdamW", "Muon"])
def test_under_control_and_a_schedule_they_follow_both(name: str) -> None:
    model = frozen()
    optimizer = MAKERS[name](weightdecay.plan(model, weight_decay=0.1))
    controlled = weightdecay.control(optimizer, rule="independent", peak_lr=1e-3, schedule=Linear(0.1, 0.0, steps=10))
    for _ in range(3):
        model(torch.arange(12)).square().mean().backward()
        optimizer.step()
    plan = thawed(model)
    plan.add_to(optimizer)
    model(torch.arange(12)).square().mean().backward()
    optimizer.step()
    assert {round(decay, 9) for decay in controlled.decay_per_step() if decay} == {0.06}
    assert plan.check(optimizer).ok, plan.check(optimizer)


@pytest.mark.long
@pytest.mark.parametrize("make", ["torch", "ours"])
@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs lightning, which no extra brings")
def test_lightnings_backbone_finetuning_unfreezes(make: str, tmp_path: Any) -> None:
    import lightning
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.head(self.backbone(batch[0])).square().mean()

        def configure_optimizers(self) -> Any:
            plan = weightdecay.plan(self, weight_decay=0.1)
            if make == "torch":
                return torch.optim.AdamW(plan.param_groups(lr=1e-2, names=False))
            return weightdecay.AdamW(plan, lr=1e-2)

    module = Module()
    start = module.backbone.weight.detach().clone()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 8)), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=3, logger=False, enable_checkpointing=False, default_root_dir=tmp_path, accelerator="cpu",
        enable_progress_bar=False, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
    )  # fmt: skip
    trainer.fit(module, data)
    assert not torch.equal(module.backbone.weight, start)
    assert len(trainer.optimizers[0].param_groups) > 2
