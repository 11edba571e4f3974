"""The code in docs/plan.md's last worked example does what the page says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightdecay
from tests.planning.strangers.sequences import Mamba, Rwkv

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"


def shown() -> tuple[str, str]:
    """The code the project began with, and the plan's."""
    section = PAGE.read_text(encoding="utf-8").partition("## Worked example: the code this project began with")[2]
    before, after = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return before, after


def optimizer_of(code: str, model: nn.Module) -> torch.optim.Optimizer:
    names: dict[str, Any] = {"model": model, "AdamW": torch.optim.AdamW, "weightdecay": weightdecay}
    exec(code, names)
    made: torch.optim.Optimizer = names["optimizer"]
    return made


def order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def llama_like() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 8, bias=False)) for _ in range(8)))


def test_its_groups_are_right_on_a_llama_and_their_order_is_an_accident() -> None:
    before, after = shown()
    models = [llama_like() for _ in range(4)]
    theirs = [order(model, optimizer_of(before, model)) for model in models]
    ours = [order(model, optimizer_of(after, model)) for model in models]
    assert [set(group) for group in theirs[0]] == [set(group) for group in ours[0]]
    assert all(one == ours[0] for one in ours)
    assert any(one != theirs[0] for one in theirs)


def test_a_state_loaded_by_position_lands_on_other_tensors() -> None:
    before, after = shown()

    def swapped(code: str, first: nn.Module, second: nn.Module) -> bool:
        saved, resumed = optimizer_of(code, first), optimizer_of(code, second)
        for number, parameter in enumerate(first.parameters()):
            parameter.grad = torch.full_like(parameter, float(number + 1))
        saved.step()
        resumed.load_state_dict(saved.state_dict())
        pairs = zip(first.parameters(), second.parameters(), strict=True)
        return any(not torch.equal(saved.state[p]["exp_avg"], resumed.state[q]["exp_avg"]) for p, q in pairs)

    models = [llama_like() for _ in range(6)]
    assert any(swapped(before, models[0], other) for other in models[1:])
    assert not any(swapped(after, models[0], other) for other in models[1:])


def test_elsewhere_its_groups_are_wrong_too() -> None:
    before, after = shown()
    model = nn.ModuleDict({"ssm": Mamba(), "mix": Rwkv(), "gain": nn.Module(), "bias_net": nn.Linear(8, 8)})
    model["gain"].scale = nn.Parameter(torch.ones(1, 4, 1, 1))
    decayed, _ = order(model, optimizer_of(before, model))
    right, _ = order(model, optimizer_of(after, model))
    assert {"ssm.rates", "mix.time_maa_k", "gain.scale"} <= {*decayed} - {*right}
    assert {*right} - {*decayed} == {"bias_net.weight"}
