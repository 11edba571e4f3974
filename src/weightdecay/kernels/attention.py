"""Causal attention in blocks of queries, each with the keys that some of its queries see.

    S = scale·Q·Kᵀ  [capped, less ALiBi's slope·distance]      P = softmax(S)      Y = P·V

Of a long sequence only the weights' normaliser is kept, and the backward pass forms them once more:

    dP = dY·Vᵀ      dS = P·(dP − Σ P·dP)      dQ = scale·dS·K      dK = scale·dSᵀ·Q      dV = Pᵀ·dY

Shapes: B batch, T time, H query heads, K key and value heads, E head_dim, N = B·H.

Reference: Dao et al. 2022, arXiv:2205.14135, whose normaliser and backward pass these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels import causal
from weightdecay.kernels.library import call, has_tiles, sums_over_rows
from weightdecay.kernels.norms import column_sums
from weightdecay.kernels.scores import Heads, Scores

# Queries in a block: more of them compute more that is masked, fewer make products too small.
BLOCK = 256

# Scores that are worked on at once, where several sequences have fewer: they stay in the cache between passes.
_SCORES = 1 << 21

# Up to so many times a head's width, a sequence's attention weights are kept for the backward pass rather than formed
# anew: they are then no more than what a block keeps besides.
_KEPT = 16


@dataclass(frozen=True)
class _Block:
    """Queries [first, end) of some sequences, and the keys [begin, end) that the first one sees or a later one."""

    sequences: slice
    first: int
    end: int
    begin: int

    def of(self, x: Tensor) -> Tensor:
        """The sequences' part of what has a row for each, whatever axes follow."""
        return x[self.sequences] if len(x) > self.sequences.stop - self.sequences.start else x

    def queries(self, x_BHTE: Tensor) -> Tensor:
        """The queries' part, [N, queries, E]."""
        x_NTE = self.of(x_BHTE).flatten(0, 1)
        return x_NTE[:, self.first : self.end] if self.end - self.first < x_NTE.shape[1] else x_NTE

    def keys(self, x_BHTE: Tensor) -> Tensor:
        """The keys' part, [N, keys, E]."""
        x_NTE = self.of(x_BHTE).flatten(0, 1)
        return x_NTE[:, self.begin : self.end] if self.end - self.begin < x_NTE.shape[1] else x_NTE


def _blocks(batch: int, heads: int, time: int, window: int) -> Iterator[_Block]:
    for first in range(0, time, BLOCK):
        end = min(first + BLOCK, time)
        begin = max(0, first - window + 1) if window else 0
        together = max(1, _SCORES // (heads * (end - first) * (end - begin)))
        for sequence in range(0, batch, together):
            yield _Block(slice(sequence, sequence + together), first, end, begin)


def split_heads(
    qkv_BTX: Tensor, heads: int, kv_heads: int, cos_TR: Tensor | None, sin_TR: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, T, E] of [B, T, (H + 2·K)·E]; keys and values repeated for their query heads.

    Args:
        cos_TR, sin_TR: of the angles by which the first R features of queries and keys turn; None turns nothing.
    """
    q, k, v = _SplitHeads.apply(qkv_BTX, heads, kv_heads, cos_TR, sin_TR)  # type: ignore[no-untyped-call]
    return q, k, v


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_BTX: Tensor, heads: int, kv_heads: int, cos_TR: Tensor | None, sin_TR: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.heads = Heads(heads, kv_heads, cos_TR, sin_TR)
        return apart(qkv_BTX.contiguous(), ctx.heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        dqkv_BTX, _ = together(dq.contiguous(), dk.contiguous(), dv.contiguous(), ctx.heads, bias=False)
        return dqkv_BTX, None, None, None, None


def apart(qkv_BTX: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """`split_heads` of projections."""
    batch, time, features = qkv_BTX.shape
    width = features // (heads.queries + 2 * heads.keys)
    q, k, v = (qkv_BTX.new_empty(batch, heads.queries, time, width) for _ in range(3))
    call("split_heads", qkv_BTX, *heads.turns(), q, k, v, batch, time, heads.queries, heads.keys, width)
    return q, k, v


def together(dq: Tensor, dk: Tensor, dv: Tensor, heads: Heads, *, bias: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of what `apart` was given: the projections and, where it is wanted, the bias."""
    batch, _, time, width = dq.shape
    dqkv_BTX = dq.new_empty(batch, time, (heads.queries + 2 * heads.keys) * width)
    sums = sums_over_rows(dqkv_BTX.shape[2]) if bias else None
    call(
        "split_heads_backward", dq, dk, dv, *heads.turns(), dqkv_BTX, sums,
        batch, time, heads.queries, heads.keys, width,
    )  # fmt: skip
    return dqkv_BTX, sums[0] if sums is not None else None


def attention(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, scores: Scores) -> Tensor:
    """Each position attends to itself and what came before; the heads side by side, [B, T, H·E]."""
    y: Tensor = _Attention.apply(q_BHTE, k_BHTE, v_BHTE, scores)  # type: ignore[no-untyped-call]
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, scores: Scores) -> Tensor:
        q, k, v = (x.contiguous() for x in (q_BHTE, k_BHTE, v_BHTE))
        y_BTX, kept = forward(q, k, v, scores, keeps=any(ctx.needs_input_grad))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scores = scores
        return y_BTX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTX: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        return *backward(dy_BTX.contiguous(), q, k, v, kept, ctx.scores), None


def attended(qkv_BTX: Tensor, heads: Heads, scores: Scores, *, keeps: bool) -> tuple[Tensor, list[Tensor | None]]:
    """The heads' outputs side by side, [B, T, H·E], of projections, and what `attended_backward` wants.

    The projections' memory may be taken.
    """
    if not has_tiles():
        q, k, v = apart(qkv_BTX, heads)
        y_BTX, kept = forward(q, k, v, scores, keeps=keeps)
        return y_BTX, [q, k, v, *kept]
    _turn(qkv_BTX, heads, back=False)
    y_BTX, logsums_BHT = causal.forward(*heads.of(qkv_BTX), scores)
    return y_BTX, [qkv_BTX, logsums_BHT]


def attended_backward(
    dy_BTX: Tensor, kept: Sequence[Any], heads: Heads, scores: Scores, *, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the projections and, where it is wanted, of the bias."""
    if not has_tiles():
        return together(*backward(dy_BTX, kept[0], kept[1], kept[2], kept[3:], scores), heads, bias=bias)
    qkv_BTX, logsums_BHT = kept
    dqkv_BTX = torch.empty_like(qkv_BTX)
    causal.backward(dy_BTX, heads.of(qkv_BTX), logsums_BHT, scores, heads.of(dqkv_BTX))
    _turn(dqkv_BTX, heads, back=True)
    return dqkv_BTX, column_sums(dqkv_BTX) if bias else None


def _turn(qkv_BTX: Tensor, heads: Heads, *, back: bool) -> None:
    """Queries and keys turned by their positions' angles, in place."""
    cosines, sines, turning = heads.turns()
    if not turning:
        return
    (batch, time, features), each = qkv_BTX.shape, heads.queries + 2 * heads.keys
    turned = heads.queries + heads.keys
    call(
        "turn_heads", qkv_BTX, cosines, sines, turning, back, batch * time, time, turned, each, features // each,
    )  # fmt: skip


def forward(q: Tensor, k: Tensor, v: Tensor, scores: Scores, *, keeps: bool) -> tuple[Tensor, list[Tensor | None]]:
    """The heads' outputs side by side, [B, T, H·E], and what `backward` wants of the way there."""
    if has_tiles():
        y_BTX, logsums_BHT = causal.forward(q, k, v, scores)
        return y_BTX, [logsums_BHT]
    batch, heads, time, width = v.shape
    y_BTX = q.new_empty(batch, time, heads * width)
    logsums_BHT = torch.empty(batch, heads, time)
    slopes_H = torch.tensor(scores.slopes) if scores.slopes else None
    # A cap's slope is of the scores, which weights do not tell.
    keeps = keeps and time <= _KEPT * width and not scores.softcap
    kept: list[Tensor] = []

    for block in _blocks(batch, heads, time, scores.window):
        weights = torch.bmm(block.queries(q), block.keys(k).transpose(1, 2))
        _softmax("softmax_forward", [weights], block, logsums_BHT, slopes_H, scores, (heads, time))
        _move(block.of(y_BTX), torch.bmm(weights, block.keys(v)), block, apart=False)
        if keeps:
            kept.append(weights)
    return y_BTX, [logsums_BHT, slopes_H, *kept]


def backward(
    dy_BTX: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Sequence[Any], scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    if has_tiles():
        gradients = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
        causal.backward(dy_BTX, (q, k, v), kept[0], scores, gradients)
        return gradients
    logsums_BHT, slopes_H, *weights_of = kept
    batch, heads, time, width = v.shape
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    if several := time > BLOCK:  # whose gradients of keys and values add up
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))

    for place, block in enumerate(_blocks(batch, heads, time, scores.window)):
        dy = v.new_empty(len(block.of(v)) * heads, block.end - block.first, width)
        _move(block.of(dy_BTX), dy, block, apart=True)
        known = weights_of[place] if weights_of else None
        weights = torch.bmm(block.queries(q), block.keys(k).transpose(1, 2)) if known is None else known
        dscores = torch.bmm(dy, block.keys(v).transpose(1, 2))
        logsums = logsums_BHT if known is None else None
        _softmax("softmax_backward", [weights, dscores], block, logsums, slopes_H, scores, (heads, time))
        _product(block.queries(dq), dscores, block.keys(k), add=False)
        _product(block.keys(dk), dscores.transpose(1, 2), block.queries(q), add=several)
        _product(block.keys(dv), weights.transpose(1, 2), dy, add=several)

    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _product(out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """The products of two batches of matrices to where they belong."""
    if add:
        out.add_(torch.bmm(left, right))
    else:
        torch.bmm(left, right, out=out)


def _softmax(
    kernel: str, blocks: list[Tensor], block: _Block, logsums_BHT: Tensor | None, slopes_H: Tensor | None,
    scores: Scores, shape: tuple[int, int],
) -> None:  # fmt: skip
    """Scores become weights in place, and where gradients are given with them, these the scores' gradients."""
    heads, time = shape
    logsums = block.of(logsums_BHT) if logsums_BHT is not None else None
    place = (block.first, block.begin, block.end - block.first, block.end - block.begin)
    call(
        kernel, *blocks, logsums, slopes_H, scores.scale, scores.softcap, scores.window, *place,
        len(blocks[0]) // heads, heads, time,
    )  # fmt: skip


def _move(together_BTX: Tensor, block_NRE: Tensor, block: _Block, *, apart: bool) -> None:
    """The block's rows, head by head, to where the heads lie side by side, or from there."""
    sequences, time, _ = together_BTX.shape
    lines, rows, width = block_NRE.shape
    call("move_rows", together_BTX, block_NRE, apart, block.first, rows, sequences, time, lines // sequences, width)
