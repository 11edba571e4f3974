"""The memory that a run will need, found out without having it: one step of the real model on tensors without values.

    peak = program + the most tensors that a step or an evaluation has at once + gaps between them + kept by kernels

torch's fake tensors go through the same operations with the same shapes and dtypes as real ones, and each of their
storages is counted from where it is made to where it is let go. Of a process on a processor all is told, for that is
what a machine must have; of a GPU, what its memory must hold.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightdecay.evaluation.loss import EVALUATION_TOKENS, nats
from weightdecay.kernels.library import has_tiles, library
from weightdecay.kernels.memory import resident_bytes
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.training.cached import cached
from weightdecay.training.distributed import Ranks
from weightdecay.training.optimizers import make_optimizer
from weightdecay.training.setup import Setup
from weightdecay.training.step import take_step

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default,
    _aten.mm.out,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.bmm.out,
    _aten.baddbmm.default,
}

# Measured by benchmarks/memory.py on torch 2.13 and glibc 2.36.
# Gaps in the heap beside each byte that comes and goes: what a tensor leaves is taken only by a smaller one.
_GAPS = 0.2
# Code of torch's that the first step reads, threads and metrics.
_STEPPING_BYTES = 25_000_000
# oneDNN keeps the code and the buffers of each kind of bfloat16 product, of so many kinds.
_PRODUCT_BYTES, _MOST_PRODUCTS = 750_000, 1_024
# Kernels and workspaces on a GPU; a guess.
_ON_GPU_BYTES = 60_000_000


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process when it holds the most.

    Attributes:
        program: what it had resident before the run; 0 where the system does not say, and of a GPU.
        weights: parameters and buffers.
        gradients: of all parameters.
        optimizer: what it remembers between steps.
        activations: what a pass keeps for its way back, and works with.
        kept: what kernels keep for the next time, and the gaps of the allocator.
    """

    program: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    kept: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def more(self) -> int:
        """Beside what the process has already."""
        return self.total - self.program


def footprint(setup: Setup, device: torch.device, rows: int) -> Footprint:
    """The memory of a run that puts so many sequences through its model at once.

    It takes a second or two to find out, most of it the import of torch's compiler, which comes with fake tensors. So
    what was found out for a run is kept in the cache.

    Args:
        device: where it will run; nothing is allocated there.
        rows: sequences of a pass, at least 1.
    """
    config, run = setup.config, setup.config.run
    settings = (config.model, config.optimizer, run.arithmetic, run.activation_checkpointing, run.dtype, run.nproc)
    kernels = (library() is not None, has_tiles(), torch.get_num_threads())
    question = (settings, setup.plan.to_json(), setup.sizes.full, setup.grad_clip(0) > 0, kernels, device, rows)
    found = cached(Footprint, question, lambda: _of_tensors(setup, device, rows))
    return replace(found, program=resident_bytes() if device.type == "cpu" else 0)


def _of_tensors(setup: Setup, device: torch.device, rows: int) -> Footprint:
    """All but the program."""
    config, run = setup.config.model, setup.config.run
    tracker = _Tracker(_even_load(config, rows * config.context))
    with _without_values(tracker), torch.device(device):
        model = GPT(config)
        model.arithmetic, model.recomputes = run.arithmetic, run.activation_checkpointing
        weights = tracker.live
        optimizer = make_optimizer(setup.config.optimizer, setup.plan.on(model))
        objective = Objective(model).train()

        passes = -(-setup.sizes.full // (run.nproc * rows))
        _begin_state(optimizer)
        _step(setup, objective, optimizer, [rows] * min(passes, 2))
        state = tracker.live - weights

        evaluation_rows = max(1, EVALUATION_TOKENS // config.context)
        tracker.even_load = _even_load(config, evaluation_rows * config.context)
        _evaluation(model, config, evaluation_rows, setup.dtype)

    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    # Ranks exchange gradients in buckets, a second copy of them.
    tensors = tracker.most + (gradients if run.nproc > 1 else 0)
    activations = max(0, tensors - weights - state - gradients)
    return Footprint(
        program=0,
        weights=weights,
        gradients=gradients,
        optimizer=state,
        activations=activations,
        kept=_kept(activations, tracker.products, setup) if device.type == "cpu" else _ON_GPU_BYTES,
    )


def _kept(activations: int, products: int, setup: Setup) -> int:
    """What the allocator and kernels keep on a processor."""
    if setup.config.model.experts is not None and products:
        products = _MOST_PRODUCTS  # experts see other numbers of rows each time
    # Large blocks go back to the system where activations are computed anew (`kernels.memory`).
    gaps = 0.0 if setup.config.run.activation_checkpointing else _GAPS
    return round(gaps * activations) + min(products, _MOST_PRODUCTS) * _PRODUCT_BYTES + _STEPPING_BYTES


def _begin_state(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's state, which is there while gradients come."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _step(setup: Setup, objective: nn.Module, optimizer: torch.optim.Optimizer, rows: list[int]) -> None:
    """A training's own step."""
    context = setup.config.model.context
    take_step(
        objective,
        optimizer,
        [(torch.zeros(n, context, dtype=torch.long), torch.zeros(n, context, dtype=torch.long)) for n in rows],
        sequences=sum(rows),
        ranks=Ranks(0, 1, torch.empty(()).device),
        dtype=setup.dtype,
        grad_clip=setup.grad_clip(0),
        seed=(setup.config.run.seed, 0),
    )


@torch.no_grad()
def _evaluation(model: GPT, config: ModelConfig, rows: int, dtype: torch.dtype) -> None:
    tokens_BT = torch.zeros(rows, config.context, dtype=torch.long)
    # Not in its inference mode, in which composite operations would hide what they allocate.
    inspect.unwrap(nats)(model, [(tokens_BT, tokens_BT.clone())], device=tokens_BT.device, dtype=dtype)


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living storages and the kinds of products; answers what needs a value, where there is none.

    Args:
        even_load: what `tolist` of the experts' loads says: tokens spread evenly, one expert after the other.
    """

    def __init__(self, even_load: Callable[[], Iterator[int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.even_load = even_load
        self.most = 0
        self._products: set[Any] = set()
        self._alive: dict[int, int] = {}
        self._loads: Iterator[int] = iter(())

    @property
    def products(self) -> int:
        """Kinds of bfloat16 products that were made, by shapes and layouts."""
        return len(self._products)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and args[-1].dtype == torch.bfloat16:
            self._products.add((func, *((x.shape, x.stride()) for x in args if isinstance(x, Tensor))))
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._value(args[0])
        if func is torch.ops.aten.bincount.default:  # as long as its numbers say, and we know what they say
            made = args[0].new_zeros((kwargs or {}).get("minlength", args[2] if len(args) > 2 else 0))
        else:
            made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return made

    def _value(self, scalar: Tensor) -> bool | float | int:
        if scalar.dtype == torch.bool:
            return True
        if scalar.dtype.is_floating_point:
            return 1.0
        load = next(self._loads, None)
        if load is None:
            self._loads = self.even_load()
            load = next(self._loads, 1)
        return load

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._add(storage.nbytes())
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._add(-self._alive.pop(key))

    def _add(self, n_bytes: int) -> None:
        self.live += n_bytes
        self.most = max(self.most, self.live)


@contextmanager
def _without_values(tracker: _Tracker) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(tracker)
        yield


def _even_load(config: ModelConfig, tokens: int) -> Callable[[], Iterator[int]]:
    """Rows of each expert when all have as many, to a row."""
    experts = config.experts.n_experts if config.experts else 0
    rows = tokens * config.experts.per_token if config.experts else 0

    def loads() -> Iterator[int]:
        yield from (rows * (index + 1) // experts - rows * index // experts for index in range(experts))

    return loads
