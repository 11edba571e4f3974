"""In which precision a run multiplies where nobody asks for one.

A recipe's bfloat16 is faster where the processor has instructions for it, and up to a hundred times slower where it has
none and the products are emulated. Which it is, is seen from a product of each kind rather than read from a list.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator

import torch

from weightdecay.probing.isolation import on_one_thread
from weightdecay.recipes.settings import TrainConfig

_WIDTH = 256
_ROUNDS = 5

# A thread's own time, where it is told finely enough: others' programs do not count.
_CLOCK = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter


@functools.cache
def bfloat16_costs() -> float:
    """How long a bfloat16 product takes here, with that of float32 as 1; infinite on a GPU that has none."""
    if torch.cuda.is_available():
        return 0.0 if torch.cuda.is_bf16_supported(including_emulation=False) else math.inf
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    # Several threads would wait for each other where other programs run, and it is not their number that is asked for.
    with on_one_thread():
        for _ in range(_ROUNDS + 1):
            for dtype, taken in seconds.items():
                factor = torch.ones(_WIDTH, _WIDTH, dtype=dtype)
                begin = _CLOCK()
                torch.mm(factor, factor)
                taken.append(_CLOCK() - begin)
    single, half = (min(taken[1:]) for taken in seconds.values())
    return half / single


def with_precision(config: TrainConfig, costs: float | None = None) -> TrainConfig:
    """`auto` made bfloat16, or float32 where that is faster.

    Args:
        costs: of bfloat16, where it is known, see `bfloat16_costs`.
    """
    if config.run.dtype != "auto":
        return config
    costs = bfloat16_costs() if costs is None else costs
    return config.resolved(run__dtype="float32" if costs > 1 else "bfloat16")


def remarks(asked: str, taken: str) -> Iterator[str]:
    """What to say of a run's precision, where bfloat16 is slower here: which was asked for, and which is taken."""
    if asked == "float32" or (costs := bfloat16_costs()) <= 1:
        return
    why = f"take {costs:.3g} times as long here" if math.isfinite(costs) else "are not to be had on this GPU"
    if taken == "float32":
        yield f"precision: float32, for bfloat16 products {why}; --dtype bfloat16 takes them all the same"
    else:
        yield f"remark: bfloat16 products {why}: --dtype float32 is faster"
