"""What planning costs: per 1,000 tensors, without and with a trace; the whole command on Llama-3.1-405B; denoisers.

    .venv/bin/python benchmarks/planning.py            # the last part where diffusers is installed

Processor seconds of this process, medians; the command in a process of its own with its peak memory. All models stand
on the meta device.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightdecay
from weightdecay.planning.model_sources import open_source

LLAMA_405B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248,
    "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
ROUNDS = 7


def processor_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median, the first time left out."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken[1:])


def denoisers() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Published ones, as their classes build them."""
    diffusers: Any = importlib.import_module("diffusers")

    yield "Stable Diffusion 1.5", lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768)
    yield "Flux", lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True)
    yield "Wan 14B", diffusers.WanTransformer3DModel
    yield "Stable Video Diffusion", diffusers.UNetSpatioTemporalConditionModel


def plan_a_large_language_model() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_405B))
        source = open_source(folder)
        assert source is not None
        assert isinstance(source.model, nn.Module)
        model = source.model
        tensors = len(weightdecay.plan(model, trace=False))
        plain = processor_seconds(lambda: weightdecay.plan(model, trace=False))
        traced = processor_seconds(lambda: weightdecay.plan(model))
        print(f"Llama-3.1-405B, {tensors} tensors")
        print(f"plan without trace: {1e3 * plain:.1f} ms, {1e3 * plain / tensors * 1000:.1f} ms per 1,000 tensors")
        print(f"plan with trace:    {1e3 * traced:.1f} ms")

        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "weightdecay", "plan", folder], check=True, stdout=subprocess.DEVNULL)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"the whole command:  {time.perf_counter() - started:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of "
            f"processor, {used.ru_maxrss / 1024:.0f} MB"
        )


def plan_denoisers() -> None:
    for name, build in denoisers():
        with torch.device("meta"):
            model = build()
        plan = weightdecay.plan(model)
        taken = processor_seconds(lambda model=model: weightdecay.plan(model), rounds=4)  # type: ignore[misc]
        seen = sum("traced" in line.evidence for line in plan)
        elements = sum(line.numel for line in plan)
        print(f"{name}: {elements / 1e9:.1f} B elements, {len(plan)} tensors, {seen} of them traced: {taken:.1f} s")


def main() -> None:
    torch.set_num_threads(1)
    plan_a_large_language_model()
    try:
        plan_denoisers()
    except ImportError as error:
        print(f"no denoisers: {error}")


if __name__ == "__main__":
    main()
