"""AdamW steps on many small tensors, one thread: our rules and roundings beside torch's fused AdamW.

Of a small tensor the call is what costs. Every round runs each path once, in turn; a ratio is the median over the
rounds of one path's time over torch's in the same round.

    .venv/bin/python benchmarks/small_tensors.py [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from typing import Any

import torch
from torch import nn

from weightdecay.optim.adamw import AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.precision import PrecisionWarning
from weightdecay.optim.roundings import KAHAN, MASTER, STOCHASTIC
from weightdecay.optim.sgdw import SGDW
from weightdecay.rules import CAUTIOUS, DECOUPLED, INDEPENDENT, TOWARDS_INITIAL, TOWARDS_ONE

ELEMENTS, PEER = 64, "torch fused AdamW"
# (tensors, rounds, limit of scalar rules, limit of masks, targets and roundings)
SIZES = ((10, 400, 1.5, None), (1_000, 25, 1.5, 4.0))


def tensors(count: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.randn(ELEMENTS).to(dtype)) for _ in range(count)]
    for p in made:
        p.grad = torch.randn(ELEMENTS).to(dtype)
    return made


def optimizers(count: int, scalar: float, other: float | None) -> dict[str, tuple[Any, float | None]]:
    """Name -> (optimizer, limit)."""
    settings: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
    found: dict[str, tuple[Any, float | None]] = {
        PEER: (torch.optim.AdamW(tensors(count), fused=True, **settings), None)
    }
    for rule in (DECOUPLED, INDEPENDENT, CAUTIOUS, TOWARDS_ONE, TOWARDS_INITIAL):
        limit = scalar if rule.is_scalar else other
        found[f"AdamW {rule.name}"] = AdamW(tensors(count), rule=rule, fused=True, **settings), limit
    for rounding in (STOCHASTIC, KAHAN, MASTER):
        low = tensors(count, torch.bfloat16)
        found[f"AdamW bfloat16, {rounding.name}"] = AdamW(low, rounding=rounding, **settings), other
    found["Lion cautious"] = Lion(tensors(count), rule=CAUTIOUS, **settings), other
    found["SGDW with momentum, cautious"] = SGDW(tensors(count), momentum=0.9, rule=CAUTIOUS, **settings), other
    return found


def measured(count: int, rounds: int, scalar: float, other: float | None) -> list[dict[str, Any]]:
    paths = optimizers(count, scalar, other)
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + 2):
        for name, (optimizer, _) in paths.items():
            begin = time.perf_counter()
            optimizer.step()
            if number > 1:  # the first rounds make what is made once
                times[name].append(time.perf_counter() - begin)
    return [
        {
            "tensors": count,
            "path": name,
            "milliseconds": round(1e3 * statistics.median(times[name]), 3),
            "ratio": round(statistics.median(a / b for a, b in zip(times[name], times[PEER], strict=True)), 2),
            "limit": limit,
        }
        for name, (_, limit) in paths.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", PrecisionWarning)
    rows = [row for size in SIZES for row in measured(*size)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        over = row["limit"] is not None and row["ratio"] > row["limit"]
        limit = "" if row["limit"] is None else f"limit {row['limit']}"
        print(
            f"{row['tensors']:>5} × {ELEMENTS}  {row['path']:<32} {row['milliseconds']:>8.3f} ms  ×{row['ratio']:<6} "
            f"{limit}{'   over its limit' if over else ''}"
        )


if __name__ == "__main__":
    main()
