"""The model and the process are as they were, with a batch or without, whatever the forward does."""

from __future__ import annotations

import copy
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import weightdecay
from tests.planning.modules import Made
from weightdecay.planning.evidence.budget import Budget
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence.tracing import trace

PICTURE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Counted(nn.Module):
    """A parametrisation that counts how often its weight is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.reads += 1
        return weight


def nothing_runs(module: Made, x: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError(module, x)


def around_what_fails(inner: nn.Module) -> nn.Module:
    return Made(nothing_runs, {"zeta": (3, 3)}, inner=inner)


@pytest.mark.parametrize("batch", [None, PICTURE])
@pytest.mark.parametrize("around", [nn.Sequential, around_what_fails])
@pytest.mark.parametrize("tracing", [False, "optional"])
def test_parametrised_attributes_are_never_read_on_the_users_module(
    batch: torch.Tensor | None, around: Callable[[nn.Module], nn.Module], tracing: Any
) -> None:
    layer = nn.Conv2d(3, 8, 3)
    counts = Counted()
    parametrize.register_parametrization(layer, "weight", counts, unsafe=True)
    model = around(parametrizations.spectral_norm(layer)).train()
    before, reads = {name: value.clone() for name, value in model.state_dict().items()}, counts.reads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", weightdecay.BatchWarning)
        weightdecay.plan(model, batch=batch if tracing else None, unknown="exempt", trace=tracing)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert counts.reads == reads


def test_properties_of_the_users_module_are_not_read() -> None:
    class Touchy(nn.Module):
        touched = 0

        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        @property
        def config(self) -> Any:
            self.mix.weight.data.zero_()
            raise AssertionError("read")

        def get_input_embeddings(self) -> Any:
            self.mix.weight.data.zero_()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.mix(x)
            return out

    model = Touchy()
    before = model.mix.weight.clone()
    weightdecay.plan(model)
    assert torch.equal(model.mix.weight, before)


def test_generators_hooks_gradients_and_flags_stay() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.generator = nn.Linear(4, 4), torch.Generator().manual_seed(3)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            noise = torch.randn(x.shape, generator=self.generator)
            out: torch.Tensor = self.mix(x + noise)
            return out

    model, seen = Noisy().train(), []
    model.mix.eval()
    for register in (model.register_forward_hook, model.mix.register_forward_hook, model.register_forward_pre_hook):
        register(lambda *arguments: seen.append(arguments))
    weight: Any = model.mix.weight
    weight.register_hook(seen.append)
    model.mix.weight.grad = torch.full((4, 4), 2.0)
    state = model.generator.get_state()
    for batch in (None, torch.randn(2, 4)):
        assert weightdecay.plan(model, batch=batch)["mix.weight"].decays
    assert torch.equal(model.generator.get_state(), state)
    assert not seen
    assert model.calls == 0
    assert (model.training, model.mix.training) == (True, False)
    assert torch.equal(model.mix.weight.grad, torch.full((4, 4), 2.0))
    assert model.mix.weight.requires_grad


def state_of_the_process() -> list[Any]:
    return [
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"), torch.get_num_threads(), torch.is_anomaly_enabled(),
        torch.get_float32_matmul_precision(), torch.get_default_device(), dict(os.environ), Path.cwd(), list(sys.path),
        logging.root.level, logging.root.manager.disable, random.getstate(), str(np.random.get_state()),
        torch.get_rng_state().tolist(), sys.stdout, sys.stderr, torch.autocast.__init__,
    ]  # fmt: skip


def meddle() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.autograd.set_detect_anomaly(True)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_device("meta")
    os.environ["MEDDLED"] = "1"
    os.environ.pop("HOME", None)
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    logging.root.setLevel(1)
    logging.disable(10)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    print("meddled")
    sys.stderr.write("meddled")


class Meddling(nn.Module):
    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.mix, self.then = nn.Linear(4, 4), then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        meddle()
        self.then()
        out: torch.Tensor = self.mix(x)
        return out


def fail() -> None:
    raise RuntimeError("on purpose")


def leave() -> None:
    raise SystemExit(3)


def loop() -> None:
    while True:
        torch.ones(1)


@pytest.mark.parametrize("then", [lambda: None, fail, leave, loop])
@pytest.mark.parametrize("batch", [None, torch.ones(2, 4)])
def test_what_a_forward_changes_in_the_process_is_put_back(
    then: Callable[[], None], batch: torch.Tensor | None, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Meddling(then)
    tensors = read_tensors(model)
    before = state_of_the_process()
    trace(model, tensors, batch, Budget(operations=1_000))
    assert state_of_the_process() == before
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_is_not_swallowed_and_the_process_is_put_back() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    model = Meddling(interrupt)
    before = state_of_the_process()
    with pytest.raises(KeyboardInterrupt):
        weightdecay.plan(model)
    assert state_of_the_process() == before


def odd(kind: str) -> Any:
    """A model with a parameter of an unusual kind, used by its forward."""
    model: Any = Made(lambda m, x: m.mix(x), {}, mix=nn.Linear(8, 8))
    if kind == "complex":
        model.w = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))
        model.function = lambda m, x: (m.mix(x).to(torch.complex64) @ m.w).real
    elif kind == "sparse":
        model.w = nn.Parameter(torch.randn(8, 8).relu().to_sparse())
        model.function = lambda m, x: torch.sparse.mm(m.w, m.mix(x).T)
    elif kind == "empty":
        model.w = nn.Parameter(torch.empty(0, 8))
        model.function = lambda m, x: torch.cat((m.mix(x), m.w))
    elif kind == "half":
        model.w = nn.Parameter(torch.randn(8, 8, dtype=torch.bfloat16))
        model.function = lambda m, x: m.mix(x) @ m.w
    elif kind == "packed":
        model.w = nn.Parameter(torch.randint(0, 9, (8, 8), dtype=torch.uint8), requires_grad=False)
        model.function = lambda m, x: m.mix(x) @ (m.w >> 1).float()
    elif kind == "a number":
        model.w = nn.Parameter(torch.tensor(1.0))
        model.function = lambda m, x: m.mix(x) * m.w
    elif kind == "meta":
        model = model.to("meta")
        model.w = nn.Parameter(torch.empty(8, 8, device="meta"))
        model.function = lambda m, x: m.mix(x) @ m.w
    elif kind == "float8":
        model.w = nn.Parameter(torch.randn(8, 8).to(torch.float8_e4m3fn))
        model.function = lambda m, x: m.mix(x) @ m.w.float()
    return model


KINDS = ["complex", "sparse", "empty", "half", "packed", "a number", "meta", "float8"]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_unusual_kinds_are_run_and_stay_as_they_are(kind: str) -> None:
    model = odd(kind)
    before = copy.deepcopy(model.state_dict())
    traced = trace(model, read_tensors(model), torch.ones(2, 8))
    assert not traced.batch_fault
    assert {facts.name for facts in traced.tensors if facts.uses} >= {"mix.weight", "mix.bias"}
    if kind not in ("meta", "sparse"):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
