"""The memory that a run will need, found out without having it: one step of the real model on tensors without values.

    peak = weights + optimizer state + the most that a step, an evaluation or a save holds beside them

torch's fake tensors go through the same operations with the same shapes and dtypes as real ones, and each of their
storages is counted from where it is made to where it is let go.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightdecay.evaluation.loss import EVALUATION_TOKENS, nats
from weightdecay.models.arithmetic import products_in, weights_in
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.training.optimizers import make_optimizer
from weightdecay.training.setup import Setup

# Beside its tensors, over that after imports and set-up: kernels that are compiled for its shapes, threads, metrics.
_PROGRAM_BYTES = 60e6
# glibc gives a block of this size or more back when it is freed; of smaller ones the process keeps what it once had.
_GIVEN_BACK_FROM_BYTES = 32 << 20


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process, each where it is largest.

    Attributes:
        weights: parameters and buffers.
        gradients: of all parameters.
        optimizer: what it remembers between steps.
        activations: what a pass keeps for its way back, and works with.
        total: the most that the process holds at once, its kernels and what its allocator keeps included.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    total: int


def footprint(setup: Setup, device: torch.device, rows: int) -> Footprint:
    """The memory of a run that puts so many sequences through its model at once.

    Args:
        device: where it will run; nothing is allocated there.
        rows: sequences of a pass, at least 1.
    """
    config = setup.config.model
    tracker = _Tracker(_even_load(config, rows * config.context))
    with _without_values(tracker), torch.device(device):
        model = GPT(config)
        model.arithmetic, model.recomputes = setup.config.run.arithmetic, setup.config.run.activation_checkpointing
        weights = tracker.live
        optimizer = make_optimizer(setup.config.optimizer, setup.plan.on(model))
        objective = Objective(model)

        _begin_state(optimizer)  # which is there while gradients come
        passes = -(-setup.sizes.full // (setup.config.run.nproc * rows))
        _step(objective, optimizer, config, rows, min(passes, 2), setup.dtype)
        state = tracker.live - weights

        evaluation_rows = max(1, EVALUATION_TOKENS // config.context)
        tracker.even_load = _even_load(config, evaluation_rows * config.context)
        _evaluation(model, config, evaluation_rows, setup.dtype)

        for tensors in (list(model.parameters()), tree_leaves(list(optimizer.state.values()))):
            _saving(tensors)

    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    # Ranks exchange gradients in buckets, a second copy of them.
    peak = tracker.peak(device) + (gradients if setup.config.run.nproc > 1 else 0)
    return Footprint(
        weights=weights,
        gradients=gradients,
        optimizer=state,
        activations=max(0, peak - weights - state - gradients),
        total=round(peak + _PROGRAM_BYTES),
    )


def _begin_state(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ModelConfig,
    rows: int,
    passes: int,
    dtype: torch.dtype,
) -> None:
    objective.train()
    with weights_in(objective, dtype):
        for _ in range(passes):
            tokens_BT = torch.zeros(rows, config.context, dtype=torch.long)
            with products_in(objective, dtype, tokens_BT.device):
                loss = objective(tokens_BT, tokens_BT.clone()).total
            loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _evaluation(model: GPT, config: ModelConfig, rows: int, dtype: torch.dtype) -> None:
    tokens_BT = torch.zeros(rows, config.context, dtype=torch.long)
    # Not in its inference mode, in which composite operations would hide what they allocate.
    inspect.unwrap(nats)(model, [(tokens_BT, tokens_BT.clone())], device=tokens_BT.device, dtype=dtype)


def _saving(tensors: list[Any]) -> None:
    """safetensors copies all tensors of a file before it writes them."""
    copies = [tensor.clone() for tensor in tensors if isinstance(tensor, Tensor)]
    del copies


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that are alive; answers what needs a value, where there is none.

    Args:
        even_load: what `tolist` of the experts' loads says: tokens spread evenly, one expert after the other.
    """

    def __init__(self, even_load: Callable[[], Iterator[int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.even_load = even_load
        self._small = self._most_small = self._most = self._most_live = 0
        self._alive: dict[int, int] = {}
        self._loads: Iterator[int] = iter(())

    def peak(self, device: torch.device) -> int:
        """The most that the process held at once: on a processor with what its allocator keeps of small blocks."""
        return self._most if device.type == "cpu" else self._most_live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
        if abs(n_bytes) < _GIVEN_BACK_FROM_BYTES:
            self._small += n_bytes
        self._most_small = max(self._most_small, self._small)
        self._most = max(self._most, self._most_small + self.live - self._small)
        self._most_live = max(self._most_live, self.live)


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
