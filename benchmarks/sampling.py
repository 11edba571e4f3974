"""Sampling 256 tokens at `mini`, with keys and values kept and without, interleaved, ratios of medians."""

from __future__ import annotations

import statistics
import time

import torch

from weightdecay.models.decoder import GPT
from weightdecay.models.generate import generate
from weightdecay.recipes.schema import recipe

SYSTEMS = ("gpt3", "llama2", "mistral", "mixtral", "deepseek-v3")
ROUNDS = 3
TOKENS = 255  # and one of the prompt: the whole context of a mini


def main() -> None:
    for system in SYSTEMS:
        torch.manual_seed(0)
        model = GPT(recipe(f"{system}:mini").model).eval()
        times: dict[bool, list[float]] = {True: [], False: []}
        texts: dict[bool, list[int]] = {}
        for _ in range(ROUNDS):
            for cached in (True, False):
                started = time.perf_counter()
                texts[cached] = list(generate(model, [0], max_tokens=TOKENS, seed=0, cached=cached))
                times[cached].append(time.perf_counter() - started)
        with_cache, without = statistics.median(times[True]), statistics.median(times[False])
        print(
            f"{system}:mini: {TOKENS / with_cache:.0f} tokens/s with the cache, {TOKENS / without:.0f} without, "
            f"{without / with_cache:.1f} times; same text: {texts[True] == texts[False]}"
        )


if __name__ == "__main__":
    main()
