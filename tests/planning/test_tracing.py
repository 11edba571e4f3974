"""Looking at a model must not change it, and must come to an end."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import weightdecay
from tests.planning.test_plan import RootMeanSquare
from weightdecay.planning.evidence.following import uses_of
from weightdecay.planning.evidence.recorder import Recorder
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence.tracing import LARGEST_RUN, trace


class Nosy(nn.Module):
    """Everything about it changes when it runs: statistics, counters, random states, caches, prints, hooks."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.own = nn.BatchNorm1d(8), nn.Linear(8, 8), RootMeanSquare(8)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("running", random.random(), np.random.rand())
        self.calls.add_(1)
        self.cache.append(x)
        noise = torch.randn_like(x)
        out: torch.Tensor = self.own(self.mix(self.norm(x.flatten(0, -2))) + noise.flatten(0, -2))
        return out


def test_tracing_leaves_model_random_states_and_streams_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    model = Nosy().train()
    seen: list[Any] = []
    model.register_forward_hook(lambda *arguments: seen.append(arguments))
    before = copy.deepcopy(model.state_dict())
    states = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    plan = weightdecay.plan(model)
    assert "traced: multiplies a normalised activation" in plan["own.weight"].evidence
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == str(np.random.get_state())
    assert model.training
    assert not model.cache
    assert not seen
    assert all(parameter.grad is None for parameter in model.parameters())
    assert capfd.readouterr() == ("", "")


def test_a_plan_made_twice_is_the_same_plan() -> None:
    assert list(weightdecay.plan(Nosy())) == list(weightdecay.plan(Nosy()))


def test_a_model_on_the_meta_device_is_traced_by_a_stand_in() -> None:
    with torch.device("meta"):
        model = Nosy()
    assert "traced" in weightdecay.plan(model)["own.weight"].evidence


def test_a_model_too_large_to_run_is_run_by_its_parts() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(LARGEST_RUN // 1000, 1001), RootMeanSquare(1001), nn.Linear(1001, 4))
    (found,) = [facts for facts in trace(model, read_tensors(model)).tensors if facts.name == "1.weight"]
    assert found.uses is not None


def test_what_one_part_does_its_sisters_do_though_only_one_was_run() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([RootMeanSquare(8) for _ in range(4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.parts[0](x)
            return out

    plan = weightdecay.plan(Choosy())
    assert len({tensor.evidence for tensor in plan}) == 1


class Demanding(nn.Module):
    """Its inputs cannot be guessed."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(3, 5))

    def forward(self, left: dict[str, torch.Tensor], right: Any, mode: str, tables: Any) -> torch.Tensor:
        if mode != "exact" or right is None or tables is None:
            raise ValueError("not like this")
        return left["x"] * self.p


def test_a_batch_shows_what_guessed_inputs_could_not() -> None:
    batch = {"left": {"x": torch.ones(2, 4, 3, 5)}, "right": 1, "mode": "exact", "tables": 2}
    (tensor,) = weightdecay.plan(Demanding(), batch=batch)
    assert not tensor.decays
    assert "traced" in tensor.evidence


def test_a_forward_that_never_works_costs_no_more_than_its_evidence() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(f"broken for {x.shape}")

    (tensor,) = weightdecay.plan(Broken())
    assert not tensor.decays
    assert "traced" not in tensor.evidence


def test_a_model_that_cannot_be_copied_is_still_planned() -> None:
    class Uncopyable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = RootMeanSquare(8)
            self.handle = (number for number in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.norm(x)
            return out

    assert "traced" in weightdecay.plan(Uncopyable())["norm.weight"].evidence


def test_a_recorder_follows_views_casts_and_arithmetic_to_the_meeting() -> None:
    w, x = torch.ones(4), torch.ones(2, 4)
    with torch.no_grad(), Recorder({"w": w}, [x]) as recorder:
        _ = (1 + w.double().view(1, 4)) * x
        _ = x @ w.diag()
    added, spread = sorted(uses_of(recorder.recording)["w"], key=lambda use: use.operation == "mm")
    assert (added.operation, added.slot, added.partner, added.geometry) == ("mul", "self", "input", "vector")
    assert added.through == ("add",)
    assert (spread.operation, spread.slot, spread.partner) == ("mm", "mat2", "input")


@pytest.mark.long
def test_a_forward_that_goes_on_for_ever_is_left_after_a_while() -> None:
    class Endless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while True:
                x = x[:1] * self.scale

    assert not weightdecay.plan(Endless())["scale"].decays


def test_a_default_device_and_a_compiled_function_do_not_get_in_the_way() -> None:
    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.call = torch.compile(lambda x, w: x * w)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.call(x, self.scale) + torch.zeros(8)
            return out

    model = Compiled()
    with torch.device("meta"):
        plan = weightdecay.plan(model)
    assert "traced" in plan["scale"].evidence


class Borrowed(nn.Module):
    """A linear layer that never multiplies matrices: its weight is a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.kept = nn.Linear(8, 8), nn.Linear(8, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.mix(x) * self.kept.weight[0]
        return scaled


def test_use_goes_before_type_and_where_they_differ_the_plan_says_so() -> None:
    plan = weightdecay.plan(Borrowed())
    kept = plan["kept.weight"]
    assert kept.contested
    assert not kept.decays
    assert "and so linear weight, but traced: multiplies" in kept.evidence
    assert not plan["mix.weight"].contested
    assert weightdecay.plan(Borrowed(), trace=False)["kept.weight"].decays


@pytest.mark.transformers
@pytest.mark.parametrize("family", ["Mamba2", "DeepseekV3", "Qwen3Next", "Llama"])
def test_a_model_of_published_size_is_told_by_a_shrunk_copy_that_runs(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")())
    plan = weightdecay.plan(model)
    assert sum(tensor.numel for tensor in plan) > 1e9
    assert [tensor.name for tensor in plan if "traced" not in tensor.evidence] == []


class DataSet:
    """Too large to be copied, say."""

    copies = 0

    def __deepcopy__(self, memo: object) -> DataSet:
        type(self).copies += 1
        return self


def test_what_only_holds_the_model_is_not_copied() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.data = nn.Sequential(nn.Linear(8, 8), RootMeanSquare(8)), DataSet()

        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            raise NotImplementedError

    assert "traced" in weightdecay.plan(Holder())["model.1.weight"].evidence
    assert DataSet.copies == 0
