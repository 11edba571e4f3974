"""Our training step beside nanoGPT's, litgpt's and transformers', as ratios of medians over interleaved rounds.

Every round takes one step (of small models several) of each contestant in turn, so that a slow minute of the machine
slows all of them alike; a ratio is the median over the rounds of the peer's time over ours. The same architecture,
batches, AdamW settings and clipping; from our initial weights where a peer can take them.

    .venv/bin/python -m benchmarks.train_step --nanogpt ../nanoGPT                  base, small and gpt2
    .venv/bin/python -m benchmarks.train_step --python litgpt=../litgpt/bin/python  a peer from another environment
    .venv/bin/python -m benchmarks.train_step --shapes --recipes gpt2 palm mixtral  nano recipes, beside autocast
    .venv/bin/python -m benchmarks.train_step --losses 200 --shapes small           equal losses
    .venv/bin/python -m benchmarks.train_step --memory gpt2                         peak memory over that after imports
    .venv/bin/python -m benchmarks.train_step --device cuda --shapes gpt2 gpt2x16
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.apart import Apart, ApartError, contestants_in
from benchmarks.contestants import CLOCKS, SHAPES, Batch, Contestant, Here, Runner, Setting
from benchmarks.machine import described
from benchmarks.own import PROGRAM, SETTINGS, configuration, initial_weights, own_contestants, own_step
from benchmarks.peers import PROGRAMS, peers
from weightdecay.kernels.memory import keep_freed_memory
from weightdecay.recipes.schema import recipe
from weightdecay.training.speed import (
    matrix_products,
    model_flop_per_token,
    product_rate,
    random_batches,
    seconds_by_part,
)

RECIPES = ("gpt2", "gpt3", "llama1", "llama2", "palm", "palm --as-published", "grok1", "mistral", "mixtral")
RECIPE_TOKENS = 1_024


@dataclass
class Result:
    """A contestant's rounds."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def raced(runners: Mapping[str, Runner], batches: Iterator[Batch], rounds: int, repeats: int) -> list[Result]:
    """Seconds of a step of each, round by round; the first round is not counted."""
    results = {name: Result(name) for name in runners}
    for number in range(rounds + 1):
        together = list(islice(batches, repeats))
        for name, runner in runners.items():
            taken = runner(together)
            if number:
                results[name].seconds.append(taken.seconds)
    return list(results.values())


def row(result: Result, mine: Result, tokens: int, flop: float, limit: float) -> dict[str, Any]:
    ratios = [theirs / own for theirs, own in zip(result.seconds, mine.seconds, strict=True)]
    return {
        "contestant": result.name,
        "tokens_per_s": tokens / result.median,
        "seconds": result.median,
        "model_flop_per_s": tokens * flop / result.median,
        "ours_is_faster_by": statistics.median(ratios),
        "share_of_limit": tokens * flop / result.median / limit,
    }


def measure_shape(name: str, contestants: list[Contestant], setting: Setting, rounds: int) -> dict[str, Any]:
    """Every contestant's speed at a shape, and what our step could come to."""
    shape = SHAPES[name]
    config = configuration(shape)
    weights = initial_weights(config)
    batches = random_batches(shape.vocabulary, shape.context, shape.sequences)
    with ExitStack() as stack:
        runners = {one.name: stack.enter_context(closing(one.make(shape, weights))) for one in contestants}
        results = raced(runners, batches, rounds, shape.repeats)
        del runners
    mine = next(result for result in results if result.name == "ours")

    step, batch = own_step(config, weights, setting.device), next(batches)
    flop = model_flop_per_token(step.model)
    limit = product_rate(matrix_products(step, batch), CLOCKS[setting.clock])
    step(batch)
    return {
        "shape": name,
        **asdict(shape),
        "limit_flop_per_s": limit,
        "model_flop_per_token": flop,
        "rows": [row(result, mine, shape.tokens, flop, limit) for result in results],
        "seconds_by_part": seconds_by_part(lambda: step(batch)),
    }


def measure_recipe(name: str, setting: Setting, rounds: int) -> dict[str, Any]:
    """A nano recipe's step as it is beside autocast, which is how trainings computed before; same optimizer."""
    system, _, published = name.partition(" ")
    chosen = recipe(system, size="nano")
    config = (chosen.as_published() if published else chosen).config({"run.steps": 500}).model
    weights = initial_weights(config)
    runners = {
        name: Here(own_step(config, weights, setting.device, SETTINGS[name]), setting)
        for name in ("ours", "ours, autocast")
    }
    batches = random_batches(config.vocab_size, config.context, max(1, RECIPE_TOKENS // config.context))
    after, before = raced(runners, batches, rounds, 5)
    ratios = [old / new for old, new in zip(before.seconds, after.seconds, strict=True)]
    return {"recipe": name, "tokens_per_s": RECIPE_TOKENS / after.median, "faster_by": statistics.median(ratios)}


def final_losses(name: str, contestants: list[Contestant], count: int) -> dict[str, Any]:
    """The mean loss of the last tenth of so many steps, from the same weights and batches."""
    shape = SHAPES[name]
    weights = initial_weights(configuration(shape))
    found = {}
    for one in contestants:
        batches = random_batches(shape.vocabulary, shape.context, shape.sequences)
        with closing(one.make(shape, weights)) as runner:
            losses = [loss for _ in range(count) for loss in runner([next(batches)]).losses]
        found[one.name] = statistics.fmean(losses[-max(1, count // 10) :])
    return {"shape": name, "steps": count, "loss": found}


def peak_bytes(name: str, contestants: list[Contestant]) -> dict[str, Any]:
    """The most memory, over that after imports, of processes that take three steps and nothing else."""
    shape = SHAPES[name]
    weights = initial_weights(configuration(shape))
    batches = list(islice(random_batches(shape.vocabulary, shape.context, shape.sequences), 3))
    found = {}
    for one in contestants:
        with closing(one.make(shape, weights)) as runner:
            assert isinstance(runner, Apart)
            runner(batches)
            found[one.name] = runner.peak_bytes()
    return {"shape": name, "bytes": found}


def chosen_contestants(
    options: argparse.Namespace, setting: Setting, say: Callable[[str], None], *, alone: bool
) -> list[Contestant]:
    """Ours first; each program in the Python that was given for it, or in this one.

    Args:
        alone: each in a process of its own, whose memory can be asked for.
    """
    found: list[Contestant] = []
    for program in (PROGRAM, *PROGRAMS):
        python = options.python.get(program, sys.executable if alone else "")
        if python:
            found += contestants_in(
                python, [program], options.nanogpt, setting, say, compiled=options.compiled, keeps_memory=not alone
            )
        elif program == PROGRAM:
            found += own_contestants(setting, compiled=options.compiled, alone=False)
        else:
            found += peers((program,), options.nanogpt, setting, say, compiled=options.compiled)

    wanted = [one for one in found if not options.only or any(part in one.name for part in options.only)]
    wanted = [one for one in wanted if not any(part in one.name for part in options.without)]
    return [one for one in found if one.name == "ours" or one in wanted]


def markdown(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['rounds']} rounds."
    yield from (f"{words}." for words in found["said"])
    for shape in found["shapes"]:
        size = f"{shape['layers']} × {shape['width']}, context {shape['context']}, {shape['sequences']} sequences"
        yield f"\n### `{shape['shape']}`: {size}, {shape['vocabulary']:,} words\n"
        yield "| | tokens/s | ms a step | model GFLOP/s | ours is faster by | share of the limit |"
        yield "|---|---:|---:|---:|---:|---:|"
        for one in shape["rows"]:
            speed = f"{one['tokens_per_s']:,.0f} | {1e3 * one['seconds']:,.1f} | {one['model_flop_per_s'] / 1e9:,.0f}"
            yield f"| {one['contestant']} | {speed} | {one['ours_is_faster_by']:.2f} | {one['share_of_limit']:.0%} |"
        whole = sum(shape["seconds_by_part"].values())
        parts = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in shape["seconds_by_part"].items())
        yield f"\nLimit, torch's products: {shape['limit_flop_per_s'] / 1e9:,.0f} GFLOP/s. Ours by part: {parts}."
    if found["recipes"]:
        yield "\n| recipe, nano | tokens/s | faster than autocast by |\n|---|---:|---:|"
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


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--python", action="append", default=[], metavar="PROGRAM=PYTHON",
                        help=f"the Python in which a peer is installed, for one of {', '.join(PROGRAMS)}")  # fmt: skip
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=["base", "small", "gpt2"])
    parser.add_argument("--recipes", nargs="*", choices=[*RECIPES, "all"], default=[])
    parser.add_argument("--losses", type=int, default=0, help="train so many steps instead of timing them")
    parser.add_argument("--memory", nargs="*", choices=list(SHAPES), default=[])
    parser.add_argument("--only", nargs="*", default=[], help="contestants whose name holds one of these, beside ours")
    parser.add_argument("--without", nargs="*", default=[], help="no contestants whose name holds one of these")
    parser.add_argument("--compiled", action="store_true", help="models through torch.compile, too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: a busy machine")
    parser.add_argument("--json", type=Path, help="write what was measured there, too")
    options = parser.parse_args()

    pairs = [one.partition("=") for one in options.python]
    if wrong := [program for program, _, python in pairs if program not in PROGRAMS or not python]:
        parser.error(f"--python {wrong[0]}: give PROGRAM=PYTHON, with one of {', '.join(PROGRAMS)}")
    options.python = {program: python for program, _, python in pairs}
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    return options


def main() -> None:
    options = parsed()
    setting = Setting(torch.device(options.device), options.clock, options.threads)
    setting.prepare()
    if setting.device.type == "cpu":
        keep_freed_memory()

    said: list[str] = []

    def say(words: str) -> None:
        """A line for people, beside what is measured, and in it."""
        said.append(words)
        print(words, file=sys.stderr, flush=True)

    contestants = chosen_contestants(options, setting, say, alone=bool(options.memory))
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": described(setting.device),
        "threads": options.threads,
        "clock": options.clock,
        "rounds": options.rounds,
        "said": said,
        "shapes": [],
        "recipes": [],
        "losses": [],
        "memory": [],
    }
    names = list(RECIPES) if "all" in options.recipes else options.recipes
    try:
        for name in options.memory or options.shapes:
            print(f"{name} …", file=sys.stderr, flush=True)
            if options.memory:
                found["memory"].append(peak_bytes(name, contestants))
            elif options.losses:
                found["losses"].append(final_losses(name, contestants, options.losses))
            else:
                found["shapes"].append(measure_shape(name, contestants, setting, options.rounds))
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            found["recipes"].append(measure_recipe(name, setting, options.rounds))
    except ApartError as error:
        sys.exit(f"error: {error}")
    print("\n".join(markdown(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
