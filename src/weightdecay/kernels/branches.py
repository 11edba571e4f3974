"""The two halves of a block, each as one function with its way back written out:

    x + out·attention(qkv·norm(x) + b) + b'      x + down·act(up·norm(x) + b) + b'

They are made of the same kernels as their parts. Biases and the stream are added where a kernel passes over the rows
anyway, and autograd sees two nodes a block instead of a dozen: of a small model's step, calls are the larger half. So a
small branch goes `branch_at_once`, in one call, and others `branch_by_parts`: the same numbers.

Shapes: B batch, T time, D width of the stream, N = B·T rows, O and I a matrix's outputs and inputs.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels import branch_at_once, branch_by_parts
from weightdecay.kernels.norms import Norm
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
    return _applied("attention", x_BTD, norm, qkv, out, heads, scores)


def feedforward_branch(x_BTD: Tensor, norm: Norm, up: Layer, down: Layer, kind: str) -> Tensor:
    """The stream after a block's feed-forward part, whose non-linearity is of `kind`."""
    return _applied("feedforward", x_BTD, norm, up, down, kind)


def _applied(name: str, x_BTD: Tensor, norm: Norm, into: Layer, out: Layer, *how: Any) -> Tensor:
    settings = (name, norm[2:], how, torch.is_grad_enabled())
    y_BTD: Tensor = _Branch.apply(x_BTD, *norm[:2], *into, *out, settings)  # type: ignore[no-untyped-call]
    return y_BTD


class _Branch(torch.autograd.Function):
    """A branch whose name both ways of computing it have a function for, and one back."""

    # The inputs that follow x are gain and shift of the norm, then weight, bias and rounded weight of the layer into
    # the branch, and of the one out of it; `backward` gives their gradients in this order.

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, *inputs: Any) -> Tensor:
        gain, shift, _, bias_in, in_OI, _, bias_out, out_OI, settings = inputs
        name, of_norm, how, keeps = settings
        x_BTD, norm = x_BTD.contiguous(), Norm(gain, shift, *of_norm)

        branch = getattr(_way(x_BTD, norm, in_OI, out_OI), name)
        y_BTD: Tensor
        y_BTD, kept = branch(x_BTD, norm, in_OI, bias_in, out_OI, bias_out, *how, keeps=keeps)

        ctx.save_for_backward(x_BTD, gain, shift, in_OI, out_OI, *kept)
        ctx.settings = settings
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, gain, shift, in_OI, out_OI, *kept = ctx.saved_tensors
        name, of_norm, how, _ = ctx.settings
        norm = Norm(gain, shift, *of_norm)
        _, of_gain, of_shift, of_in, of_bias_in, _, of_out, of_bias_out, _, _ = ctx.needs_input_grad
        wanted = (of_gain, of_shift, of_in, of_bias_in, of_out, of_bias_out)

        back = getattr(_way(x_BTD, norm, in_OI, out_OI), f"{name}_backward")
        gradients = back(dy_BTD.contiguous(), x_BTD, norm, in_OI, out_OI, kept, wanted, *how)

        dx, dgain, dshift, din, dbias_in, dout, dbias_out = gradients
        return dx, dgain, dshift, din, dbias_in, None, dout, dbias_out, None, None


def _way(x_BTD: Tensor, norm: Norm, *weights: Tensor) -> ModuleType:
    return branch_at_once if branch_at_once.suits(x_BTD, norm, *weights) else branch_by_parts
