"""Our training step beside nanoGPT's, litgpt's and transformers', as ratios of medians over interleaved rounds.

Every round takes one step (of small models several) of each contestant in turn, so that a slow minute of the machine
slows all of them alike; a ratio is the median over the rounds of the peer's time over ours. The same architecture,
batches, AdamW settings and clipping; from our initial weights where a peer can take them.

    .venv/bin/python -m benchmarks.train_step --nanogpt ../nanoGPT                  base, small and gpt2
    .venv/bin/python -m benchmarks.train_step --shapes --recipes gpt2 palm mixtral  nano recipes, beside autocast
    .venv/bin/python -m benchmarks.train_step --losses 200 --shapes small           equal losses
    .venv/bin/python -m benchmarks.train_step --memory gpt2                         peak memory over that after imports
    .venv/bin/python -m benchmarks.train_step --device cuda
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import BETAS, CLIP, LR, WEIGHT_DECAY, Batch, Peer, Step, Weights, initial_weights, peers
from weightdecay.kernels.memory import keep_freed_memory
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.optim.adamw import AdamW
from weightdecay.planning.plan import plan
from weightdecay.recipes.schema import recipe
from weightdecay.training.speed import (
    OwnStep,
    matrix_products,
    model_flop_per_token,
    product_rate,
    random_batches,
    seconds_by_part,
)


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    layers: int
    width: int
    heads: int
    context: int
    sequences: int
    vocabulary: int
    repeats: int = 1  # steps in a round

    def config(self) -> ModelConfig:
        """nanoGPT's architecture."""
        return ModelConfig(
            vocab_size=self.vocabulary, context=self.context, n_layers=self.layers, d_model=self.width,
            n_heads=self.heads, feedforward="gelu",
        )  # fmt: skip


SHAPES = {
    "base": Shape(6, 384, 6, 256, 16, 256),
    "small": Shape(4, 128, 4, 64, 12, 256, repeats=10),
    "gpt2": Shape(12, 768, 12, 1024, 1, 50_304),
}
RECIPES = ("gpt2", "gpt3", "llama1", "llama2", "palm", "palm --as-published", "grok1", "mistral", "mixtral")
RECIPE_TOKENS = 1_024


@dataclass
class Result:
    """A contestant's steps."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def ours(
    config: ModelConfig, weights: Weights, dtype: torch.dtype, arithmetic: Any, device: torch.device,
    recomputes: bool = False,
) -> OwnStep:  # fmt: skip
    model = GPT(config)
    model.arithmetic, model.recomputes = arithmetic, recomputes
    tensors = model.tensors()
    with torch.no_grad():
        for name, tensor in weights.items():
            tensors[name].copy_(tensor)
    model.to(device)
    optimizer = AdamW(plan(model, weight_decay=WEIGHT_DECAY), lr=LR, betas=BETAS, fused=True)
    return OwnStep(model, optimizer, dtype, rows_at_once=1 << 20, clip=CLIP, device=device)


def own_contestants(device: torch.device) -> Iterator[Peer]:
    settings = {
        "ours": (torch.bfloat16, "working", False),
        "ours, activation checkpointing": (torch.bfloat16, "working", True),
        "ours, autocast": (torch.bfloat16, "autocast", False),
        "ours, float32": (torch.float32, "working", False),
    }
    for name, setting in settings.items():

        def make(config: ModelConfig, weights: Weights, setting: Any = setting) -> Step:
            dtype, arithmetic, recomputes = setting
            return ours(config, weights, dtype, arithmetic, device, recomputes)

        yield Peer(name, "ours", make)


def raced(steps: dict[str, Step], batches: Iterator[Batch], rounds: int, repeats: int, clock: Any) -> list[Result]:
    """Seconds of a step of each, round by round; the first round is not counted."""
    results = {name: Result(name) for name in steps}
    for number in range(rounds + 1):
        together = list(islice(batches, repeats))
        for name, step in steps.items():
            begin = clock()
            for batch in together:
                step(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                results[name].seconds.append((clock() - begin) / repeats)
    return list(results.values())


def row(result: Result, mine: Result, tokens: int, flop: float, limit: float) -> dict[str, Any]:
    ratios = [theirs / own for theirs, own in zip(result.seconds, mine.seconds, strict=True)]
    return {
        "contestant": result.name,
        "tokens_per_s": tokens / result.median,
        "seconds": result.median,
        "ours_is_faster_by": statistics.median(ratios),
        "share_of_limit": tokens * flop / result.median / limit,
    }


def measure_shape(name: str, contestants: list[Peer], options: argparse.Namespace, clock: Any) -> dict[str, Any]:
    shape = SHAPES[name]
    config, weights = shape.config(), initial_weights(shape.config())
    batches = random_batches(shape.vocabulary, shape.context, shape.sequences)
    steps = {one.name: one.make(config, weights) for one in contestants}
    own = steps["ours"]
    assert isinstance(own, OwnStep)
    results = raced(steps, batches, options.rounds, shape.repeats, clock)
    mine = next(result for result in results if result.name == "ours")

    batch, flop = next(batches), model_flop_per_token(own.model)
    limit = product_rate(matrix_products(own, batch), clock)
    tokens = shape.context * shape.sequences
    return {
        "shape": name,
        **asdict(shape),
        "limit_flop_per_s": limit,
        "model_flop_per_token": flop,
        "rows": [row(result, mine, tokens, flop, limit) for result in results],
        "seconds_by_part": seconds_by_part(lambda: own(batch)),
    }


def measure_recipe(name: str, options: argparse.Namespace, clock: Any) -> dict[str, Any]:
    """A nano recipe's step as it is beside autocast, which is how trainings computed before; same optimizer."""
    system, _, published = name.partition(" ")
    chosen = recipe(system, size="nano")
    config = (chosen.as_published() if published else chosen).config({"run.steps": 500}).model
    weights = initial_weights(config)
    device = torch.device(options.device)
    steps: dict[str, Step] = {
        "ours": ours(config, weights, torch.bfloat16, "working", device),
        "ours, autocast": ours(config, weights, torch.bfloat16, "autocast", device),
    }
    batches = random_batches(config.vocab_size, config.context, max(1, RECIPE_TOKENS // config.context))
    before, after = (
        next(result for result in raced(steps, batches, options.rounds, 5, clock) if result.name == which)
        for which in ("ours, autocast", "ours")
    )
    ratios = [old / new for old, new in zip(before.seconds, after.seconds, strict=True)]
    return {"recipe": name, "tokens_per_s": RECIPE_TOKENS / after.median, "faster_by": statistics.median(ratios)}


def final_losses(name: str, contestants: list[Peer], count: int) -> dict[str, Any]:
    """The mean loss of the last tenth of so many steps, from the same weights and batches."""
    shape = SHAPES[name]
    weights = initial_weights(shape.config())
    found = {}
    for one in contestants:
        step = one.make(shape.config(), weights)
        batches = islice(random_batches(shape.vocabulary, shape.context, shape.sequences), count)
        losses = [step(batch) for batch in batches]
        found[one.name] = statistics.fmean(losses[-max(1, count // 10) :])
    return {"shape": name, "steps": count, "loss": found}


def peak_bytes(shape: str, contestant: str, options: argparse.Namespace) -> int:
    """The most memory over that after imports, of a process that takes three steps and nothing else."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--alone", shape, contestant, "--device", options.device]
    command += ["--nanogpt", str(options.nanogpt)] if options.nanogpt else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def take_alone(shape: str, contestants: list[Peer], which: str) -> None:
    if which.startswith("ours"):
        keep_freed_memory()  # as every training of ours does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chosen = SHAPES[shape]
    step = next(one for one in contestants if one.name == which).make(chosen.config(), initial_weights(chosen.config()))
    for batch in islice(random_batches(chosen.vocabulary, chosen.context, chosen.sequences), 3):
        step(batch)
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def markdown(found: dict[str, Any]) -> Iterator[str]:
    for shape in found["shapes"]:
        size = f"{shape['layers']} × {shape['width']}, context {shape['context']}, {shape['sequences']} sequences"
        yield f"\n### `{shape['shape']}`: {size}, {shape['vocabulary']:,} words\n"
        yield "| | tokens/s | ms a step | ours is faster by | share of the limit |\n|---|---|---|---|---|"
        for one in shape["rows"]:
            yield (
                f"| {one['contestant']} | {one['tokens_per_s']:,.0f} | {1e3 * one['seconds']:,.1f} "
                f"| {one['ours_is_faster_by']:.2f} | {one['share_of_limit']:.0%} |"
            )
        whole = sum(shape["seconds_by_part"].values())
        parts = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in shape["seconds_by_part"].items())
        yield f"\nLimit {shape['limit_flop_per_s'] / 1e9:,.0f} GFLOP/s. Ours by part: {parts}."
    if found["recipes"]:
        yield "\n| recipe, nano | tokens/s | faster than autocast by |\n|---|---|---|"
        for one in found["recipes"]:
            yield f"| {one['recipe']} | {one['tokens_per_s']:,.0f} | {one['faster_by']:.2f} |"
    for one in found["losses"]:
        yield f"\nLoss after {one['steps']} steps of `{one['shape']}`: " + ", ".join(
            f"{name} {loss:.4f}" for name, loss in one["loss"].items()
        )
    for one in found["memory"]:
        yield f"\nPeak memory of `{one['shape']}` over that after imports: " + ", ".join(
            f"{name} {size / 1e9:.2f} GB" for name, size in one["bytes"].items()
        )


def say(words: str) -> None:
    """A line for people, beside what is measured."""
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--recipes", nargs="*", choices=[*RECIPES, "all"], default=[])
    parser.add_argument("--losses", type=int, default=0, help="train so many steps instead of timing them")
    parser.add_argument("--memory", nargs="*", choices=list(SHAPES), default=[])
    parser.add_argument("--only", default="", help="contestants whose name holds this, beside ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall", help="process: a busy machine")
    parser.add_argument("--json", type=Path, help="write what was measured there, too")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: there is no GPU here")
    torch.set_num_threads(options.threads)
    clock: Callable[[], float] = time.perf_counter if options.clock == "wall" else time.process_time
    contestants = [*own_contestants(device), *peers(options.nanogpt, device, say)]
    contestants = [one for one in contestants if one.name == "ours" or options.only in one.name]
    if options.alone:
        take_alone(options.alone[0], contestants, options.alone[1])
        return

    if device.type == "cpu":
        keep_freed_memory()
    names = list(RECIPES) if "all" in options.recipes else options.recipes
    timed = [] if options.losses or options.memory else options.shapes
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": options.threads,
        "clock": options.clock,
        "rounds": options.rounds,
        "shapes": [],
        "recipes": [],
        "losses": [final_losses(name, contestants, options.losses) for name in options.shapes if options.losses],
        "memory": [
            {"shape": name, "bytes": {one.name: peak_bytes(name, one.name, options) for one in contestants}}
            for name in options.memory
        ],
    }
    for name in timed:
        say(f"{name} …")
        found["shapes"].append(measure_shape(name, contestants, options, clock))
    for name in names:
        say(f"{name} …")
        found["recipes"].append(measure_recipe(name, options, clock))
    print("\n".join(markdown(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
