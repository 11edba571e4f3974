"""Write the tables and the picture of bf16.md from measured steps."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from figures import line_chart, table, write_block
from torch import nn

from weightdecay.optim.adamw import AdamW
from weightdecay.optim.precision import PrecisionWarning, realised_decay

LR, STEPS, ELEMENTS = 3e-4, 2_000, 65_536
PATHS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16, for-loop": (torch.bfloat16, {}),
    "bfloat16, foreach": (torch.bfloat16, {"foreach": True}),
    "bfloat16, fused": (torch.bfloat16, {"fused": True}),
    '`rounding="stochastic"`': (torch.bfloat16, {"rounding": "stochastic"}),
    '`rounding="kahan"`': (torch.bfloat16, {"rounding": "kahan"}),
    '`rounding="master"`': (torch.bfloat16, {"rounding": "master"}),
}


def norm_after_noise(weight_decay: float, dtype: torch.dtype, settings: dict[str, Any]) -> float:
    """‖w‖ after steps of pure noise, from weights of standard deviation 1; the same noise in every case."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(ELEMENTS, generator=generator).to(dtype))
    optimizer = AdamW([p], lr=LR, weight_decay=weight_decay, **settings)
    for _ in range(STEPS):
        p.grad = torch.randn(ELEMENTS, generator=generator).to(dtype)
        optimizer.step()
    return float(p.detach().double().norm())


def bytes_a_weight(dtype: torch.dtype, settings: dict[str, Any]) -> tuple[float, float]:
    """Of the weights, and of all state after a step."""
    p = nn.Parameter(torch.zeros(ELEMENTS, dtype=dtype))
    p.grad = torch.zeros_like(p)
    optimizer = AdamW([p], **settings)
    optimizer.step()
    held = sum(value.nbytes for value in optimizer.state[p].values() if value.ndim)
    return p.nbytes / ELEMENTS, held / ELEMENTS


def norm_ratios() -> None:
    rows = []
    for name, (dtype, settings) in PATHS.items():
        ratio = norm_after_noise(1.0, dtype, settings) / norm_after_noise(0.0, dtype, settings)
        rows.append([name, f"{ratio:.3f}", *(f"{size:g}" for size in bytes_a_weight(dtype, settings))])
    ideal = math.exp(-LR * STEPS)
    header = [
        "weights",
        f"‖w‖ with λ = 1 over ‖w‖ with λ = 0 (e^−{LR * STEPS:g} = {ideal:.3f})",
        "bytes a weight",
        "and of AdamW's state",
    ]
    write_block("bf16.md", "norm ratios", table(header, rows))


def realised() -> None:
    weights = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    low = weights.bfloat16()
    decays = [1e-1, 1e-2, 2.0**-8, 3e-3, 2.0**-9, 1e-3, 3e-5, 1e-6, 1e-7, 3.1e-8, 2.9e-8]
    names = {2.0**-8: "2⁻⁸ = 3.9e-03", 2.0**-9: "2⁻⁹ = 2.0e-03"}
    rows = [
        [names.get(a, f"{a:.1e}"), f"{realised_decay(low, a):.3f}", f"{realised_decay(weights, a):.3f}"] for a in decays
    ]
    write_block("bf16.md", "realised", table(["decay per step η·λ", "bfloat16", "float32"], rows))
    exponents = [-8 + n / 20 for n in range(141)]
    curves = {
        name: (exponents, [realised_decay(tensor[: 1 << 17], 10.0**e) for e in exponents])
        for name, tensor in (("bfloat16", low), ("float32", weights))
    }
    line_chart(
        "bf16", curves, title="The part of the decay that rounding to nearest leaves", across="decay per step η·λ",
        x_ticks={e: f"1e{e}" for e in range(-8, 0)}, y_ticks={0: "0", 0.5: "0.5", 1: "1", 1.5: "1.5", 2: "2"},
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PrecisionWarning)
    norm_ratios()
    realised()
