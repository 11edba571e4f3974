"""Causal self-attention whose keys and values come from one narrow latent a token.

Shapes: B batch, T time, S positions seen (T, or more after a cache), D d_model, H heads, N the plain part of a head
(head_dim), R the part that turns (rotary_head_dim), V value_head_dim, L kv_rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightdecay.models.attention import causal_attention
from weightdecay.models.cache import LayerCache
from weightdecay.models.config import ModelConfig
from weightdecay.models.layers import Linear, Rotary, make_norm
from weightdecay.models.parts import LatentConfig


class LatentAttention(nn.Module):
    """Multi-head latent attention.

        c = norm(W_c·x),   [k_h; v_h] = U_h·c,   r = turned(W_r·x), one for all heads
        scores_h = (q_h·k_h + turned(p_h)·r)·scale,   with [q_h; p_h] = Q_h·x, or Q_h·norm(W_q·x) with a `q_rank`

    The cache holds c and r. A single new token does not expand the cached latents into keys and values: U moves over
    to its query and its output, which is the same product in another order.

    Args:
        latent: the widths of the latents; `config.latent`.
        layer: which block this is in, counted from 0; it decides the window.

    Reference: DeepSeek-AI 2024 (DeepSeek-V2), arXiv:2405.04434, §2.1.
    """

    def __init__(self, config: ModelConfig, latent: LatentConfig, layer: int) -> None:
        super().__init__()
        heads = config.attention
        self.n_heads, self.plain, self.turning = heads.n_heads, heads.head_dim, latent.rotary_head_dim
        self.value_width = latent.value_head_dim or heads.head_dim
        self.dropout = config.training.dropout
        self.scale = heads.scale or 1.0 / math.sqrt(self.plain + self.turning)
        self.softcap = heads.softcap
        self.window = config.window_of(layer)
        inner = heads.n_heads * (self.plain + self.turning)
        if latent.q_rank:
            self.query_down = Linear(config.d_model, latent.q_rank, bias=False)
            self.query_norm = make_norm(config, latent.q_rank, latent.norm_eps)
            self.query_up = Linear(latent.q_rank, inner, bias=False)
        else:
            self.query = Linear(config.d_model, inner, bias=False)
        self.kv_down = Linear(config.d_model, latent.kv_rank + self.turning, bias=False)
        self.kv_norm = make_norm(config, latent.kv_rank, latent.norm_eps)
        self.kv_up = Linear(latent.kv_rank, heads.n_heads * (self.plain + self.value_width), bias=False)
        self.out = Linear(heads.n_heads * self.value_width, config.d_model, bias=False)
        self.rotary = Rotary(self.turning, config.context, heads.rotary_base)

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None) -> Tensor:
        batch, time, _ = x_BTD.shape
        start = cache.length if cache is not None else 0
        queries_BTX = (
            self.query_up(self.query_norm(self.query_down(x_BTD))) if hasattr(self, "query_up") else self.query(x_BTD)
        )
        heads = queries_BTX.view(batch, time, self.n_heads, -1).transpose(1, 2)
        q_BHTN, p_BHTR = heads.split((self.plain, self.turning), dim=-1)
        p_BHTR = self.rotary(p_BHTR, start)
        c_B1TL, r_B1TR = self.kv_down(x_BTD).unsqueeze(1).split((self.kv_up.in_features, self.turning), dim=-1)
        c_B1TL, r_B1TR = self.kv_norm(c_B1TL), self.rotary(r_B1TR, start)
        if cache is not None:
            c_B1TL, r_B1TR = cache.extended(c_B1TL, r_B1TR)
        attend = self._through_latents if cache is not None and time == 1 else self._through_heads
        y_BTX = attend(q_BHTN, p_BHTR, c_B1TL, r_B1TR).transpose(1, 2).reshape(batch, time, -1)
        out: Tensor = self.out(y_BTX)
        return out

    def _through_heads(self, q_BHTN: Tensor, p_BHTR: Tensor, c_B1SL: Tensor, r_B1SR: Tensor) -> Tensor:
        """Every head's own keys and values, as the formula has it."""
        batch, _, span, _ = c_B1SL.shape
        heads = self.kv_up(c_B1SL).view(batch, span, self.n_heads, -1).transpose(1, 2)
        k_BHSN, v_BHSV = heads.split((self.plain, self.value_width), dim=-1)
        shared_BHSR = r_B1SR.expand(-1, self.n_heads, -1, -1)
        return self._attended(torch.cat((q_BHTN, p_BHTR), -1), torch.cat((k_BHSN, shared_BHSR), -1), v_BHSV)

    def _through_latents(self, q_BHTN: Tensor, p_BHTR: Tensor, c_B1SL: Tensor, r_B1SR: Tensor) -> Tensor:
        """Attention over the latents themselves, whose values every head then makes its own."""
        up_HXL = self.kv_up.weight.view(self.n_heads, self.plain + self.value_width, -1)
        keys_HNL, values_HVL = up_HXL[:, : self.plain], up_HXL[:, self.plain :]
        q_BHTL = q_BHTN @ keys_HNL
        k_BHSX = torch.cat((c_B1SL, r_B1SR), -1).expand(-1, self.n_heads, -1, -1)
        y_BHTL = self._attended(torch.cat((q_BHTL, p_BHTR), -1), k_BHSX, c_B1SL.expand(-1, self.n_heads, -1, -1))
        return y_BHTL @ values_HVL.transpose(1, 2)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return causal_attention(q, k, v, dropout, scale=self.scale, softcap=self.softcap, window=self.window)
