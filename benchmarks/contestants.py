"""What benchmarks/train_step.py lets run beside each other: a shape, batches of it, and who takes steps on them.

Nothing of weightdecay is needed here, so that a peer can run in a Python that does not have it (`apart`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LR, WEIGHT_DECAY, BETAS, CLIP = 6e-4, 0.1, (0.9, 0.95), 1.0

Batch = tuple[Tensor, Tensor]
Weights = Mapping[str, Tensor]

# Takes a step and gives the loss before it, which may still be on its way: reading it would wait for the device.
Step = Callable[[Batch], Tensor | float]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}


@dataclass(frozen=True)
class Shape:
    """A model of nanoGPT's architecture, and a batch.

    Args:
        repeats: steps in a round.
    """

    layers: int
    width: int
    heads: int
    context: int
    sequences: int
    vocabulary: int
    repeats: int = 1

    @property
    def tokens(self) -> int:
        """In a step."""
        return self.context * self.sequences


SHAPES = {
    "base": Shape(6, 384, 6, 256, 16, 256),
    "small": Shape(4, 128, 4, 64, 12, 256, repeats=10),
    "gpt2": Shape(12, 768, 12, 1024, 1, 50_304),
    "gpt2x16": Shape(12, 768, 12, 1024, 16, 50_304),  # keeps a GPU busy
}


@dataclass(frozen=True)
class Taken:
    """Steps that were taken.

    Attributes:
        losses: before each of them.
        seconds: a step, on average.
    """

    losses: list[float]
    seconds: float


class Runner(Protocol):
    """Takes a step on each batch."""

    def __call__(self, batches: Sequence[Batch]) -> Taken: ...

    def close(self) -> None:
        """No more steps come."""


@dataclass(frozen=True)
class Contestant:
    """Somebody's model in somebody's loop.

    Args:
        program: whose it is.
        make: from a shape and our initial weights to what takes its steps.
    """

    name: str
    program: str
    make: Callable[[Shape, Weights], Runner]


@dataclass(frozen=True)
class Setting:
    """Where all run, by which clock (of `CLOCKS`), and on how many threads."""

    device: torch.device
    clock: str = "wall"
    threads: int = 1

    def prepare(self) -> None:
        """What holds for the whole process, and for all contestants in it."""
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True  # as nanoGPT's train.py has it


class Here:
    """Steps taken in this process."""

    def __init__(self, step: Step, setting: Setting) -> None:
        self._step, self._setting = step, setting

    def __call__(self, batches: Sequence[Batch]) -> Taken:
        clock = CLOCKS[self._setting.clock]
        begin = clock()
        losses = [self._step(batch) for batch in batches]
        if self._setting.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = (clock() - begin) / len(batches)
        return Taken([float(loss) for loss in losses], seconds)

    def close(self) -> None:
        del self._step
