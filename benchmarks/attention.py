"""Causal attention on a processor: torch's fused kernel beside the products that short bf16 sequences take here.

Forward and backward, interleaved, ratios of medians; justifies `_SHORT_CONTEXT` in models/attention.py.
"""

from __future__ import annotations

import statistics
import time
from unittest.mock import patch

import torch

from weightdecay.models import attention

SHAPES = [(16, 7, 128, 32), (16, 6, 256, 64), (8, 12, 512, 64), (4, 12, 1024, 64)]
ROUNDS = 15


def seconds(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, short_context: int) -> float:
    with patch.object(attention, "_SHORT_CONTEXT", short_context):
        started = time.perf_counter()
        torch.autograd.grad(attention.causal_attention(q, k, v).sum(), (q, k, v))
        return time.perf_counter() - started


def main() -> None:
    print("(batch, heads, time, width)   fused ms   products ms   products / fused")
    for shape in SHAPES:
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        fused, products = [], []
        for _ in range(ROUNDS):
            fused.append(seconds(q, k, v, short_context=0))
            products.append(seconds(q, k, v, short_context=1 << 30))
        a, b = statistics.median(fused[2:]), statistics.median(products[2:])
        print(f"{shape!s:28} {1e3 * a:9.1f} {1e3 * b:13.1f} {b / a:18.2f}")


if __name__ == "__main__":
    main()
