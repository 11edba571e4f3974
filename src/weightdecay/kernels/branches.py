"""The two halves of a block, each as one function with its way back written out:

    x + out·attention(qkv·norm(x) + b) + b'      x + down·act(up·norm(x) + b) + b'

They are made of the same kernels as their parts. Biases and the stream are added where a kernel passes over the rows
anyway, and autograd sees two nodes a block instead of a dozen: of a small model's step, calls are the larger half.

Shapes: B batch, T time, D width of the stream, N = B·T rows, O and I a matrix's outputs and inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels import activations, attention, norms
from weightdecay.kernels.activations import GATED
from weightdecay.kernels.norms import Norm
from weightdecay.kernels.products import input_gradient, multiplied, weight_gradient
from weightdecay.kernels.scores import Heads, Scores


class Layer(NamedTuple):
    """A linear layer W·x + b.

    Attributes:
        weight: float32, which gets a gradient and whose values are not read.
        bias: float32, or none.
        rounded: the weight in the stream's precision.
    """

    weight: Tensor
    bias: Tensor | None
    rounded: Tensor


def attention_branch(x_BTD: Tensor, norm: Norm, qkv: Layer, out: Layer, heads: Heads, scores: Scores) -> Tensor:
    """The stream after a block's attention."""
    settings = (norm[2:], heads, scores, torch.is_grad_enabled())
    y_BTD: Tensor = _AttentionBranch.apply(x_BTD, *norm[:2], *qkv, *out, settings)  # type: ignore[no-untyped-call]
    return y_BTD


def feedforward_branch(x_BTD: Tensor, norm: Norm, up: Layer, down: Layer, kind: str) -> Tensor:
    """The stream after a block's feed-forward part, whose non-linearity is of `kind`."""
    settings = (norm[2:], kind, torch.is_grad_enabled())
    y_BTD: Tensor = _FeedForwardBranch.apply(x_BTD, *norm[:2], *up, *down, settings)  # type: ignore[no-untyped-call]
    return y_BTD


# In both, the inputs of `forward` that follow x are gain and shift of the norm, then weight, bias and rounded weight of
# the layer into the branch, and of the one out of it; `backward` gives their gradients in this order.


class _AttentionBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, *inputs: Any) -> Tensor:
        gain, shift, _, qkv_bias, qkv_OI, _, out_bias, out_OI, settings = inputs
        of_norm, heads, scores, keeps = settings
        x_BTD = x_BTD.contiguous()

        normed, statistics = norms.forward(x_BTD, Norm(gain, shift, *of_norm))
        qkv_BTX = multiplied(_rows(normed), qkv_OI, qkv_bias).view(*x_BTD.shape[:2], -1)
        inner, kept = attention.attended(qkv_BTX, heads, scores, keeps=keeps)
        del qkv_BTX

        ctx.save_for_backward(x_BTD, gain, shift, statistics, normed, qkv_OI, out_OI, inner, *kept)
        ctx.settings = settings
        return multiplied(_rows(inner), out_OI, out_bias, _rows(x_BTD)).view_as(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, statistics, normed, qkv_OI, out_OI, inner, *kept = ctx.saved_tensors
        of_norm, heads, scores, _ = ctx.settings
        _, _, _, of_qkv, of_qkv_bias, _, of_out, of_out_bias, _, _ = ctx.needs_input_grad
        dy_BTD = dy_BTD.contiguous()

        dout = weight_gradient(_rows(dy_BTD), _rows(inner)) if of_out else None
        dinner = input_gradient(_rows(dy_BTD), out_OI).view_as(inner)
        dqkv_BTX, dqkv_bias = attention.attended_backward(dinner, kept, heads, scores, bias=of_qkv_bias)
        del dinner
        dqkv = weight_gradient(_rows(dqkv_BTX), _rows(normed)) if of_qkv else None
        dnormed = input_gradient(_rows(dqkv_BTX), qkv_OI).view_as(x)
        norm = Norm(gain, shift, *of_norm)
        dx, dgain, dshift, dout_bias = norms.backward(dnormed, dy_BTD, x, norm, statistics, dnormed, sums=of_out_bias)
        return dx, dgain, dshift, dqkv, dqkv_bias, None, dout, dout_bias, None, None


class _FeedForwardBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, *inputs: Any) -> Tensor:
        gain, shift, _, up_bias, up_OI, _, down_bias, down_OI, settings = inputs
        of_norm, kind, keeps = settings
        x_BTD = x_BTD.contiguous()

        normed, statistics = norms.forward(x_BTD, Norm(gain, shift, *of_norm))
        h_NO = multiplied(_rows(normed), up_OI)
        slopes = h_NO if keeps else None
        inner = activations.forward(h_NO, up_bias, kind, slopes)

        ctx.save_for_backward(x_BTD, gain, shift, statistics, normed, up_OI, down_OI, inner, slopes)
        ctx.settings = settings
        return multiplied(_rows(inner), down_OI, down_bias, _rows(x_BTD)).view_as(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, statistics, normed, up_OI, down_OI, inner, slopes = ctx.saved_tensors
        of_norm, kind, _ = ctx.settings
        _, _, _, of_up, of_up_bias, _, of_down, of_down_bias, _, _ = ctx.needs_input_grad
        dy_BTD = dy_BTD.contiguous()

        ddown = weight_gradient(_rows(dy_BTD), _rows(inner)) if of_down else None
        dinner = input_gradient(_rows(dy_BTD), down_OI)
        dh_NO = dinner if kind not in GATED else torch.empty_like(slopes)
        dh_NO, dup_bias = activations.backward(dinner, slopes, dh_NO, bias=of_up_bias)
        del dinner
        dup = weight_gradient(dh_NO, _rows(normed)) if of_up else None
        dnormed = input_gradient(dh_NO, up_OI).view_as(x)
        norm = Norm(gain, shift, *of_norm)
        dx, dgain, dshift, ddown_bias = norms.backward(dnormed, dy_BTD, x, norm, statistics, dnormed, sums=of_down_bias)
        return dx, dgain, dshift, dup, dup_bias, None, ddown, ddown_bias, None, None


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
