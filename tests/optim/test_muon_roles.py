"""With a plan Muon goes by role: hidden matrices are its own, everything else is AdamW's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from weightdecay.optim.grouping import HIDDEN_MATRICES, is_matrix, muon_tensors
from weightdecay.planning.roles.roles import Role


class Parts(nn.Module):
    """One tensor of many kinds, most of them with the shape of a matrix or of a stack of matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 16)
        self.places = nn.Parameter(torch.randn(1, 10, 16))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Linear(16, 16)
        self.low_rank = nn.Linear(16, 1)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.conv = nn.Conv1d(16, 16, 4, padding=2)
        self.depthwise = nn.Conv1d(16, 16, 3, groups=16, padding=1)
        self.gain = nn.Parameter(torch.ones(1, 1, 16))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.h = nn.Linear(16, 20)  # a head by what it does, not by its name

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places[:, : ids.shape[1]] + self.token
        x = x + self.attention(x, x, x)[0]
        x = x + self.linear(x).relu() + self.low_rank(x)
        x = self.lstm(x)[0]
        x = x + self.conv(x.mT)[..., : x.shape[1]].mT + self.depthwise(x.mT).mT
        logits: Tensor = self.h(self.normed(x * self.gain))
        return logits


def taken(plan: Any) -> set[str]:
    groups = weightdecay.Muon(plan, lr=0.02).param_groups
    return {name for group in groups if group["algorithm"] == "muon" for name in group["param_names"]}


def test_of_a_model_of_many_parts_muon_takes_the_hidden_matrices_alone() -> None:
    model = Parts()
    plan = weightdecay.plan(model, batch=torch.randint(0, 20, (2, 10)), unknown="exempt")
    assert taken(plan) == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "linear.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "normed.parametrizations.weight.original1",
    }


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_of_every_dimension_are_adamws_alike(cls: Any, groups: int) -> None:
    assert taken(weightdecay.plan(nn.Sequential(cls(4, 8, 3, groups=groups), nn.ReLU()), trace=False)) == set()


def test_the_roles_that_muon_takes_are_written_down_once() -> None:
    adamws = set(Role) - HIDDEN_MATRICES
    assert {Role.EMBEDDING, Role.OUTPUT_HEAD, Role.ROUTER, Role.CONVOLUTION, Role.STATE_SPACE, Role.TIME_MIX} <= adamws
    assert {Role.NORM_GAIN, Role.SCALE, Role.WEIGHT_NORM_GAIN, Role.LEARNED_TOKEN, Role.UNKNOWN} <= adamws


def test_a_tensor_with_two_roles_is_muons_only_if_both_are() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.linear, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.head(self.linear(self.embed(ids)))
            return logits

    assert muon_tensors(weightdecay.plan(Tied())) == {"linear.weight"}


@pytest.mark.transformers
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8}),
        ("RwkvConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}),
        ("MixtralConfig", {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}),
    ],
)  # fmt: skip
def test_of_transformers_models_no_time_constant_mix_kernel_or_router_is_made_orthogonal(
    config: str, settings: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))
    plan = weightdecay.plan(model)
    mine = taken(plan)
    assert mine
    for name in mine:
        assert plan[name].role in HIDDEN_MATRICES
        assert is_matrix(plan[name].shape)
    for part in ("A_log", "conv1d", "time_", "norm", "embed", "head", "router"):
        assert not [name for name in mine if part in name], part
