"""What the monitor costs of a training step: its time over a step's, at the default interval, of three sizes.

A step that is due is made next to steps that are not, in turn, so that a slow minute of the machine slows both alike.
The share at the default interval is (due + (interval − 1)·idle)/(interval·step), all of medians. The batches are far
smaller than the recipes' for gpt2:124m, so that its share is the largest that anybody would see.

    .venv/bin/python -m benchmarks.monitor [--sizes nano mini gpt2:124m] [--rounds 8] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import torch

from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.monitoring.monitor import EVERY, Monitor
from weightdecay.optim.adamw import AdamW
from weightdecay.planning.plan import plan
from weightdecay.recipes.schema import recipe
from weightdecay.training.distributed import Ranks
from weightdecay.training.step import take_step

# (recipe, sequences in a step)
SIZES = {"nano": ("gpt3:nano", 16), "mini": ("gpt3:mini", 16), "gpt2:124m": ("gpt2:124m", 1)}
_LIMIT = 0.02


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step, of the monitor in a step that is due and in one that is not, and its share."""
    source, sequences = SIZES[name]
    shape = recipe(source).model
    torch.manual_seed(0)
    model = GPT(shape)
    decided = plan(model, 0.1, trace=False)
    optimizer = AdamW(decided, lr=1e-4, fused=True)
    objective, ranks = Objective(model), Ranks(0, 1, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def step(number: int) -> None:
        tokens = torch.randint(shape.vocab_size, (sequences, shape.context + 1), generator=generator)
        batch = [(tokens[:, :-1], tokens[:, 1:])]
        take_step(
            objective, optimizer, batch, sequences=sequences, ranks=ranks, dtype=torch.bfloat16, grad_clip=1.0,
            seed=(0, number),
        )  # fmt: skip

    step(0)  # the state of the optimizer comes with the first
    kinds = ("due", "idle", "ahead")  # the step before one that is due looks at its tensors, too
    seconds: dict[str, list[float]] = {kind: [] for kind in ("step", *kinds)}
    with Monitor(model, optimizer, interval=3, plan=decided, done=1) as monitor:
        for number in range(1, 3 * rounds + 1):
            before, started = monitor.elapsed_s, time.perf_counter()
            step(number)
            whole, own = time.perf_counter() - started, monitor.elapsed_s - before
            seconds["step"].append(whole - own)
            seconds[kinds[monitor.done % 3]].append(own)
    middle = {key: statistics.median(values) for key, values in seconds.items()}
    due = middle["due"] + middle["ahead"]
    share = (due + (EVERY - 2) * middle["idle"]) / (EVERY * middle["step"])
    return {
        "size": name,
        "parameters": model.n_parameters(),
        "tokens": sequences * shape.context,
        "step_s": middle["step"],
        "due_s": due,
        "idle_s": middle["idle"],
        "share": share,
        "within_limit": share < _LIMIT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.json:
        found = [measured(name, given.rounds) for name in given.sizes]
        print(json.dumps({"threads": given.threads, "load": os.getloadavg()[0], "interval": EVERY, "sizes": found}))
        return
    print(f"{given.threads} threads, load {os.getloadavg()[0]:.1f}, a step in {EVERY} is due")
    for row in (measured(name, given.rounds) for name in given.sizes):
        size = f"{row['size']:10} {row['parameters'] / 1e6:6.1f}M, {row['tokens']:6,} tokens"
        times = f"step {row['step_s']:7.3f} s, due {1e3 * row['due_s']:6.1f} ms, idle {1e6 * row['idle_s']:4.0f} µs"
        print(f"{size}: {times}: {100 * row['share']:.2f} % of the time", flush=True)


if __name__ == "__main__":
    main()
