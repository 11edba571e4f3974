"""What `weightdecay watch` costs: a step of a small GPT with and without it, and an audited program of three steps.

The model is nanoGPT's smallest example on a processor: 4 layers of width 128, context 64, batch 12. Steps are
interleaved, and the ratio is of medians; `per_step_us` is what the hooks take, on a model whose step is nearly nothing.
No audit is due: it has been made. The program is the same model trained for three steps in a process of its own.

    .venv/bin/python -m benchmarks.watch [--json] [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.decoder import Decoder
from weightdecay.watching.owners import Owners
from weightdecay.watching.steps import Steps, Watched

LAYERS, WIDTH, HEADS, CONTEXT, BATCH, VOCABULARY = 4, 128, 4, 64, 12, 65
SLOWER = 1.01


def stepped() -> Callable[[], None]:
    """A step of the small GPT."""
    torch.manual_seed(0)
    model = Decoder(LAYERS, WIDTH, HEADS, VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def step() -> None:
        ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT))
        torch.autograd.backward(F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()))
        optimizer.step()
        optimizer.zero_grad()

    return step


def tiny() -> Callable[[], None]:
    """A step that is nearly nothing."""
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=0.0)

    def step() -> None:
        torch.autograd.backward(p.sum())
        optimizer.step()

    return step


def medians(step: Callable[[], None], steps: int) -> tuple[float, float]:
    """Seconds of a step, watched after its audit and by itself: processor's time, so that neighbours do not count."""

    def audited(steps: Steps, due: Watched, owners: Owners) -> None:  # noqa: ARG001
        due.is_done = True

    watch = Steps(2, 0, audited)
    watch.attach()
    for _ in range(20):  # the audit is over, and so is the looking for optimizers
        step()
    watch.detach()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * steps):
        is_watched = number % 2 == 0
        if is_watched:
            watch.attach()
        started = time.thread_time()
        step()
        seconds[is_watched].append(time.thread_time() - started)
        if is_watched:
            watch.detach()
    return statistics.median(seconds[True]), statistics.median(seconds[False])


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from benchmarks.watch import stepped
step = stepped()
for _ in range(3):
    step()
"""


def program() -> dict[str, float]:
    """Seconds of the program by itself and watched: of the clock, and of the processor."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.py")
        path.write_text(PROGRAM.format(folder=str(Path(__file__).parent.parent)))
        for name, words in (("alone", [str(path)]), ("watched", ["-m", "weightdecay", "watch", "--", str(path)])):
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found[f"{name}_s"] = time.perf_counter() - started
            found[f"{name}_processor_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    parser.add_argument("--steps", type=int, default=200, help="of each kind")
    given = parser.parse_args()
    torch.set_num_threads(1)
    watched, alone = medians(stepped(), given.steps)
    tiny_watched, tiny_alone = medians(tiny(), 5 * given.steps)
    document: dict[str, Any] = {
        "step_ms": 1e3 * alone,
        "ratio": watched / alone,
        "per_step_us": 1e6 * (tiny_watched - tiny_alone),
        "holds": watched / alone < SLOWER,
        **program(),
        "load": os.getloadavg()[0],
    }
    if given.json:
        print(json.dumps({"schema_version": 1, **document}, indent=2))
        return
    for name, value in document.items():
        print(f"{name:22} {value:.4g}" if isinstance(value, float) else f"{name:22} {value}")


if __name__ == "__main__":
    main()
