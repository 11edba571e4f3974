"""Causal self-attention with as many key and value heads as the configuration says.

Shapes: B batch, T time, S positions seen (T, or more after a cache), D d_model, H query heads, K key and value heads,
E head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.kernels.attention import attention, split_heads
from weightdecay.kernels.branches import attention_branch
from weightdecay.kernels.library import usable
from weightdecay.kernels.norms import Norm
from weightdecay.kernels.scores import Heads, Scores
from weightdecay.models.cache import LayerCache
from weightdecay.models.config import ModelConfig
from weightdecay.models.layers import Linear, Rotary, alibi_slopes, make_norm, soft_capped
from weightdecay.models.relative import RelativePositions

# Longest context at which materialised bf16 attention beats scaled_dot_product_attention on a processor; measured
# by benchmarks/attention.py.
_SHORT_CONTEXT = 512


class Attention(nn.Module):
    """softmax(Q·Kᵀ·scale + causal mask)·V per head, with one fused input projection `qkv` and an output projection.

    Scores may be soft-capped, fall with distance (ALiBi) or end at a window; queries and keys may be normalised
    before they turn.

    Args:
        layer: which block this is in, counted from 0; it decides the window.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        heads = config.attention
        self.n_heads = heads.n_heads
        self.n_kv_heads = heads.n_kv_heads
        self.head_dim = heads.head_dim
        self.dropout = config.training.dropout
        self.scale = heads.scale or 1.0 / math.sqrt(heads.head_dim)
        self.softcap = heads.softcap
        self.window = config.window_of(layer)
        self.slopes = tuple(alibi_slopes(heads.n_heads)) if config.positions == "alibi" else ()
        inner, inner_kv = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
        self.qkv = Linear(config.d_model, inner + 2 * inner_kv, bias=config.bias)
        self.out = Linear(inner, config.d_model, bias=config.bias)
        self.qk_norm = heads.qk_norm
        if heads.qk_norm != "none":
            together = heads.qk_norm == "all_heads"
            self.query_norm = make_norm(config, inner if together else heads.head_dim)
            self.key_norm = make_norm(config, inner_kv if together else heads.head_dim)
        self.relative = RelativePositions(config) if config.positions == "relative" else None
        self.rotary = (
            Rotary(heads.head_dim, config.context, heads.rotary_base, heads.rotary_fraction)
            if config.positions == "rotary"
            else None
        )

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None) -> Tensor:
        """The branch's output."""
        if cache is None and self.is_plain and usable(x_BTD):
            heads = split_heads(self.qkv(x_BTD), *self._split(x_BTD))
            out: Tensor = self.out(attention(*heads, self._scores()))
            return out
        return self._attended(*self._heads(x_BTD), cache)

    @property
    def is_plain(self) -> bool:
        """Whether nothing comes between the projection and the turn of its heads, nor into their weights."""
        return self.qk_norm == "none" and self.relative is None and not (self.training and self.dropout)

    @property
    def is_one_function(self) -> bool:
        """Whether `added` computes what a block does with it, where kernels are usable."""
        return self.is_plain and bool(self.qkv.weight.dtype == torch.float32)

    def added(self, x_BTD: Tensor, norm: Norm) -> Tensor:
        """x + forward(norm(x)) as one function, where that can be."""
        qkv, out = self.qkv.layer(x_BTD.dtype), self.out.layer(x_BTD.dtype)
        return attention_branch(x_BTD, norm, qkv, out, self._split(x_BTD), self._scores())

    def _split(self, x_BTD: Tensor) -> Heads:
        angles = self.rotary.angles(x_BTD.shape[1]) if self.rotary is not None else (None, None)
        return Heads(self.n_heads, self.n_kv_heads, *angles)

    def _scores(self) -> Scores:
        return Scores(self.scale, self.softcap, self.window, self.slopes)

    def _heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, E], keys and values [B, K, T, E]."""
        batch, time, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, time, self.n_heads + 2 * self.n_kv_heads, self.head_dim).transpose(1, 2)
        q_BHTE, k_BKTE, v_BKTE = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        return q_BHTE, k_BKTE, v_BKTE

    def _attended(self, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, cache: LayerCache | None) -> Tensor:
        batch, _, time, _ = q_BHTE.shape
        if self.qk_norm != "none":
            q_BHTE, k_BKTE = self._normed(self.query_norm, q_BHTE), self._normed(self.key_norm, k_BKTE)
        start = cache.length if cache is not None else 0
        if self.rotary is not None:
            q_BHTE, k_BKTE = self.rotary(q_BHTE, start), self.rotary(k_BKTE, start)
        if cache is not None:
            k_BKTE, v_BKTE = cache.extended(k_BKTE, v_BKTE)
        bias_BHTS = None
        if self.relative is not None:
            q_BHTE, gained_BHTS = self.relative(q_BHTE, k_BKTE.shape[2])
            bias_BHTS = self.scale * gained_BHTS
        group = self.n_heads // self.n_kv_heads
        if group > 1:
            k_BKTE, v_BKTE = (kv.repeat_interleave(group, dim=1) for kv in (k_BKTE, v_BKTE))
        y_BHTE = causal_attention(
            q_BHTE, k_BKTE, v_BKTE, self.dropout if self.training else 0.0,
            scale=self.scale, softcap=self.softcap, window=self.window, slopes=self.slopes, bias=bias_BHTS,
        )  # fmt: skip
        y_BTD = y_BHTE.transpose(1, 2).reshape(batch, time, self.n_heads * self.head_dim)
        out: Tensor = self.out(y_BTD)
        return out

    def _normed(self, norm: nn.Module, x_BHTE: Tensor) -> Tensor:
        if self.qk_norm == "head":
            each: Tensor = norm(x_BHTE)
            return each
        together: Tensor = norm(x_BHTE.transpose(1, 2).flatten(2))
        return together.view(*together.shape[:2], -1, self.head_dim).transpose(1, 2)


def causal_attention(
    q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, dropout: float = 0.0, *,
    scale: float = 0.0, softcap: float = 0.0, window: int = 0, slopes: tuple[float, ...] = (),
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Each position attends to itself and what came before; dropout on the attention weights.

    On a processor bfloat16 goes through the blocks of `kernels.attention`. Where there are none, it is torch's fused
    kernel, except for capped scores, which it has not, and short bf16 sequences on a processor, where it has no bf16
    backward worth the name and plain batched products take less than half the time.

    Args:
        q_BHTE: queries of the last T of S positions; values may be of another width than queries and keys.
        scale: of the scores; 0 means 1/√E.
        softcap: c in c·tanh(scores/c); 0 does not cap.
        window: positions seen, itself included; 0 means all.
        slopes: of ALiBi, one a head; empty for none.
        bias: added to the scaled scores, [B, H, T, S].
    """
    time, span = q_BHTE.shape[2], k_BHSE.shape[2]
    scale = scale or 1.0 / math.sqrt(q_BHTE.shape[3])
    if usable(q_BHTE) and time == span and bias is None and not dropout:
        y_BTX = attention(q_BHTE, k_BHSE, v_BHSE, Scores(scale, softcap, window, slopes))
        return y_BTX.view(*y_BTX.shape[:2], q_BHTE.shape[1], -1).transpose(1, 2)
    if time == 1 and 0 < window < span:  # a token after a cache: what lies before the window need not be masked
        k_BHSE, v_BHSE, span = k_BHSE[:, :, -window:], v_BHSE[:, :, -window:], window
        bias = bias[..., -window:] if bias is not None else None
    short = q_BHTE.device.type == "cpu" and q_BHTE.dtype == torch.bfloat16 and span <= _SHORT_CONTEXT
    causal = not slopes and bias is None and not 0 < window < span and time in (1, span)
    if not short and not softcap and causal:
        return F.scaled_dot_product_attention(
            q_BHTE, k_BHSE, v_BHSE, dropout_p=dropout, is_causal=time > 1, scale=scale
        )
    mask = score_mask(time, span, window, slopes, q_BHTE)
    if bias is not None:
        mask = mask + bias.to(mask.dtype)
    if not short and not softcap:
        return F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, attn_mask=mask, dropout_p=dropout, scale=scale)
    batch, heads = q_BHTE.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q_BHTE, k_BHSE, v_BHSE))
    if mask.ndim > 2:
        mask = mask.expand(batch, heads, time, span).reshape(batch * heads, time, span)
    if softcap:
        scores = soft_capped(torch.bmm(q, k.transpose(1, 2)).float() * scale, softcap).to(q.dtype) + mask
    else:
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
    weights = F.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0.0)
    return torch.bmm(weights, v).view(batch, heads, time, -1)


def score_mask(time: int, span: int, window: int, slopes: tuple[float, ...], like: Tensor) -> Tensor:
    """What is added to the scores of the last `time` of `span` positions: −∞ where nothing may be seen, and ALiBi's
    −slope · distance. [T, S], or [H, T, S] with slopes."""
    hidden_TS = torch.full((time, span), -math.inf, dtype=like.dtype, device=like.device)
    mask_TS = hidden_TS.triu(span - time + 1)
    if 0 < window < span:
        mask_TS += hidden_TS.tril(span - time - window)
    if not slopes:
        return mask_TS
    places_S = torch.arange(span, dtype=torch.float32, device=like.device)
    distance_TS = places_S[span - time :, None] - places_S
    slopes_H11 = torch.tensor(slopes, device=like.device)[:, None, None]
    return mask_TS - (slopes_H11 * distance_TS).to(like.dtype)
