"""Causal attention of whole sequences in one call, on processors whose own instructions multiply matrices.

    S = scale·Q·Kᵀ  [capped, less ALiBi's slope·distance]      P = softmax(S)      Y = P·V

Queries, keys and values stay where the projection left them. Of the way there only log Σ exp of each query's scores is
kept; weights are formed once more on the way back, in the cache.

Shapes: B batch, T time, H query heads, K key and value heads, E head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weightdecay.kernels.library import call, numbers
from weightdecay.kernels.scores import Scores


def forward(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """The heads' outputs side by side, [B, T, H·E], and log Σ exp of each query's scores, [B, H, T].

    Args:
        q_BHTE, k_BKTE, v_BKTE: bfloat16, each feature beside the next; otherwise they may lie anyhow.
    """
    batch, heads, time, _ = q_BHTE.shape
    y_BTX = q_BHTE.new_empty(batch, time, heads * v_BKTE.shape[3])
    logsums_BHT = torch.empty(batch, heads, time)
    call(
        "causal_forward", q_BHTE, k_BKTE, v_BKTE, _strides(q_BHTE, k_BKTE, v_BKTE), y_BTX, logsums_BHT,
        *_settings(q_BHTE, v_BKTE, scores),
    )  # fmt: skip
    return y_BTX, logsums_BHT


def backward(
    dy_BTX: Tensor, heads: tuple[Tensor, Tensor, Tensor], logsums_BHT: Tensor, scores: Scores,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """The gradients of queries, keys and values, to where these lie."""
    q, k, v = heads
    call(
        "causal_backward", dy_BTX, q, k, v, _strides(q, k, v), *gradients, _strides(*gradients), logsums_BHT,
        *_settings(q, v, scores),
    )  # fmt: skip


def _settings(q: Tensor, v: Tensor, scores: Scores) -> tuple[Any, ...]:
    slopes_H = torch.tensor(scores.slopes) if scores.slopes else None
    batch, heads, time, width = q.shape
    of_scores = (slopes_H, scores.scale, scores.softcap, scores.window)
    return *of_scores, batch, time, heads, v.shape[1], width, v.shape[3]


def _strides(*heads: Tensor) -> Any:
    return numbers(*(number for x in heads for number in x.stride()[:3]))
