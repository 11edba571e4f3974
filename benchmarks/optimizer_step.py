"""An AdamW step on 124M parameters: our paths beside torch's fused AdamW, as ratios of medians.

Every round runs each path once, in turn, so that a slow minute of the machine slows all of them alike. A ratio is the
median over the rounds of one path's time over its peer's in the same round. All paths work on the same tensors.

    .venv/bin/python benchmarks/optimizer_step.py [--rounds 15] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
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
from weightdecay.optim.clipping import clipped_step
from weightdecay.optim.pieces import MasterWarning
from weightdecay.optim.precision import PrecisionWarning
from weightdecay.optim.roundings import RoundingName as Rounding
from weightdecay.rules import RULES

# GPT-2 124M: token and position embeddings; 12 layers of 4 matrices with their biases and two norms
LAYER: list[tuple[int, ...]] = [(2_304, 768), (768, 768), (3_072, 768), (768, 3_072), (2_304,), (3_072,)]
SHAPES: list[tuple[int, ...]] = [(50_304, 768), (1_024, 768), *(LAYER + [(768,)] * 6) * 12]
PEER = "torch fused AdamW"
SCALAR_RULES = ("decoupled", "independent", "lr_squared", "corrected", "fixed")
OTHER_RULES = ("cautious", "towards_one", "towards_initial")
KEEPING: tuple[Rounding, ...] = ("stochastic", "kahan", "master")
LR = 1e-6


@dataclass(frozen=True)
class Path:
    """One way to make a step, beside its peer, and how slow it may be."""

    name: str
    peer: str
    limit: float
    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


class Weights:
    """The tensors that all paths share: weights, gradients and Adam's two moments."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.params = [nn.Parameter(torch.randn(shape).mul_(0.02).to(dtype)) for shape in SHAPES]
        self.gradients = [torch.randn(shape).to(dtype) for shape in SHAPES]
        self.moments = [{"exp_avg": torch.zeros(s), "exp_avg_sq": torch.ones(s)} for s in SHAPES]
        self.set_gradients()

    def set_gradients(self) -> None:
        for p, gradient in zip(self.params, self.gradients, strict=True):
            p.grad = gradient

    def scale_gradients(self, norm: float) -> None:
        """Make the norm of all gradients what it was before a step that clipped them."""
        present = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in self.gradients])))
        if abs(norm / present - 1) > 0.05:
            torch._foreach_mul_(self.gradients, norm / present)

    def given_to(self, optimizer: Any) -> Any:
        """The optimizer, beginning with the shared moments."""
        for p, moments in zip(self.params, self.moments, strict=True):
            optimizer.state[p] = {"step": torch.tensor(0.0), **moments}
        return optimizer


def clipping(weights: Weights, label: str, norm: float, limit: float) -> list[Path]:
    """Clip, step, drop the gradients: where clipping acts and where it does not."""
    theirs = weights.given_to(torch.optim.AdamW(weights.params, lr=LR, weight_decay=0.1, fused=True))
    ours = weights.given_to(AdamW(weights.params, lr=LR, weight_decay=0.1, fused=True))

    def torchs() -> None:
        nn.utils.clip_grad_norm_(weights.params, 1.0)
        theirs.step()
        theirs.zero_grad(set_to_none=True)

    def folded() -> None:
        clipped_step(ours, 1.0)
        ours.zero_grad(set_to_none=True)

    def prepare() -> None:
        weights.set_gradients()
        weights.scale_gradients(norm)

    peer = f"torch clip + fused step + zero_grad, {label}"
    return [
        Path(peer, peer, 1.0, torchs, prepare),
        Path(f"clipped_step + zero_grad, {label}", peer, limit, folded, prepare),
    ]


def clipping_that_acts(weights: Weights) -> list[Path]:
    return clipping(weights, "acts", norm=3.0, limit=0.92)


def clipping_that_does_not(weights: Weights) -> list[Path]:
    return clipping(weights, "does not act", norm=0.3, limit=0.85)


def rules(weights: Weights) -> list[Path]:
    weights.set_gradients()
    plain = weights.given_to(torch.optim.AdamW(weights.params, lr=LR, weight_decay=0.1, fused=True))
    paths = [Path(PEER, PEER, 1.0, plain.step)]
    for rule in SCALAR_RULES + OTHER_RULES:
        weight_decay = 1e-6 if rule == "fixed" else 0.1
        optimizer = AdamW(weights.params, lr=LR, weight_decay=weight_decay, rule=RULES[rule], fused=True)
        limit = 1.05 if rule in SCALAR_RULES else 2.0
        paths.append(Path(f"rule {rule}", PEER, limit, weights.given_to(optimizer).step))
    return paths


def low_precision(full: Weights) -> list[Path]:
    """bfloat16 weights with each rounding, beside fused AdamW on float32 weights."""
    full.set_gradients()
    plain = full.given_to(torch.optim.AdamW(full.params, lr=LR, weight_decay=0.1, fused=True))
    paths = [Path(PEER, PEER, 1.0, plain.step)]
    low = Weights(torch.bfloat16)
    low.moments = full.moments
    for rounding in KEEPING:
        optimizer = AdamW(low.params, lr=LR, weight_decay=0.1, rounding=rounding)
        paths.append(Path(f"bfloat16, {rounding}", PEER, 2.0, low.given_to(optimizer).step))
    return paths


def measured(paths: list[Path], rounds: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {path.name: [] for path in paths}
    for number in range(rounds + 1):
        for path in paths:
            path.prepare()
            begin = time.perf_counter()
            path.step()
            if number:  # the first round makes what is made once
                times[path.name].append(time.perf_counter() - begin)
    rows = []
    for path in paths:
        mine, peers = times[path.name], times[path.peer]
        ratio = statistics.median(a / b for a, b in zip(mine, peers, strict=True))
        seconds = statistics.median(mine)
        rows.append({"path": path.name, "seconds": round(seconds, 4), "ratio": round(ratio, 3), "limit": path.limit})
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['path']:<52} {row['seconds']:>8.4f} s  ×{row['ratio']:<6} limit {row['limit']}"
        + ("   over its limit" if row["ratio"] > row["limit"] else "")
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", PrecisionWarning)
    warnings.simplefilter("ignore", MasterWarning)  # the paths share weights
    weights = Weights(torch.float32)
    if not options.json:
        total = sum(torch.Size(shape).numel() for shape in SHAPES)
        print(f"{total / 1e6:.0f}M parameters, {options.threads} threads, {options.rounds} rounds", flush=True)
    rows: list[dict[str, Any]] = []
    for paths_of in (clipping_that_acts, clipping_that_does_not, rules, low_precision):
        part = measured(paths_of(weights), options.rounds)
        rows += part
        if not options.json:
            print("\n".join(table(part)), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
