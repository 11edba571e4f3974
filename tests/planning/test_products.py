"""A product is a product, however it is spelt and however its weight is stored; a gain is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.planning.modules import planned
from weightdecay import Role

X = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(1))
Forward = Callable[[Any, torch.Tensor], Any]

# a vector that sums the features to one number
TO_ONE: dict[str, tuple[tuple[int, ...], Forward]] = {
    "@ [d]": ((8,), lambda m, x: x @ m.w),
    "@ [d, 1]": ((8, 1), lambda m, x: x @ m.w),
    "@ [1, d].T": ((1, 8), lambda m, x: x @ m.w.T),
    "@ [d][:, None]": ((8,), lambda m, x: x @ m.w[:, None]),
    "mul and sum, [d]": ((8,), lambda m, x: (x * m.w).sum(-1)),
    "mul and sum, [1, d]": ((1, 8), lambda m, x: (x * m.w).sum(dim=-1, keepdim=True)),
    "mul and sum, [1, 1, d]": ((1, 1, 8), lambda m, x: (m.w * x).sum(2)),
    "mul and mean": ((8,), lambda m, x: (m.w * x).mean(-1)),
    "einsum": ((8,), lambda m, x: torch.einsum("bnd,d->bn", x, m.w)),
    "linear": ((8,), lambda m, x: F.linear(x, m.w[None])),
    "tensordot": ((8,), lambda m, x: torch.tensordot(x, m.w, ([2], [0]))),
    "inner": ((8,), lambda m, x: torch.inner(x, m.w)),
    "vecdot": ((8,), lambda m, x: torch.linalg.vecdot(x, m.w)),
    "mv": ((8,), lambda m, x: torch.mv(x[0], m.w)),
    "mul, cut into heads, and sum": ((8,), lambda m, x: (x * m.w).view(2, 9, 2, 4).sum(-1)),
    "mul, heads joined, and sum": ((2, 4), lambda m, x: (x.view(2, 9, 2, 4) * m.w).flatten(2).sum(-1)),
    "mul, turned, and sum": ((8,), lambda m, x: (x * m.w).transpose(1, 2).sum(1)),
    "mul, shifted, and sum": ((8,), lambda m, x: (x * m.w + 1.0).sum(-1)),
    "mul, masked, and sum": ((8,), lambda m, x: (m.layer(x) * m.w).masked_fill(x < 0, 0.0).sum(-1)),
    "addcmul and sum": ((8,), lambda m, x: torch.addcmul(torch.zeros(8), x, m.w).sum(-1)),
    "heads": ((2, 4), lambda m, x: (x.view(2, 9, 2, 4) * m.w).sum(-1)),
    "heads, einsum": ((2, 4), lambda m, x: torch.einsum("bnhd,hd->bnh", x.view(2, 9, 2, 4), m.w)),
}
# a matrix from features to features
TO_MANY: dict[str, tuple[tuple[int, ...], Forward]] = {
    "@": ((8, 5), lambda m, x: x @ m.w),
    "linear": ((5, 8), lambda m, x: F.linear(x, m.w)),
    "einsum": ((8, 5), lambda m, x: torch.einsum("bnd,de->bne", x, m.w)),
    "mul and sum": ((8, 5), lambda m, x: (x[..., None] * m.w).sum(-2)),
    "mul and sum, one column": ((8, 1), lambda m, x: (x[..., None] * m.w).sum(-2)),
    "tensordot": ((8, 5), lambda m, x: torch.tensordot(x, m.w, 1)),
    "addmm": ((8, 5), lambda m, x: torch.addmm(x.new_zeros(5), x[0], m.w)),
    "bmm": ((2, 8, 5), lambda m, x: torch.bmm(x, m.w)),
    "bilinear": ((5, 8, 8), lambda m, x: F.bilinear(x, x, m.w)),
    "multi_dot": ((8, 5), lambda m, x: torch.linalg.multi_dot([x[0], m.w])),
    "windows": ((8, 3), lambda m, x: (x.unfold(1, 3, 1) * m.w).sum(-1)),
    "after a live factor": ((8, 8), lambda m, x: x @ (m.w * torch.sigmoid(x.mean()))),
}


@pytest.mark.parametrize("spelling", TO_ONE)
def test_a_vector_that_sums_features_decays_however_the_product_is_spelt(spelling: str) -> None:
    shape, forward = TO_ONE[spelling]
    assert planned(forward, {"w": shape}, X, modules={"layer": nn.Linear(8, 8)})["w"].role is Role.LINEAR


@pytest.mark.parametrize("spelling", TO_MANY)
def test_a_matrix_decays_however_the_product_is_spelt(spelling: str) -> None:
    shape, forward = TO_MANY[spelling]
    assert planned(forward, {"w": shape}, X)["w"].decays


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 6), layers=st.integers(1, 3))
def test_what_is_stored_flat_is_a_matrix_where_it_multiplies(rows: int, columns: int, layers: int) -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        return x @ m.w.view(layers, rows, columns)[0]

    plan = planned(forward, {"w": (layers * rows * columns,)}, torch.randn(3, rows))
    assert plan["w"].decays


def _toeplitz(m: Any, x: torch.Tensor) -> Any:
    return x @ m.w[m.indices]


def _blocks(m: Any, x: torch.Tensor) -> Any:
    built = torch.zeros(8, 8)
    built[:4, :4], built[4:, 4:] = m.a, m.b
    return x @ built


def _block_diagonal(m: Any, x: torch.Tensor) -> Any:
    return x @ torch.block_diag(m.a, m.b)  # type: ignore[no-untyped-call]


def _entries(m: Any, x: torch.Tensor) -> Any:
    built = torch.zeros(8, 8)
    built[m.indices[0], m.indices[1]] = m.w
    return F.linear(x, built)


def _reflected(m: Any, x: torch.Tensor) -> Any:
    for v in m.w:
        x = x - 2 * (x @ v)[..., None] * v / (v @ v)
    return x


def _weight_normed(m: Any, x: torch.Tensor) -> Any:
    return x @ (m.g * m.v / m.v.norm(dim=0))


BUILT: dict[str, tuple[dict[str, tuple[int, ...]], Forward, dict[str, torch.Tensor]]] = {
    "Toeplitz": ({"w": (15,)}, _toeplitz, {"indices": torch.arange(8)[:, None] - torch.arange(8) + 7}),
    "blocks written in place": ({"a": (4, 4), "b": (4, 4)}, _blocks, {}),
    "block_diag": ({"a": (4, 4), "b": (4, 4)}, _block_diagonal, {}),
    "entries": ({"w": (28,)}, _entries, {"indices": torch.tril_indices(8, 8, -1)}),
    "scatter": (
        {"w": (8, 2)},
        lambda m, x: x @ torch.zeros(8, 8).scatter(1, m.indices, m.w),
        {"indices": torch.arange(16).view(8, 2) % 8},
    ),
    "rows in another order": ({"w": (8, 5)}, lambda m, x: x @ m.w[m.indices], {"indices": torch.arange(7, -1, -1)}),
    "pieces": ({"a": (8, 3), "b": (8, 2)}, lambda m, x: x @ torch.cat([m.a, m.b], 1), {}),
    "Kronecker": ({"a": (4, 4), "b": (2, 2)}, lambda m, x: x @ torch.kron(m.a, m.b), {}),
    "circulant": ({"w": (8,)}, lambda m, x: x @ torch.stack([m.w.roll(n) for n in range(8)]), {}),
    "windows of a vector": ({"w": (15,)}, lambda m, x: x @ m.w.unfold(0, 8, 1), {}),
    "strides": ({"w": (40,)}, lambda m, x: x @ m.w.as_strided((8, 5), (5, 1)), {}),
    "exponential of a matrix": ({"w": (8, 8)}, lambda m, x: x @ torch.matrix_exp(m.w - m.w.T), {}),
    "orthogonal by Cayley": (
        {"w": (8, 8)},
        lambda m, x: x @ torch.linalg.solve(m.fixed + (m.w - m.w.T), m.fixed - (m.w - m.w.T)),
        {"fixed": torch.eye(8)},
    ),
    "reflections": ({"w": (3, 8)}, _reflected, {}),
    "products element by element": (
        {"a": (8, 2), "b": (2, 5), "c": (8, 2), "d": (2, 5)},
        lambda m, x: x @ ((m.a @ m.b) * (m.c @ m.d)),
        {},
    ),
    "tensor train": (
        {"a": (2, 4, 3), "b": (3, 4, 2)},
        lambda m, x: torch.einsum("bnij,ikr,rjl->bnkl", x.view(2, 9, 2, 4), m.a, m.b),
        {},
    ),
    "rounded, with gradients straight through": (
        {"w": (8, 5)},
        lambda m, x: x @ (m.w + (m.w.sign() - m.w).detach()),
        {},
    ),
    "low rank": ({"a": (8, 2), "b": (2, 8)}, lambda m, x: x @ (m.a @ m.b), {}),
    "triangular": ({"a": (8, 8)}, lambda m, x: x @ torch.tril(m.a, -1), {}),
    "sum with a fixed matrix": ({"a": (8, 8)}, lambda m, x: x @ (m.a + m.fixed), {"fixed": torch.eye(8)}),
    "spectrum of a kernel": (
        {"w": (5, 8, 2)},
        lambda m, x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(m.w), n=9, dim=1),
        {},
    ),
    "a kernel that is made a spectrum": (
        {"w": (8,)},
        lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(m.w), n=8),
        {},
    ),
}


@pytest.mark.parametrize("how", BUILT)
def test_what_a_matrix_is_built_of_decays_whatever_shape_its_pieces_have(how: str) -> None:
    shapes, forward, buffers = BUILT[how]
    plan = planned(forward, shapes, X, buffers=buffers)
    assert [tensor.name for tensor in plan if not tensor.decays] == []


NOT_PRODUCTS: dict[str, tuple[tuple[int, ...], Forward]] = {
    "gain, then pooled over positions": ((8,), lambda m, x: (F.layer_norm(x, (8,)) * m.w).sum(1)),
    "gain, then a loss": ((8,), lambda m, x: (F.layer_norm(x, (8,)) * m.w).sum()),
    "gain, then a mean of squares": ((8,), lambda m, x: (F.layer_norm(x, (8,)) * m.w).pow(2).mean()),
    "softmax over layers": (
        (3,),
        lambda m, x: (m.w.softmax(0)[:, None, None, None] * torch.stack([x, -x, x.tanh()])).sum(0),
    ),
    "scale of a fixed matrix": ((8, 1), lambda m, x: x @ (m.w * torch.ones(8, 5))),
    "diagonal": ((8,), lambda m, x: x @ torch.diag(F.softplus(m.w))),
    "one number per feature": ((8,), lambda m, x: x * m.w),
    "gain of a norm before another, which takes its mean": ((8,), lambda m, x: _centred(_normed(x) * m.w)),
    "the same with a shift": ((8,), lambda m, x: _centred(_normed(x) * m.w + 0.1)),
    "gain whose result is folded as well as multiplied": (
        (8,),
        lambda m, x: (lambda y: (y.view(2, 9, 4, 2).sum(-1), y @ y.mT))(_normed(x) * m.w),
    ),
    "gain by addcmul": ((8,), lambda m, x: torch.addcmul(torch.zeros(8), _normed(x), m.w).relu()),
}


def _normed(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5)


def _centred(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)).relu()


@pytest.mark.parametrize("how", NOT_PRODUCTS)
def test_a_scale_is_no_matrix_whatever_is_summed_later(how: str) -> None:
    shape, forward = NOT_PRODUCTS[how]
    assert not planned(forward, {"w": shape}, X)["w"].decays


def test_the_scale_of_a_weight_is_told_from_the_weight() -> None:
    plan = planned(_weight_normed, {"g": (5,), "v": (8, 5)}, X)
    assert plan["v"].decays
    assert not plan["g"].decays


@pytest.mark.parametrize("gate", [torch.sigmoid, torch.tanh, lambda m: m.softmax(-1), lambda m: F.hardtanh(m, 0, 1)])
def test_the_mask_of_a_weight_is_told_from_the_weight(gate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    plan = planned(lambda m, x: x @ (m.w * gate(m.s)), {"w": (8, 5), "s": (8, 5)}, X)
    assert plan["w"].decays
    assert not plan["s"].decays
