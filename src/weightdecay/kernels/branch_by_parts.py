"""The halves of a block, kernel by kernel, and torch's products where these are faster. See `branches`.

Each function gives the stream after the branch and what its way back wants; that one, the gradients of x, of the norm's
gain and shift, and of weight and bias of the layers into the branch and out of it: those that are wanted.

Shapes: B batch, T time, D width of the stream, X what comes of the first layer, O and I a matrix's outputs and inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.kernels import activations, norms
from weightdecay.kernels import attention as heads_attention
from weightdecay.kernels.activations import GATED
from weightdecay.kernels.norms import Norm
from weightdecay.kernels.products import input_gradient, multiplied, weight_gradient
from weightdecay.kernels.scores import Heads, Scores

Kept = Sequence[Any]
Gradients = tuple[Tensor | None, ...]


def attention(
    x_BTD: Tensor, norm: Norm, qkv_OI: Tensor, qkv_bias: Tensor | None, out_OI: Tensor, out_bias: Tensor | None,
    heads: Heads, scores: Scores, *, keeps: bool,
) -> tuple[Tensor, Kept]:  # fmt: skip
    """x + out·attention(qkv·norm(x) + b) + b'."""
    normed, statistics = norms.forward(x_BTD, norm)
    qkv_BTX = multiplied(_rows(normed), qkv_OI, qkv_bias).view(*x_BTD.shape[:2], -1)
    inner, kept = heads_attention.attended(qkv_BTX, heads, scores, keeps=keeps)
    y_BTD = multiplied(_rows(inner), out_OI, out_bias, _rows(x_BTD)).view_as(x_BTD)
    return y_BTD, [statistics, normed, inner, *kept]


def attention_backward(
    dy_BTD: Tensor, x_BTD: Tensor, norm: Norm, qkv_OI: Tensor, out_OI: Tensor, kept: Kept, wanted: Sequence[bool],
    heads: Heads, scores: Scores,
) -> Gradients:  # fmt: skip
    statistics, normed, inner, *of_heads = kept
    _, _, of_qkv, of_qkv_bias, of_out, of_out_bias = wanted

    dout = weight_gradient(_rows(dy_BTD), _rows(inner)) if of_out else None
    dinner = input_gradient(_rows(dy_BTD), out_OI).view_as(inner)
    dqkv_BTX, dqkv_bias = heads_attention.attended_backward(dinner, of_heads, heads, scores, bias=of_qkv_bias)
    del dinner
    dqkv = weight_gradient(_rows(dqkv_BTX), _rows(normed)) if of_qkv else None
    dnormed = input_gradient(_rows(dqkv_BTX), qkv_OI).view_as(x_BTD)
    dx, dgain, dshift, dout_bias = norms.backward(dnormed, dy_BTD, x_BTD, norm, statistics, dnormed, sums=of_out_bias)
    return dx, dgain, dshift, dqkv, dqkv_bias, dout, dout_bias


def feedforward(
    x_BTD: Tensor, norm: Norm, up_OI: Tensor, up_bias: Tensor | None, down_OI: Tensor, down_bias: Tensor | None,
    kind: str, *, keeps: bool,
) -> tuple[Tensor, Kept]:  # fmt: skip
    """x + down·act(up·norm(x) + b) + b'."""
    normed, statistics = norms.forward(x_BTD, norm)
    h_NO = multiplied(_rows(normed), up_OI)
    slopes = h_NO if keeps else None
    inner = activations.forward(h_NO, up_bias, kind, slopes)
    y_BTD = multiplied(_rows(inner), down_OI, down_bias, _rows(x_BTD)).view_as(x_BTD)
    return y_BTD, [statistics, normed, inner, slopes]


def feedforward_backward(
    dy_BTD: Tensor, x_BTD: Tensor, norm: Norm, up_OI: Tensor, down_OI: Tensor, kept: Kept, wanted: Sequence[bool],
    kind: str,
) -> Gradients:  # fmt: skip
    statistics, normed, inner, slopes = kept
    _, _, of_up, of_up_bias, of_down, of_down_bias = wanted

    ddown = weight_gradient(_rows(dy_BTD), _rows(inner)) if of_down else None
    dinner = input_gradient(_rows(dy_BTD), down_OI)
    dh_NO = dinner if kind not in GATED else torch.empty_like(slopes)
    dh_NO, dup_bias = activations.backward(dinner, slopes, dh_NO, bias=of_up_bias)
    del dinner
    dup = weight_gradient(dh_NO, _rows(normed)) if of_up else None
    dnormed = input_gradient(dh_NO, up_OI).view_as(x_BTD)
    dx, dgain, dshift, ddown_bias = norms.backward(dnormed, dy_BTD, x_BTD, norm, statistics, dnormed, sums=of_down_bias)
    return dx, dgain, dshift, dup, dup_bias, ddown, ddown_bias


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
