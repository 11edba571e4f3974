"""Branches that go as one function each: in which models, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.kinds import KINDS
from weightdecay.kernels import branch_at_once, branches, library
from weightdecay.kernels.library import has_tiles
from weightdecay.models.arithmetic import weights_in
from weightdecay.models.block import Block
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective

pytestmark = pytest.mark.skipif(library.library() is None, reason="no C compiler here")

# Of three layers: (attention, feed-forward) branches that are written out.
WRITTEN_OUT = {"gpt2": (3, 3), "gpt3": (3, 3), "opt": (3, 3), "bloom": (3, 3), "llama": (3, 3), "mistral": (3, 3),
               "mixtral": (3, 0), "deepseek": (0, 1), "moonlight": (0, 1), "chinchilla": (0, 3),
               "nanochat": (0, 3)}  # fmt: skip


def loss_and_gradients(kind: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> tuple[Tensor, Tensor]:
    """Of a batch."""
    torch.manual_seed(0)
    objective = Objective(GPT(KINDS[kind].replace(**changes)).train())
    tokens = torch.randint(50, (4, 25), generator=torch.Generator().manual_seed(0))
    with weights_in(objective, dtype):
        losses = objective(tokens[:, :-1], tokens[:, 1:])
        losses.total.backward()
    gradients = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
    return losses.total.detach(), torch.cat(gradients)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the branches that go as one function from now on."""
    called: list[str] = []
    forward = branches._Branch.forward

    def noted(*args: Any) -> object:
        called.append(args[-1][0])
        return forward(*args)

    monkeypatch.setattr(branches._Branch, "forward", staticmethod(noted))
    return called


@pytest.mark.parametrize("kind", KINDS)
def test_models_whose_branches_are_written_out_learn_as_by_their_parts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = counted(monkeypatch)
    loss, gradient = loss_and_gradients(kind)
    found = (called.count("attention"), called.count("feedforward"))
    assert found == WRITTEN_OUT.get(kind, (0, 0))

    monkeypatch.setattr(Block, "_norm_of_one_kernel", lambda *_: None)
    by_parts, gradient_by_parts = loss_and_gradients(kind)
    assert loss == pytest.approx(float(by_parts), rel=2e-3)

    # The parts round more often, which sends some tokens to other experts: neither is the other's measure.
    _, exact = loss_and_gradients(kind, torch.float32)
    assert (gradient - exact).norm() <= 1.25 * (gradient_by_parts - exact).norm()


@pytest.mark.skipif(not has_tiles(), reason="products here are torch's")
@pytest.mark.parametrize("kind", [kind for kind in WRITTEN_OUT if kind in KINDS])
def test_in_one_call_and_by_its_parts_a_branch_gives_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def noted(name: str, *arguments: Any) -> None:
        called.append(name)
        library.call(name, *arguments)

    monkeypatch.setattr(branch_at_once, "call", noted)
    loss, gradient = loss_and_gradients(kind)
    attention, feedforward = WRITTEN_OUT[kind]
    assert sorted(called) == sorted(
        attention * ["attention_branch", "attention_branch_backward"]
        + feedforward * ["feedforward_branch", "feedforward_branch_backward"]
    )

    monkeypatch.setattr(branch_at_once, "suits", lambda *_: False)
    by_parts, gradient_by_parts = loss_and_gradients(kind)
    assert len(called) == 2 * (attention + feedforward)
    assert torch.equal(loss, by_parts)
    assert torch.equal(gradient, gradient_by_parts)


@pytest.mark.skipif(not has_tiles(), reason="products here are torch's")
def test_a_profile_sees_the_parts_of_a_branch() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        loss_and_gradients("gpt2")
    seen = {event.key for event in profiled.key_averages()}
    assert {"kernel:norm_forward", "kernel:product", "kernel:causal_backward", "kernel:gelu_tanh"} <= seen


@pytest.mark.parametrize("change", ["dropout", "stochastic_depth"])
def test_where_something_is_dropped_branches_go_by_their_parts(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = counted(monkeypatch)
    loss_and_gradients("gpt2", torch.bfloat16, **{change: 0.1})
    assert not called


@pytest.mark.parametrize("name", ["attention_norm", "attention", "attention.qkv", "feedforward.down"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_a_hook_inside_a_branch_is_called(name: str, register: str) -> None:
    model, called = GPT(KINDS["llama"]), []
    objective = Objective(model)
    for block in model.blocks:
        getattr(block.get_submodule(name), register)(lambda *_: called.append(name))
    with weights_in(objective, torch.bfloat16):
        objective(torch.arange(24).view(1, 24), torch.arange(24).view(1, 24)).total.backward()
    assert called == [name] * 3


def test_frozen_parameters_get_no_gradient_and_change_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(KINDS["gpt2"])
    called, objective = counted(monkeypatch), Objective(model)
    tokens = torch.arange(48).view(2, 24)
    found = []
    for frozen in (False, True):
        for name in ("embedding", "positions", "blocks.0", "blocks.1.attention.qkv"):
            model.get_submodule(name).requires_grad_(not frozen)
        model.zero_grad()
        with weights_in(objective, torch.bfloat16):
            objective(tokens, tokens.flip(1)).total.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    everything, some = found
    assert called
    assert {name for name, gradient in some.items() if gradient is None} >= {"blocks.1.attention.qkv.weight"}
    for name, gradient in some.items():
        whole = everything[name]
        assert gradient is None or (whole is not None and torch.equal(gradient, whole)), name
