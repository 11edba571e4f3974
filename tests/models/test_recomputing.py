"""Activation checkpointing: blocks computed anew on the way back, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.kinds import KINDS
from weightdecay.models.arithmetic import products_in, weights_in
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective

CPU = torch.device("cpu")


def loss_and_gradients(
    kind: str, dtype: torch.dtype, *, drops: float, recomputes: bool
) -> tuple[Tensor, list[Tensor], int]:
    """Of a batch; and the bytes that were kept for the way back."""
    torch.manual_seed(0)
    model = GPT(KINDS[kind].replace(dropout=drops, stochastic_depth=drops)).train()
    model.recomputes = recomputes
    objective = Objective(model)
    tokens = torch.randint(50, (8, 25), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with weights_in(objective, dtype):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), products_in(objective, dtype, CPU):
            losses = objective(tokens[:, :-1], tokens[:, 1:])
        losses.total.backward()
    drawn = torch.randn(3)  # what is drawn afterwards is the same, too
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return losses.total.detach(), [*gradients, drawn], sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("drops", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_the_same_bit_for_bit_and_less_is_kept(kind: str, drops: float, dtype: torch.dtype) -> None:
    loss, gradients, kept = loss_and_gradients(kind, dtype, drops=drops, recomputes=True)
    expected, all_gradients, all_kept = loss_and_gradients(kind, dtype, drops=drops, recomputes=False)
    assert torch.equal(loss, expected)
    assert len(gradients) == len(all_gradients)
    assert all(torch.equal(a, b) for a, b in zip(gradients, all_gradients, strict=True))
    assert kept < 0.7 * all_kept


def test_only_what_will_go_back_is_kept_for_it() -> None:
    torch.manual_seed(0)
    model = GPT(KINDS["llama"]).eval()
    tokens = torch.randint(50, (2, 9))
    with torch.no_grad():
        plain = model(tokens)
        model.recomputes = True
        assert torch.equal(model(tokens), plain)
