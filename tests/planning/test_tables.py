"""Positions, centres, knots, codebooks, modulations and learned inputs are told apart by what they meet and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.planning.modules import planned
from weightdecay import Role

X = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(1))
Forward = Callable[[Any, torch.Tensor], Any]


def modules() -> dict[str, nn.Module]:
    return {"layer": nn.Linear(8, 8)}


POSITIONS: dict[str, tuple[tuple[int, ...], Forward]] = {
    "sliced": ((16, 8), lambda m, x: m.layer(x) + m.t[: x.shape[1]]),
    "indexed": ((16, 8), lambda m, x: m.layer(x) + m.t[torch.arange(x.shape[1])]),
    "looked up": ((16, 8), lambda m, x: m.layer(x) + F.embedding(torch.arange(x.shape[1]), m.t)),
    "gathered": ((16, 8), lambda m, x: m.layer(x) + torch.index_select(m.t, 0, torch.arange(x.shape[1]))),
    "on the input itself": ((1, 9, 8), lambda m, x: m.layer(x + m.t)),
    "stored flat": ((72,), lambda m, x: m.layer(x) + m.t.view(9, 8)),
    "rows of a grid": ((3, 1, 8), lambda m, x: m.layer(x).view(2, 3, 3, 8) + m.t),
    "columns of a grid": ((1, 3, 8), lambda m, x: m.layer(x).view(2, 3, 3, 8) + m.t),
    "by ids": ((3, 8), lambda m, x: m.layer(x) + m.t[(x[..., 0] > 0).long()]),
}
# one a head, for queries: in both orders of heads and positions
HEAD_BIASES: dict[str, tuple[dict[str, tuple[int, ...]], Forward]] = {
    "heads last": ({"t": (2, 4)}, lambda m, x: m.layer(x).view(2, 9, 2, 4) + m.t),
    "heads first": ({"t": (2, 1, 4)}, lambda m, x: m.layer(x).view(2, 9, 2, 4).transpose(1, 2) + m.t),
    "of stacked matrices": (
        {"t": (2, 1, 8), "stack": (2, 8, 8)},
        lambda m, x: torch.einsum("bnd,hde->bhne", x, m.stack) + m.t,
    ),
}
CENTRES: dict[str, tuple[tuple[int, ...], Forward]] = {
    "squared distance": ((7, 8), lambda m, x: torch.exp(-((x[..., None, :] - m.t) ** 2).sum(-1))),
    "the other way round": ((7, 8), lambda m, x: torch.exp(-((m.t - x.unsqueeze(-2)) ** 2).sum(-1))),
    "cdist": ((7, 8), lambda m, x: torch.exp(-torch.cdist(x, m.t[None].expand(2, -1, -1)))),
    "mixture": ((1, 1, 8, 5), lambda m, x: torch.exp(-((x[..., None] - m.t) ** 2)).sum(-1)),
}
CODEBOOKS: dict[str, Forward] = {
    "products, then looked up": lambda m, x: F.embedding((-2 * x @ m.t.T + (m.t**2).sum(-1)).argmin(-1), m.t),
    "differences, then indexed": lambda m, x: m.t[((x[..., None, :] - m.t) ** 2).sum(-1).argmin(-1)],
    "cdist, then one-hot": lambda m, x: (
        F.one_hot(torch.cdist(x, m.t[None].expand(2, -1, -1)).argmin(-1), 20).float() @ m.t
    ),
}


def _knots(m: Any, x: torch.Tensor) -> Any:
    places = F.softmax(m.t, -1).cumsum(-1)[0]
    number = torch.searchsorted(places, x.sigmoid()).clamp(max=5)
    return x - places.gather(0, number.flatten()).view_as(x)


def _modulated(m: Any, pieces: Callable[[torch.Tensor], Any], x: torch.Tensor, rows: int) -> Any:
    scale, shift = pieces(m.t.view(rows, 8) + m.layer(x.mean(1))[:, None])[:2]
    return F.layer_norm(x, (8,)) * (1 + scale.view(2, 1, 8)) + shift.view(2, 1, 8)


MODULATIONS: dict[str, tuple[tuple[int, ...], Forward]] = {
    "chunk": ((6, 8), lambda m, x: _modulated(m, lambda t: t.chunk(6, 1), x, 6)),
    "unbind": ((2, 8), lambda m, x: _modulated(m, lambda t: t.unbind(1), x, 2)),
    "select": ((3, 8), lambda m, x: _modulated(m, lambda t: (t[:, 0], t[:, 1]), x, 3)),
    "flat": ((16,), lambda m, x: _modulated(m, lambda t: t.unbind(1), x, 2)),
}


@pytest.mark.parametrize("how", POSITIONS)
def test_a_table_that_lies_along_the_sequence_is_positions(how: str) -> None:
    shape, forward = POSITIONS[how]
    assert planned(forward, {"t": shape}, X, modules=modules())["t"].role is Role.POSITION_EMBEDDING


@pytest.mark.parametrize("how", HEAD_BIASES)
def test_a_table_that_varies_along_nothing_but_what_a_layer_gave_is_a_bias(how: str) -> None:
    shapes, forward = HEAD_BIASES[how]
    assert planned(forward, shapes, X, modules=modules())["t"].role is Role.BIAS


@pytest.mark.parametrize("how", CENTRES)
def test_a_table_from_which_all_of_the_input_is_measured_is_centres(how: str) -> None:
    shape, forward = CENTRES[how]
    assert not planned(forward, {"t": shape}, X)["t"].decays


@pytest.mark.parametrize("how", CODEBOOKS)
def test_a_table_that_is_measured_and_then_looked_up_is_a_codebook(how: str) -> None:
    assert planned(CODEBOOKS[how], {"t": (20, 8)}, X)["t"].decays


def test_the_knots_of_a_spline_are_no_positions() -> None:
    assert not planned(_knots, {"t": (8, 6)}, X)["t"].decays


@pytest.mark.parametrize("how", MODULATIONS)
def test_a_table_whose_pieces_scale_and_shift_is_a_modulation(how: str) -> None:
    shape, forward = MODULATIONS[how]
    assert not planned(forward, {"t": shape}, X, modules=modules())["t"].decays


def test_biases_that_a_router_chooses_are_biases() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        return m.layer(x) + m.t[m.layer(x).argmax(-1)]

    assert not planned(forward, {"t": (8, 8)}, X, modules=modules())["t"].decays


QUERIES: dict[str, tuple[tuple[int, ...], Forward]] = {
    "of a two-dimensional product": ((4, 8), lambda m, x: (m.t @ x.transpose(1, 2)).softmax(-1) @ x),
    "of a batched product": ((2, 4, 8), lambda m, x: torch.bmm(m.t, x.transpose(1, 2)).softmax(-1) @ x),
    "expanded and scaled": (
        (4, 8),
        lambda m, x: (m.t.expand(2, -1, -1) @ m.layer(x).transpose(1, 2) / 8**0.5).softmax(-1) @ x,
    ),
    "spelt by einsum": ((4, 8), lambda m, x: torch.einsum("qd,btd->bqt", m.t, x).softmax(-1) @ x),
    "under a mask": (
        (4, 8),
        lambda m, x: (m.t @ x.mT).masked_fill(x.mean(-1)[:, None] < 0, -9.0).softmax(-1) @ x,
    ),
    "of torch's attention": ((4, 8), lambda m, x: F.scaled_dot_product_attention(m.t.expand(2, -1, -1), x, x)),
}


@pytest.mark.parametrize("how", QUERIES)
def test_what_attention_weighs_the_input_by_is_a_learned_query(how: str) -> None:
    shape, forward = QUERIES[how]
    assert planned(forward, {"t": shape}, X, modules=modules())["t"].role is Role.LEARNED_TOKEN


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (x @ m.t.T).softmax(-1),
        lambda m, x: (x @ m.t.T).softmax(1).transpose(1, 2) @ x,
        lambda m, x: (m.t @ x.transpose(1, 2)).softmax(1),
        lambda m, x: F.linear(x, m.t).relu(),
    ],
)
def test_what_scores_features_by_a_softmax_is_a_matrix(forward: Forward) -> None:
    assert planned(forward, {"t": (4, 8)}, X)["t"].decays


@pytest.mark.parametrize("of", ["the input", "a learned token"])
def test_what_mixes_the_scores_of_several_heads_is_a_matrix(of: str) -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        keys = m.layer(x).view(2, 9, 4, 2).transpose(1, 2)
        queries = keys if of == "the input" else m.layer(m.token).view(1, 1, 4, 2).expand(2, -1, -1, -1).transpose(1, 2)
        scores = torch.einsum("bhid,bhjd->bhij", queries, keys) * 0.7
        return torch.einsum("bhij,hg->bgij", scores, m.t).softmax(-1) @ keys

    plan = planned(forward, {"t": (4, 4), "token": (8,)}, X, modules=modules())
    assert plan["t"].decays
    assert not plan["token"].decays


def test_the_matrix_that_makes_queries_of_learned_tokens_is_a_matrix() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        return ((m.p @ m.w) @ m.layer(x).mT).softmax(-1) @ x

    plan = planned(forward, {"p": (4, 8), "w": (8, 8)}, X, modules=modules())
    assert plan["w"].decays
    assert not plan["p"].decays


def test_a_linear_layer_that_scores_positions_stays_one() -> None:
    plan = planned(lambda m, x: m.score(x).transpose(1, 2).softmax(-1) @ x, {}, X, modules={"score": nn.Linear(8, 4)})
    assert plan["score.weight"].role is Role.LINEAR
    assert not plan["score.weight"].contested


def test_prompts_stay_prompts_when_the_query_that_they_meet_was_rotated() -> None:
    def rotated(x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[1])[:, None] * torch.arange(4) * 0.1
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    def forward(m: Any, x: torch.Tensor) -> Any:
        return rotated(m.layer(x)) @ m.key(m.p).T

    plan = planned(forward, {"p": (5, 8)}, X, modules={**modules(), "key": nn.Linear(8, 8, bias=False)})
    assert not plan["p"].decays
    assert plan["key.weight"].decays


def test_prompts_that_layers_make_into_keys_and_values_stay_prompts() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        keys, values = (layer(m.p).expand(2, -1, -1) for layer in (m.key, m.layer))
        return F.scaled_dot_product_attention(m.layer(x), keys, values)

    plan = planned(forward, {"p": (5, 8)}, X, modules={**modules(), "key": nn.Linear(8, 8)})
    assert plan["p"].role is Role.LEARNED_TOKEN
    assert plan["key.weight"].decays


def test_a_codebook_that_is_joined_with_an_activation_is_what_its_sister_is() -> None:
    class Book(nn.Module):
        def __init__(self, implicit: bool) -> None:
            super().__init__()
            self.embed = nn.Parameter(torch.randn(96, 8))
            self.mix = nn.Linear(16, 8) if implicit else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            book = self.embed.expand(x.shape[0], -1, -1)
            if self.mix is not None:
                book = self.mix(torch.cat((book, x[:, :1].expand(-1, 96, -1)), -1))
            index = torch.cdist(x, book).argmin(-1)
            return torch.gather(book, 1, index[..., None].expand(-1, -1, 8))

    def forward(m: Any, x: torch.Tensor) -> Any:
        return m.second(m.first(x)) + x

    plan = planned(forward, {}, X, modules={"first": Book(False), "second": Book(True)})
    assert plan["first.embed"].role is plan["second.embed"].role is Role.EMBEDDING
