"""docs/plan.md runs as it is printed, and says what is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from weightdecay.planning.evidence.marks import Mark
from weightdecay.planning.policies.policy_file import POLICIES, PolicyName, read_policy
from weightdecay.planning.roles.roles import NormPlace

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


class Reader(nn.Module):
    """The model of somebody who pastes, with what the page's policies name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": nn.ModuleDict({"gate": nn.Linear(8, 8)})}) for _ in range(2))
        self.router = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer["mlp"]["gate"](x)  # type: ignore[index]
        out: torch.Tensor = self.router(x)
        return out


def test_its_python_runs_one_block_after_the_other() -> None:
    names: dict[str, Any] = {"model": nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))}
    assert len(blocks("python")) >= 4
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"block {number} of docs/plan.md", "exec"), names)


def test_its_policy_is_read_and_plans(tmp_path: Path) -> None:
    import weightdecay

    (text,) = blocks("toml")
    path = tmp_path / "ours.toml"
    path.write_text(text, encoding="utf-8")
    policy, overrides = read_policy(path)
    assert policy.norms == {NormPlace.QUERY_KEY: 1.0}
    assert len(overrides) == 2
    plan = weightdecay.plan(Reader(), policy=path)
    assert not plan["embed.weight"].decays
    assert plan["layers.1.mlp.gate.weight"].lr_multiplier == 10.0
    assert str(plan["router.weight"].role) == "linear weight"


@pytest.mark.parametrize("place", NormPlace)
def test_it_names_every_place_of_a_norm(place: NormPlace) -> None:
    assert f"`{place}`" in " ".join(PAGE.split())


def test_it_names_every_policy_and_every_mark() -> None:
    assert list(get_args(PolicyName)) == list(POLICIES)  # what type checkers and editors offer
    assert [name for name in POLICIES if f"`{name}`" not in PAGE] == []
    for mark in (
        "_no_weight_decay", "no_weight_decay", "_no_wd", "_optim", "optim_overrides", "lr_scale", "weight_decay_scale",
        "no_weight_decay()", "no_weight_decay_keywords()",
    ):  # fmt: skip
        assert mark in PAGE
    assert {field.name for field in fields(Mark)} == {"where", "weight_decay", "share", "lr", "lr_share", "unread"}
