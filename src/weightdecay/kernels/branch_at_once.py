"""The halves of a block in one call each, where all their products are small.

The functions are those of `branch_by_parts`, by the same kernels in the same order (`source/branch_at_once.c`): of a
small model's step, to reach a kernel costs as much as what it does.

Shapes: B batch, T time, D width of the stream, N = B·T rows, X what comes of the first layer, O and I a matrix's
outputs and inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.kernels.activations import GATED
from weightdecay.kernels.library import address, call, numbers
from weightdecay.kernels.norms import Norm
from weightdecay.kernels.products import are_small
from weightdecay.kernels.scores import Heads, Scores

Kept = Sequence[Any]
Gradients = tuple[Tensor | None, ...]


def suits(x_BTD: Tensor, norm: Norm, *weights: Tensor) -> bool:
    """Whether a branch with this norm and these rounded weights can go in one call; a profile is to see its parts."""
    if torch.autograd.profiler._is_profiler_enabled or not are_small(x_BTD.shape[0] * x_BTD.shape[1], *weights):
        return False
    return all(of is None or of.dtype == torch.float32 for of in norm[:2])


def attention(
    x_BTD: Tensor, norm: Norm, qkv_OI: Tensor, qkv_bias: Tensor | None, out_OI: Tensor, out_bias: Tensor | None,
    heads: Heads, scores: Scores, *, keeps: bool,  # noqa: ARG001
) -> tuple[Tensor, Kept]:  # fmt: skip
    """x + out·attention(qkv·norm(x) + b) + b'."""
    batch, time, _ = x_BTD.shape
    (features, _), (_, inputs) = qkv_OI.shape, out_OI.shape
    y_BTD, normed, statistics_2N = torch.empty_like(x_BTD), torch.empty_like(x_BTD), torch.empty(2, batch * time)
    qkv_BTX, inner = x_BTD.new_empty(batch, time, features), x_BTD.new_empty(batch, time, inputs)
    logsums_BHT = torch.empty(batch, heads.queries, time)
    call(
        "attention_branch", x_BTD, norm.gain, norm.bias, norm.offset, norm.eps, qkv_OI, qkv_bias,
        *_of_heads(heads, scores), out_OI, out_bias, normed, statistics_2N, qkv_BTX, logsums_BHT, inner, y_BTD,
        _attention_sizes(x_BTD, norm, features, heads, scores),
    )  # fmt: skip
    return y_BTD, [statistics_2N, normed, inner, qkv_BTX, logsums_BHT]


def attention_backward(
    dy_BTD: Tensor, x_BTD: Tensor, norm: Norm, qkv_OI: Tensor, out_OI: Tensor, kept: Kept, wanted: Sequence[bool],
    heads: Heads, scores: Scores,
) -> Gradients:  # fmt: skip
    statistics_2N, normed, inner, qkv_BTX, logsums_BHT = kept
    gradients = (torch.empty_like(x_BTD), *_room(wanted, qkv_OI, out_OI))
    call(
        "attention_branch_backward", dy_BTD, x_BTD, norm.gain, norm.offset, statistics_2N, normed, qkv_BTX, logsums_BHT,
        inner, qkv_OI, out_OI, *_of_heads(heads, scores), *gradients,
        _attention_sizes(x_BTD, norm, len(qkv_OI), heads, scores),
    )  # fmt: skip
    return gradients


def feedforward(
    x_BTD: Tensor, norm: Norm, up_OI: Tensor, up_bias: Tensor | None, down_OI: Tensor, down_bias: Tensor | None,
    kind: str, *, keeps: bool,
) -> tuple[Tensor, Kept]:  # fmt: skip
    """x + down·act(up·norm(x) + b) + b'."""
    rows = x_BTD.shape[0] * x_BTD.shape[1]
    y_BTD, normed, statistics_2N = torch.empty_like(x_BTD), torch.empty_like(x_BTD), torch.empty(2, rows)
    h_NO, inner = x_BTD.new_empty(rows, len(up_OI)), x_BTD.new_empty(rows, down_OI.shape[1])
    slopes = h_NO if keeps else None
    call(
        "feedforward_branch", x_BTD, norm.gain, norm.bias, norm.offset, norm.eps, up_OI, up_bias, address(kind),
        down_OI, down_bias, normed, statistics_2N, h_NO, slopes, inner, y_BTD,
        _feedforward_sizes(inner, norm, kind, up_OI),
    )  # fmt: skip
    return y_BTD, [statistics_2N, normed, inner, slopes]


def feedforward_backward(
    dy_BTD: Tensor, x_BTD: Tensor, norm: Norm, up_OI: Tensor, down_OI: Tensor, kept: Kept, wanted: Sequence[bool],
    kind: str,
) -> Gradients:  # fmt: skip
    statistics_2N, normed, inner, slopes = kept
    gradients = (torch.empty_like(x_BTD), *_room(wanted, up_OI, down_OI))
    call(
        "feedforward_branch_backward", dy_BTD, x_BTD, norm.gain, norm.offset, statistics_2N, normed, slopes, inner,
        up_OI, down_OI, *gradients, _feedforward_sizes(inner, norm, kind, up_OI),
    )  # fmt: skip
    return gradients


def _room(wanted: Sequence[bool], in_OI: Tensor, out_OI: Tensor) -> list[Tensor | None]:
    """For the gradients of gain and shift, and of weight and bias of both layers."""
    width, features, inputs = len(out_OI), len(in_OI), out_OI.shape[1]
    shapes = ((width,), (width,), (features, width), (features,), (width, inputs), (width,))
    return [torch.empty(shape) if needed else None for shape, needed in zip(shapes, wanted, strict=True)]


def _of_heads(heads: Heads, scores: Scores) -> tuple[Any, ...]:
    """What scores and heads bring along beside sizes."""
    slopes_H = torch.tensor(scores.slopes) if scores.slopes else None
    return heads.cosines, heads.sines, slopes_H, scores.scale, scores.softcap


def _attention_sizes(x_BTD: Tensor, norm: Norm, features: int, heads: Heads, scores: Scores) -> Any:
    head = features // (heads.queries + 2 * heads.keys)
    return numbers(*x_BTD.shape, norm.centred, heads.queries, heads.keys, head, heads.turns()[2], scores.window)


def _feedforward_sizes(inner_NI: Tensor, norm: Norm, kind: str, up_OI: Tensor) -> Any:
    rows, hidden = inner_NI.shape
    return numbers(rows, up_OI.shape[1], norm.centred, hidden, 2 if kind in GATED else 1)
