"""A probe of a model of half a billion parameters beside a training step of it: seconds, and the most memory held.

The model is a plain decoder (24 blocks of width 1280, 50,257 tokens), float32, batch 1 × 512, torch's AdamW; a
probe is to take at most twice as long as a step, and the process 1.3 times the memory. Each row is a process of its
own, for memory that was once taken is not given back.

    .venv/bin/python -m benchmarks.audit [--json] [--blocks 24] [--optimizer fused|foreach|for-loop|hooked]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import weightdecay
from benchmarks.decoder import Decoder

WIDTH, HEADS, CONTEXT, VOCABULARY = 1280, 20, 512, 50_257
SLOWER, LARGER = 2.0, 1.3
OPTIMIZERS = ("fused", "foreach", "for-loop", "hooked")


def optimizer_of(model: nn.Module, kind: str) -> Any:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    how: dict[str, Any] = {"fused": {"fused": True}, "foreach": {"foreach": True}}.get(kind, {"foreach": False})
    optimizer = torch.optim.AdamW(groups, lr=1e-3, **how)
    if kind == "hooked":
        everything = list(model.parameters())

        @torch.no_grad()
        def clamp(*_: Any) -> None:
            for p in everything:
                p.clamp_(-10, 10)

        optimizer.register_step_post_hook(clamp)
    return optimizer


def measured(kind: str, blocks: int) -> dict[str, Any]:
    """In this process: training steps first, then a probe."""
    torch.manual_seed(0)
    model = Decoder(blocks, WIDTH, HEADS, VOCABULARY)
    optimizer = optimizer_of(model, kind)
    ids = torch.randint(VOCABULARY, (1, CONTEXT + 1))
    steps = []
    for _ in range(3):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        torch.autograd.backward(loss)
        optimizer.step()
        steps.append(time.perf_counter() - start)
    trained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    start = time.perf_counter()
    probed = weightdecay.probe(model, optimizer)
    probe_s = time.perf_counter() - start
    (one,) = probed.optimizers
    step_s = sorted(steps)[len(steps) // 2]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "optimizer": kind, "parameters": sum(p.numel() for p in model.parameters()), "seen_on": one.seen_on,
        "step_s": step_s, "probe_s": probe_s, "times_a_step": probe_s / step_s,
        "memory_of_training_MB": trained / 1024, "memory_with_probe_MB": memory / 1024,
        "times_the_memory": memory / trained, "copied_MB": one.copied_bytes / 2**20,
        "largest_error": max(abs(t.realised - t.requested) for t in probed if t.realised and t.requested),
        "load": os.getloadavg()[0], "threads": torch.get_num_threads(),
        "holds": probe_s <= SLOWER * step_s and memory <= LARGER * trained,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, action="append")
    parser.add_argument("--here", choices=OPTIMIZERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measured(given.here, given.blocks)))
        return

    rows = []
    for kind in given.optimizer or OPTIMIZERS:
        command = [sys.executable, "-m", "benchmarks.audit", "--here", kind, "--blocks", str(given.blocks)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:  # a whole step holds some four times the weights beside them, and the system may refuse
            print(f"{kind:9s} ended with {done.returncode}: {done.stderr.strip() or 'no memory?'}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout))
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['optimizer']:9s} {row['parameters'] / 1e6:.0f}M  step {row['step_s']:.1f} s, probe "
            f"{row['probe_s']:.1f} s = {row['times_a_step']:.2f} × (limit {SLOWER}); memory "
            f"{row['memory_of_training_MB']:.0f} MB -> {row['times_the_memory']:.2f} × (limit {LARGER}); "
            f"seen on {row['seen_on']}, load {row['load']:.1f}, {'holds' if row['holds'] else 'DOES NOT HOLD'}"
        )


if __name__ == "__main__":
    main()
