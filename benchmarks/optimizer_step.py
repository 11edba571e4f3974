"""A clipped AdamW step on 124M parameters: our paths beside torch's fused AdamW, as ratios of medians.

Every round runs each path once, in turn, so that a slow minute of the machine slows all of them alike; a ratio is the
median over rounds of one path's time over its peer's in the same round.

    .venv/bin/python benchmarks/optimizer_step.py [--rounds 15] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightdecay.optim.adamw import AdamW
from weightdecay.optim.base import PrecisionWarning
from weightdecay.optim.clipping import clipped_step, total_norm

# GPT-2 124M: token and position embeddings, 12 layers of 4 matrices, norms and biases
SHAPES: list[tuple[int, ...]] = [(50_304, 768), (1_024, 768)]
SHAPES += [
    (2_304, 768),
    (768, 768),
    (3_072, 768),
    (768, 3_072),
    (2_304,),
    (3_072,),
    (768,),
    (768,),
    (768,),
    (768,),
] * 12


@dataclass(frozen=True)
class Path:
    """One way to make a step: what it is compared with and how slow it may be."""

    name: str
    peer: str
    limit: float
    step: Callable[[], object]


def parameters(dtype: torch.dtype, scale: float) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(shape).mul_(0.02).to(dtype)) for shape in SHAPES]
    for p in params:
        p.grad = torch.randn(p.shape).mul_(scale).to(dtype)
    return params


def torch_clipped(params: list[nn.Parameter], optimizer: Any) -> None:
    grads = [p.grad for p in params]
    nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def ours_clipped(params: list[nn.Parameter], optimizer: Any) -> None:
    grads = [p.grad for p in params]
    clipped_step(optimizer, 1.0)
    optimizer.zero_grad(set_to_none=True)
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def median_times(paths: list[Path], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {path.name: [] for path in paths}
    for _ in range(rounds + 1):
        for path in paths:
            begin = time.perf_counter()
            path.step()
            times[path.name].append(time.perf_counter() - begin)
    return {name: seen[1:] for name, seen in times.items()}  # the first makes the optimizer's state


def report(paths: list[Path], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    rows = []
    for path in paths:
        ratio = statistics.median(a / b for a, b in zip(times[path.name], times[path.peer], strict=True))
        seconds = statistics.median(times[path.name])
        rows.append({"path": path.name, "seconds": round(seconds, 4), "peer": path.peer, "ratio": round(ratio, 3),
                     "limit": path.limit})  # fmt: skip
    return rows


def clipping(rounds: int, scale: float, label: str, limit: float) -> list[dict[str, Any]]:
    """Clip and step, where clipping acts (large gradients) and where it does not (small ones)."""
    params = parameters(torch.float32, scale)
    fused = torch.optim.AdamW(params, lr=1e-6, weight_decay=0.1, fused=True)
    ours = AdamW(params, lr=1e-6, weight_decay=0.1, fused=True)
    size = {p: p.grad for p in params if p.grad is not None}

    def renewed(step: Callable[[list[nn.Parameter], Any], None], optimizer: Any) -> Callable[[], None]:
        def run() -> None:
            step(params, optimizer)

        return run

    paths = [
        Path(
            f"torch clip + fused step, {label}", f"torch clip + fused step, {label}", 1.0, renewed(torch_clipped, fused)
        ),
        Path(f"clipped_step, {label}", f"torch clip + fused step, {label}", limit, renewed(ours_clipped, ours)),
    ]
    restore = [grad.clone() for grad in size.values()]
    times: dict[str, list[float]] = {path.name: [] for path in paths}
    for _ in range(rounds + 1):
        for path in paths:
            torch._foreach_copy_(list(size.values()), restore)  # clipping shrank them
            begin = time.perf_counter()
            path.step()
            times[path.name].append(time.perf_counter() - begin)
    return report(paths, {name: seen[1:] for name, seen in times.items()})


def rules(rounds: int) -> list[dict[str, Any]]:
    """Each rule's step beside plain fused AdamW on the same tensors."""
    params = parameters(torch.float32, 1e-5)
    peer = "torch fused AdamW"
    plain = torch.optim.AdamW(params, lr=1e-6, weight_decay=0.1, fused=True)
    paths = [Path(peer, peer, 1.0, plain.step)]
    optimizers = [plain]
    for rule, limit in (("decoupled", 1.05), ("independent", 1.05), ("lr_squared", 1.05), ("corrected", 1.05),
                        ("fixed", 1.05), ("cautious", 2.0), ("towards_one", 2.0), ("towards_initial", 2.0)):  # fmt: skip
        optimizer = AdamW(params, lr=1e-6, weight_decay=1e-6 if rule == "fixed" else 0.1, rule=rule, fused=True)
        optimizer.step()
        for p in params:  # one set of moments for all: memory is not what is measured here
            optimizer.state[p].update(
                {key: value for key, value in (plain.state[p] or optimizer.state[p]).items() if key != "step"}
            )
            plain.state[p] = plain.state[p] or dict(optimizer.state[p])
        optimizers.append(optimizer)
        paths.append(Path(f"rule {rule}", peer, limit, optimizer.step))
    paths.append(Path("norm by rows", peer, 1.0, lambda: total_norm(p.grad for p in params if p.grad is not None)))
    return report(paths, median_times(paths, rounds))


def low_precision(rounds: int) -> list[dict[str, Any]]:
    """bfloat16 weights with each rounding, beside fused float32 AdamW."""
    peer = "torch fused AdamW, float32"
    full = parameters(torch.float32, 1e-5)
    paths = [Path(peer, peer, 1.0, torch.optim.AdamW(full, lr=1e-6, weight_decay=0.1, fused=True).step)]
    low = parameters(torch.bfloat16, 1e-5)
    for rounding in ("stochastic", "kahan", "master"):
        optimizer = AdamW(low, lr=1e-6, weight_decay=0.1, rounding=rounding)  # type: ignore[arg-type]
        if len(paths) > 1:
            _share_moments(optimizer, low, shared)
        optimizer.step()
        shared = optimizer
        paths.append(Path(f"bfloat16 {rounding}", peer, 2.0, optimizer.step))
    return report(paths, median_times(paths, rounds))


def _share_moments(optimizer: AdamW, params: list[nn.Parameter], other: AdamW) -> None:
    for p in params:
        optimizer.state[p] = {key: other.state[p][key] for key in ("step", "exp_avg", "exp_avg_sq")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", PrecisionWarning)
    rows: list[dict[str, Any]] = []
    for measure in (
        lambda: clipping(options.rounds, 1e-3, "acts", 0.92),
        lambda: clipping(options.rounds, 1e-5, "does not act", 0.85),
        lambda: rules(options.rounds),
        lambda: low_precision(options.rounds),
    ):
        rows += measure()
        gc.collect()
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{sum(torch.Size(s).numel() for s in SHAPES) / 1e6:.0f}M parameters, {options.threads} threads")
    for row in rows:
        verdict = "" if row["path"] == row["peer"] or row["ratio"] <= row["limit"] else "   over its limit"
        print(f"{row['path']:<42} {row['seconds']:>8.4f} s   ×{row['ratio']:<6} (limit {row['limit']}){verdict}")


if __name__ == "__main__":
    main()
