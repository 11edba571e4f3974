"""Runs side by side with one thread each against the same runs one after the other with all threads.

    python benchmarks/sweep.py [--steps 60] [--rounds 3]

Both ways train the same runs: `gpt3:nano` on the sources of the standard library, by the command, each in a process of
its own, start included. They are interleaved, and what is told is the median of the ratio within a round. A ratio
says nothing while other programs use the cores: look at the load that is told with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKENS_A_STEP = 2_048


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--runs", type=int, default=0, help="of each round; 0 is one for each core")
    given = options.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    runs = given.runs or cores

    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "first", 1, cores).wait()  # tokenizer and shards come into the cache
        ratios = []
        for index in range(given.rounds):
            place = Path(folder) / str(index)
            in_turn = timed(place / "in-turn", runs, given.steps, cores, at_once=False)
            side_by_side = timed(place / "side-by-side", runs, given.steps, cores, at_once=True)
            ratios.append(in_turn / side_by_side)
            tokens = runs * given.steps * TOKENS_A_STEP
            print(
                f"round {index + 1}: one after the other {tokens / in_turn:,.0f} tokens/s, side by side "
                f"{tokens / side_by_side:,.0f}: {ratios[-1]:.2f} × (load {os.getloadavg()[0]:.1f})",
                flush=True,
            )
    print(f"{runs} runs on {cores} cores side by side: {statistics.median(ratios):.2f} × the tokens/s (asked for: 1.4)")


def timed(place: Path, runs: int, steps: int, cores: int, *, at_once: bool) -> float:
    """Seconds until all runs are done."""
    started = time.perf_counter()
    if at_once:
        processes = [train(place / str(run), steps, 1) for run in range(runs)]
        codes = [process.wait() for process in processes]
    else:
        codes = [train(place / str(run), steps, cores).wait() for run in range(runs)]
    if any(codes):
        sys.exit(f"a run ended with {codes}")
    return time.perf_counter() - started


def train(out: Path, steps: int, threads: int) -> subprocess.Popen[bytes]:
    command = ["train", "gpt3:nano", "--steps", str(steps), "--batch-tokens", str(TOKENS_A_STEP), "--out", str(out)]
    settings = [
        "--set",
        f"run.eval_every={steps}",
        "--set",
        f"run.checkpoint_every={steps}",
        "--set",
        "run.monitor=false",
    ]
    settings += ["--set", "run.eval_tokens=2048"]
    return subprocess.Popen(
        [sys.executable, "-m", "weightdecay", *command, *settings],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()
