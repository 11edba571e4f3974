"""What can be run is run as it is: adapters, scripted and fx modules, models that hold what cannot be copied."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import weightdecay
from tests.planning.test_plan import RootMeanSquare
from weightdecay.planning.evidence.runnable_copy import Device, runnable_copy
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence.tracing import LARGEST_RUN, trace


def traced(model: nn.Module, batch: Any = None) -> set[str]:
    """The names of the tensors whose use was seen."""
    return {facts.name for facts in trace(model, read_tensors(model), batch).tensors if facts.uses}


def names(model: nn.Module) -> set[str]:
    return {facts.name for facts in read_tensors(model)}


class BaseTunerLayer:
    """PEFT's layers inherit from a class of this name."""


class Adapter(nn.Module, BaseTunerLayer):
    """A gate of its own beside the layer that it adapts; counts how often it ran."""

    runs = 0

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.gate = nn.Parameter(torch.ones(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).runs += 1
        out: torch.Tensor = self.base_layer(x) * self.gate.mean()
        return out


def test_an_adapter_with_tensors_of_its_own_runs_as_it_is_and_only_its_name_is_unwrapped() -> None:
    model = nn.Sequential(Adapter(nn.Linear(16, 16)))
    Adapter.runs = 0
    assert traced(model, torch.randn(3, 16)) == {"0.weight", "0.bias", "0.gate"}
    assert Adapter.runs > 0
    assert not weightdecay.plan(model, batch=torch.randn(3, 16))["0.gate"].decays


class PeftModel(nn.Module):
    """As PEFT's for prompts: embeddings of its own beside the model."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_model = base
        self.prompt_encoder = nn.ModuleDict({"default": nn.Embedding(5, 16)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prompt = self.prompt_encoder["default"](torch.arange(5)).expand(len(x), -1, -1)
        out: torch.Tensor = self.base_model(torch.cat((prompt, x), 1))
        return out


def test_a_model_around_a_model_that_has_prompts_of_its_own_is_run_with_them() -> None:
    model = PeftModel(nn.Sequential(nn.Linear(16, 16), RootMeanSquare(16)))
    assert traced(model, torch.randn(2, 9, 16)) == {"0.weight", "0.bias", "1.weight", "prompt_encoder.default.weight"}


class Table(nn.Module):
    """An adaLN table around whatever is inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.table = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift, scale, *_ = (self.table[None] + x[:, :1]).chunk(6, 1)
        out: torch.Tensor = self.inner(x * (1 + scale) + shift)
        return out


def scripted() -> nn.Module:
    module: nn.Module = torch.jit.script(nn.Linear(8, 8))
    return module


def graph() -> nn.Module:
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))


def older_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        normed: nn.Module = nn.utils.weight_norm(nn.Linear(8, 8))
    return normed


@pytest.mark.parametrize(
    "inside", [scripted, graph, older_weight_norm, lambda: parametrizations.orthogonal(nn.Linear(8, 8))]
)
def test_scripted_graph_and_reparametrised_modules_run_inside_others(inside: Callable[[], nn.Module]) -> None:
    model = Table(inside())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert traced(model, torch.randn(2, 9, 8)) == names(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_plan_of_a_scripted_or_graph_module_is_that_of_what_it_was_made_of() -> None:
    def plan_of(inside: nn.Module) -> list[tuple[Any, ...]]:
        plan = weightdecay.plan(Table(inside), batch=torch.randn(2, 9, 8))
        return [(line.name.replace("inner.0.", "inner."), line.roles, line.decays) for line in plan]

    plain = plan_of(nn.Linear(8, 8))
    assert plan_of(torch.jit.script(nn.Linear(8, 8))) == plain
    assert plan_of(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8)))) == plain


def test_a_graph_module_and_a_scripted_module_are_planned_alone() -> None:
    for model in (graph(), scripted()):
        assert traced(model, torch.randn(2, 9, 8)) == names(model)


class Holder(nn.Module):
    """Holds something that cannot be copied."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.norm, self.scale = RootMeanSquare(8), nn.Parameter(torch.ones(8))
        self.held = held
        self.nested = {"deep": [held]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(x) * self.scale
        return out


class Cache:
    """A user's own object around what cannot be copied."""

    def __init__(self) -> None:
        self.lock, self.entries = threading.RLock(), [torch.ones(2)]


def opened() -> Any:
    return Path(__file__).open()


HELD: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock, "condition": threading.Condition, "thread": lambda: threading.Thread(target=print),
    "file": opened, "generator": lambda: (number for number in range(3)),
    "random generator": torch.Generator, "module": lambda: threading, "object": Cache, "iterator": lambda: iter([1]),
    "computed tensor": lambda: torch.ones(2, requires_grad=True) * 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("given", [True, False])
def test_a_model_that_holds_what_cannot_be_copied_runs_all_the_same(kind: str, given: bool) -> None:
    model = Holder(HELD[kind]())
    assert traced(model, torch.randn(2, 8) if given else None) == {"norm.weight", "scale"}
    if kind == "file":
        assert model.held.tell() == 0
        model.held.close()
    if kind in ("generator", "iterator"):
        assert next(model.held) in (0, 1)


def test_a_lock_that_is_held_does_not_stop_a_copy_that_takes_it() -> None:
    class Locked(Holder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.held:
                return super().forward(x)

    model = Locked(threading.Lock())
    with model.held:
        assert traced(model, torch.randn(2, 8)) == {"norm.weight", "scale"}


def test_what_a_users_object_keeps_is_copied_though_the_object_cannot_be_pickled() -> None:
    class Writing(Holder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.held.entries[0].add_(1)
            self.held.entries.append(x)
            return super().forward(x)

    model = Writing(Cache())
    assert traced(model, torch.randn(2, 8)) == {"norm.weight", "scale"}
    assert len(model.held.entries) == 1
    assert torch.equal(model.held.entries[0], torch.ones(2))


class Closing(nn.Module):
    """Calls something that closes over the model."""

    calls: torch.Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("calls", torch.zeros(()))

        def act(x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return x * self.scale

        def deeper(x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
            return (function or act)(x)

        ways: dict[str, Any] = {
            "function": act, "in a list": [[act]], "in a dictionary": {"act": act}, "of a function": deeper,
            "partial": partial(deeper, function=act), "method": self.act_of_its_own,
        }  # fmt: skip
        self.held = ways[kind]

    def act_of_its_own(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held: Any = self.held
        held = held["act"] if isinstance(held, dict) else held[0][0] if isinstance(held, list) else held
        out: torch.Tensor = held(x)
        return out


@pytest.mark.parametrize("kind", ["function", "in a list", "in a dictionary", "of a function", "partial", "method"])
def test_what_closes_over_the_model_closes_over_the_copy_in_the_copy(kind: str) -> None:
    model = Closing(kind)
    assert traced(model, torch.randn(2, 8)) == {"scale"}
    assert model.calls == 0


def test_a_part_that_refers_weakly_to_the_whole_refers_to_the_copy_in_the_copy() -> None:
    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = weakref.ref(parent)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parent: Any = self.parent()
            parent.calls.add_(1)
            out: torch.Tensor = x * parent.scale
            return out

    class Parent(nn.Module):
        calls: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.register_buffer("calls", torch.zeros(()))
            self.child = Child(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.child(x)
            return out

    model = Parent()
    assert traced(model, torch.randn(2, 8)) == {"scale"}
    assert model.calls == 0


def test_a_model_too_large_for_memory_is_run_whole_without_values() -> None:
    class Wide(nn.Module):
        """What only a whole run shows: the gain belongs to the model, and a mask decides what is done."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(100_000, 8192)
            self.gain = nn.Parameter(torch.ones(8192))
            self.out = nn.Linear(8192, 100_000)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(ids.shape, device=ids.device).tril()
            x = self.embed(ids)
            if bool(mask.sum() > 0) and ids.max().item() > 0:
                x = x * self.gain
            with torch.autocast(x.device.type, enabled=False):
                out: torch.Tensor = self.out(x)
            return out

    with torch.device("meta"):
        model = Wide()
    assert sum(parameter.numel() for parameter in model.parameters()) > LARGEST_RUN
    assert traced(model) == names(model)
    assert traced(model, torch.arange(18).reshape(2, 9)) == names(model)


def test_experts_whose_kernel_wants_half_precision_run_without_values() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.stack = nn.Linear(1024, 8), nn.Parameter(torch.empty(80, 1024, 1024))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ends = torch.arange(1, 81, dtype=torch.int32, device=x.device) * 2
            out: torch.Tensor = torch._grouped_mm(x.repeat(10, 1), self.stack, offs=ends) + self.router(x).sum()
            return out

    with torch.device("meta"):
        model = Experts()
    assert traced(model, torch.ones(16, 1024)) == names(model)


class Streams(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.static_alpha = nn.Parameter(torch.randn(4, 5))
        self.dynamic = nn.Parameter(torch.zeros(width, 5))
        self.mix = nn.Linear(width, width)

    def forward(self, streams: torch.Tensor) -> torch.Tensor:
        mixed = ((streams @ self.dynamic).tanh() * 0.01 + self.static_alpha).transpose(-1, -2) @ streams
        return torch.cat((self.mix(mixed[:, :, :1]), mixed[:, :, 1:4]), 2)


class HyperConnected(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.layers = nn.ModuleList(Streams(width) for _ in range(depth))
        self.out = nn.Linear(width, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)[:, :, None].expand(-1, -1, 4, -1)
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.out(x.sum(2))
        return out


def test_one_architecture_small_and_large_gets_the_same_verdicts() -> None:
    with torch.device("meta"):
        small, large = HyperConnected(64, 5), HyperConnected(4096, 5)
    verdicts = [[(line.name, line.role, line.decays) for line in weightdecay.plan(model)] for model in (small, large)]
    assert verdicts[0] == verdicts[1]


def test_a_copy_shares_no_tensor_and_its_tied_tensors_stay_tied() -> None:
    model = HyperConnected(8, 1)
    model.out.weight = model.embed.weight
    devices: tuple[Device, ...] = ("cpu", "meta")
    for device in devices:
        copy: Any = runnable_copy(model, device)
        assert copy.out.weight is copy.embed.weight
        mine = {parameter.data_ptr() for parameter in model.parameters()}
        assert device == "meta" or mine.isdisjoint(parameter.data_ptr() for parameter in copy.parameters())
        assert {parameter.device.type for parameter in copy.parameters()} == {device}
