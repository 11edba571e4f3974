"""Where the norm of a gain stands is seen in the forward: what it normalises, and what its result goes into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weightdecay
from tests.planning.test_plan import RootMeanSquare
from weightdecay.planning.roles.roles import NormPlace

DIM, HEADS = 32, 4


def _rotated(x: torch.Tensor) -> torch.Tensor:
    angles = torch.arange(x.shape[2])[:, None] * torch.arange(x.shape[-1] // 2) * 0.1
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Block(nn.Module):
    """Attention and a feed-forward layer with every norm that a block can have; `norm` makes each of them."""

    def __init__(self, norm: Any, rotary: bool, bias: bool) -> None:
        super().__init__()
        self.before_attention, self.after_attention = norm(DIM), norm(DIM)
        self.before_mlp, self.after_mlp = norm(DIM), norm(DIM)
        self.q_gain, self.k_gain = norm(DIM // HEADS), norm(DIM // HEADS)
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM, bias=bias) for _ in range(4))
        self.up, self.down = nn.Linear(DIM, 2 * DIM, bias=bias), nn.Linear(2 * DIM, DIM, bias=bias)
        self.rotary = rotary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        h = self.before_attention(x)
        q, k, v = (layer(h).view(batch, length, HEADS, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.q_gain(q), self.k_gain(k)
        if self.rotary:
            q, k = _rotated(q), _rotated(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.after_attention(self.o(mixed))
        out: torch.Tensor = x + self.after_mlp(self.down(F.silu(self.up(self.before_mlp(x)))))
        return out


class Model(nn.Module):
    def __init__(self, norm: Any = RootMeanSquare, rotary: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, DIM)
        self.blocks = nn.ModuleList(Block(norm, rotary, bias) for _ in range(2))
        self.last, self.head = norm(DIM), nn.Linear(DIM, 50, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(self.last(x))
        return out


PLACES = {
    "before_attention": NormPlace.INPUT,
    "before_mlp": NormPlace.INPUT,
    "after_attention": NormPlace.OUTPUT,
    "after_mlp": NormPlace.OUTPUT,
    "q_gain": NormPlace.QUERY_KEY,
    "k_gain": NormPlace.QUERY_KEY,
}


class ShiftedGain(nn.Module):
    """`(1 + w)`, as gemma stores it, with the gain on the other side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (out * (1.0 + self.weight)).type_as(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("norm", [RootMeanSquare, ShiftedGain, nn.RMSNorm, nn.LayerNorm])
def test_each_norm_of_a_block_is_told_by_its_place(norm: Any, rotary: bool, bias: bool) -> None:
    plan = weightdecay.plan(Model(norm, rotary, bias))
    found = {tensor.name: tensor.norm for tensor in plan if tensor.norm is not None}
    expected = {f"blocks.{i}.{name}.weight": place for i in (0, 1) for name, place in PLACES.items()}
    assert found == {**expected, "last.weight": NormPlace.FINAL}


def test_a_norm_on_the_stream_feeds_the_layer_and_the_sum_alike() -> None:
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    plan = weightdecay.plan(layer, batch=torch.randn(2, 5, 16))
    assert plan["layers.0.norm1.weight"].norm is NormPlace.STREAM


def test_group_and_batch_norms_are_told_by_what_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    plan = weightdecay.plan(model)
    assert plan["1.weight"].norm is NormPlace.GROUP
    assert plan["4.weight"].norm is NormPlace.BATCH
