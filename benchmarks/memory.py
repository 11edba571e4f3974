"""The memory that is told before a run beside what a run takes: peaks of whole processes.

    .venv/bin/python -m benchmarks.memory                       five recipes at two sizes, GPT-2, checkpointing
    .venv/bin/python -m benchmarks.memory gpt3:nano llama2:nano

Told is what `weightdecay train --dry-run --json` says, taken is the most that a `weightdecay train` of three steps, an
evaluation and a checkpoint had resident. Nothing heavy is imported here: what a process inherits of its parent's peak
must stay below its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKPOINTING = ("--set", "run.activation_checkpointing=true")
# Of as many words as GPT-2 has.
GPT2 = (
    "gpt2:124m", "--tokenizer", "bpe:50257", "--batch-tokens", "2048",
    "--set", "run.micro_batch_tokens=1024",
)  # fmt: skip
CASES: dict[str, tuple[str, ...]] = {
    **{f"{name}:{size}": (f"{name}:{size}",)
       for size in ("nano", "mini") for name in ("gpt2", "gpt3", "llama2", "pythia", "nanochat")},
    "gpt2:mini, checkpointing": ("gpt2:mini", *CHECKPOINTING),
    "gpt2:124m": GPT2,
    "gpt2:124m, checkpointing": (*GPT2, *CHECKPOINTING),
}  # fmt: skip
SHORT = ("--steps", "3", "--set", "schedule.warmup_steps=1", "--set", "run.eval_tokens=32768")


def told_bytes(arguments: tuple[str, ...]) -> int:
    """What a dry run says."""
    done = subprocess.run([*command(arguments), "--dry-run", "--json"], check=True, capture_output=True)
    return int(json.loads(done.stdout)["needs"]["memory_bytes"]["total"])


def taken_bytes(arguments: tuple[str, ...]) -> int:
    """The most that a run had resident."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command(arguments), "--out", str(Path(folder) / "run")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)}: ended with {process.returncode}")
    return used.ru_maxrss * 1024


def command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "weightdecay", "train", *arguments, *SHORT]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {'; '.join(CASES)}; or any recipe")
    chosen = options.parse_args().cases or list(CASES)

    print("| | told | taken | told ÷ taken |\n|---|---:|---:|---:|")
    for name in chosen:
        arguments = CASES.get(name, (name,))
        told, taken = told_bytes(arguments), taken_bytes(arguments)
        print(f"| {name} | {told / 1e6:,.0f} MB | {taken / 1e6:,.0f} MB | {told / taken:.2f} |", flush=True)


if __name__ == "__main__":
    main()
