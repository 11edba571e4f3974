"""How fast a training step is on this machine, how near to what its matrix products alone would take, and where the
time goes.

    model FLOP per token = 6·N + 12·Σ over layers of (positions seen, on average)·heads·head_dim
    share of the limit   = model FLOP/s of the step ÷ FLOP/s of its own matrix products, run by themselves

N counts the weights of all matrices, with the head and without look-up tables; of experts, those that a token goes to.
A layer without a window sees T/2 positions on average, which makes 6·T·d_model of the second term.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from weightdecay.kernels.products import products_by_torch
from weightdecay.models.decoder import GPT
from weightdecay.models.experts import Experts
from weightdecay.models.objective import Objective
from weightdecay.training.distributed import Ranks
from weightdecay.training.step import StepResult, take_step

Batch = tuple[Tensor, Tensor]
Clock = Callable[[], float]

# Which part of a step an operation belongs to, by what its name holds; the first that fits.
_PARTS: dict[str, tuple[str, ...]] = {
    "matrix products": ("aten::mm", "aten::addmm", "kernel:product", "kernel:input_gradient", "kernel:weight_gradient"),
    "attention": (
        "kernel:causal", "kernel:softmax", "kernel:split_heads", "kernel:move_rows", "kernel:turn_heads",
        "scaled_dot_product", "flash", "bmm", "aten::_softmax",
    ),
    "loss": ("_HeadLoss", "log_softmax", "nll_loss", "cross_entropy"),
    "optimizer": ("_fused_adam", "_foreach", "linalg_vector_norm", "kernel:sums_of_squares", "Optimizer."),
    "norms and elementwise": (
        "kernel:", "layer_norm", "rms_norm", "gelu", "silu", "relu",
        "aten::add", "aten::mul", "aten::sub", "aten::sum", "aten::tanh", "aten::neg", "aten::div", "aten::pow",
    ),
    "casts and copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::fill_", "aten::zero_", "aten::index",
                         "embedding"),
}  # fmt: skip
REST = "the rest"


@dataclass
class OwnStep:
    """Our training step on batches that somebody else gives.

    Args:
        clip: the largest norm of the gradient.
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype
    rows_at_once: int
    clip: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    taken: int = 0

    def __post_init__(self) -> None:
        self.model.to(self.device).train()
        self._objective = Objective(self.model)

    def __call__(self, batch: Batch) -> float:
        """Take a step; the loss before it."""
        tokens_BT, targets_BT = (part.to(self.device) for part in batch)
        parts = zip(torch.split(tokens_BT, self.rows_at_once), torch.split(targets_BT, self.rows_at_once), strict=True)
        result: StepResult = take_step(
            self._objective,
            self.optimizer,
            list(parts),
            sequences=len(tokens_BT),
            ranks=Ranks(0, 1, self.device),
            dtype=self.dtype,
            grad_clip=self.clip,
            seed=(0, self.taken),
        )
        self.taken += 1
        return result.loss


def model_flop_per_token(model: GPT) -> float:
    """What a step has to compute for each token, however it does it."""
    config = model.config
    weights = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    for part in model.modules():
        if isinstance(part, Experts) and config.experts is not None:
            share = config.experts.per_token / config.experts.n_experts
            weights += int(share * (part.expert_up.numel() + part.expert_down.numel()))
    heads = config.attention.n_heads * config.attention.head_dim
    seen = sum(_seen(config.context, config.window_of(layer)) for layer in range(config.n_layers))
    return 6.0 * weights + 12.0 * seen * heads


def _seen(context: int, window: int) -> float:
    """Positions that one attends to, on average over a sequence."""
    if not 0 < window < context:
        return context / 2
    return window - window**2 / (2 * context)


def matrix_products(step: Callable[[Batch], float], batch: Batch) -> Counter[tuple[Any, ...]]:
    """The products of two matrices that a step makes: how often each shape, layout and dtype."""
    recorder = _Products()
    with recorder, products_by_torch():
        step(batch)
    return recorder.found


class _Products(TorchDispatchMode):
    """Keeps shape, strides and dtype of the factors of every matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            key = tuple((tuple(x.shape), tuple(x.stride()), x.dtype, x.device) for x in (left, right))
            self.found[key] += 1
        return func(*args, **(kwargs or {}))


def product_rate(products: Counter[tuple[Any, ...]], clock: Clock = time.perf_counter, rounds: int = 5) -> float:
    """FLOP/s of a step's matrix products by themselves, each in its own layout: medians over interleaved rounds."""
    pairs = {}
    for key in products:
        factors = [
            torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()
            for shape, stride, dtype, device in key
        ]
        pairs[key] = (factors, torch.mm(*factors))
    seconds: dict[Any, list[float]] = {key: [] for key in products}
    for _ in range(rounds + 1):
        for key, (factors, out) in pairs.items():
            seconds[key].append(_seconds(lambda f=factors, o=out: torch.mm(*f, out=o), clock))  # type: ignore[misc]

    flop: float = sum(count * 2.0 * math.prod(key[0][0]) * key[1][0][1] for key, count in products.items())
    whole = sum(count * statistics.median(seconds[key][1:]) for key, count in products.items())
    return flop / whole


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    """How long something takes, a device's own time included; short work is repeated."""
    begin, times = clock(), 0
    while True:
        work()
        times += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if (spent := clock() - begin) > 2e-3:
            return spent / times


def seconds_by_part(step: Callable[[], object], steps: int = 3) -> dict[str, float]:
    """Where the seconds of a step go, on the processor, by a profile.

    What happens between torch's operations, in Python, is a part of the rest.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        whole = (time.perf_counter() - begin) / steps

    parts = dict.fromkeys([*_PARTS, REST], 0.0)
    for event in profiled.key_averages():
        parts[_part_of(event.key)] += event.self_cpu_time_total / 1e6 / steps
    parts[REST] += max(0.0, whole - sum(parts.values()))
    return parts


def _part_of(operation: str) -> str:
    return next((part for part, names in _PARTS.items() if any(name in operation for name in names)), REST)


def random_batches(vocabulary: int, context: int, sequences: int, seed: int = 0) -> Iterator[Batch]:
    """Batches for ever, of tokens whose losses can fall: each is likely to follow the one before it in the alphabet."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        begin = torch.randint(vocabulary, (sequences, 1), generator=generator)
        hops = torch.randint(4, (sequences, context + 1), generator=generator)
        tokens = (begin + hops.cumsum(dim=1)) % vocabulary
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
