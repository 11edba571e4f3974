"""Causal self-attention with as many key and value heads as the configuration says.

Shapes: B batch, T time, D d_model, H query heads, K key and value heads, E head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.models.config import ModelConfig
from weightdecay.models.layers import Rotary

# Longest context at which materialised bf16 attention beats scaled_dot_product_attention on a processor; measured
# by benchmarks/attention.py.
_SHORT_CONTEXT = 512


class Attention(nn.Module):
    """softmax(Q·Kᵀ/√E + causal mask)·V per head, with one fused input projection `qkv` and an output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        inner = config.n_heads * config.head_dim
        self.qkv = nn.Linear(config.d_model, inner + 2 * config.n_kv_heads * config.head_dim, bias=config.bias)
        self.out = nn.Linear(inner, config.d_model, bias=config.bias)
        self.rotary = (
            Rotary(config.head_dim, config.context, config.rotary_base) if config.positions == "rotary" else None
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, time, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, time, self.n_heads + 2 * self.n_kv_heads, self.head_dim).transpose(1, 2)
        q_BHTE, k_BKTE, v_BKTE = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        if self.rotary is not None:
            q_BHTE, k_BKTE = self.rotary(q_BHTE), self.rotary(k_BKTE)
        group = self.n_heads // self.n_kv_heads
        if group > 1:
            k_BKTE, v_BKTE = (kv.repeat_interleave(group, dim=1) for kv in (k_BKTE, v_BKTE))
        y_BHTE = causal_attention(q_BHTE, k_BKTE, v_BKTE, self.dropout if self.training else 0.0)
        y_BTD = y_BHTE.transpose(1, 2).reshape(batch, time, self.n_heads * self.head_dim)
        out: Tensor = self.out(y_BTD)
        return out


def causal_attention(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, dropout: float = 0.0) -> Tensor:
    """Each position attends to itself and what came before; dropout on the attention weights.

    torch's fused kernel, except for short bf16 sequences on a processor, where it has no bf16 backward worth the
    name and plain batched products take less than half the time.
    """
    short = q_BHTE.device.type == "cpu" and q_BHTE.dtype == torch.bfloat16 and q_BHTE.shape[2] <= _SHORT_CONTEXT
    if not short:
        return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, dropout_p=dropout, is_causal=True)
    batch, heads, time, width = q_BHTE.shape
    q, k, v = (x.reshape(batch * heads, time, width) for x in (q_BHTE, k_BHTE, v_BHTE))
    mask_TT = torch.full((time, time), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    weights = torch.baddbmm(mask_TT, q, k.transpose(1, 2), alpha=1.0 / math.sqrt(width)).softmax(dim=-1)
    weights = F.dropout(weights, dropout, training=dropout > 0.0)
    return torch.bmm(weights, v).view(batch, heads, time, width)
