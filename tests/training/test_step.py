from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from weightdecay.data.loader import evaluation_batches
from weightdecay.errors import TrainingError
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.optim.adamw import AdamW
from weightdecay.planning.plan import plan
from weightdecay.training.distributed import Ranks
from weightdecay.training.step import StepResult, evaluate, take_step

ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIG = ModelConfig(vocab_size=31, context=8, n_layers=2, d_model=16, n_heads=2)


def made(dropout: float = 0.0) -> tuple[GPT, AdamW]:
    torch.manual_seed(0)
    model = GPT(CONFIG.replace(dropout=dropout)).train()
    return model, AdamW(plan(model), lr=1e-2, fused=True)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(31, (8, 9), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def split(rows: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(torch.split(part, rows) for part in batch()), strict=True))


def step(
    model: GPT,
    optimizer: AdamW,
    parts: list[tuple[Tensor, Tensor]],
    *,
    dtype: torch.dtype = torch.float32,
    grad_clip: float = 0.0,
    seed: tuple[int, int] = (0, 0),
) -> StepResult:
    options = {"sequences": 8, "ranks": ALONE, "dtype": dtype, "grad_clip": grad_clip, "seed": seed}
    return take_step(Objective(model), optimizer, parts, **options)  # type: ignore[arg-type]


def weights(model: GPT) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(rows: int) -> None:
    (whole, optimizer), (parts, their_optimizer) = made(), made()
    one = step(whole, optimizer, split(8), grad_clip=0.5)
    other = step(parts, their_optimizer, split(rows), grad_clip=0.5)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_the_tokens_and_the_norm_that_before_clipping() -> None:
    model, optimizer = made()
    expected = torch.nn.functional.cross_entropy(model(batch()[0]).flatten(0, 1), batch()[1].flatten())
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    result = step(model, optimizer, split(8), grad_clip=norm.item() / 7)
    assert result.loss == pytest.approx(expected.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(poison: float) -> None:
    model, optimizer = made()
    step(model, optimizer, split(8), grad_clip=1.0)
    before = weights(model).clone()
    states = [{key: value.clone() for key, value in state.items()} for state in optimizer.state.values()]
    handle = model.embedding.register_forward_hook(lambda _m, _i, out: out * poison)
    with pytest.raises(TrainingError, match="step 2: the gradient is not finite"):
        step(model, optimizer, split(4), grad_clip=1.0, seed=(0, 1))
    handle.remove()
    assert torch.equal(weights(model), before)
    for state, old in zip(optimizer.state.values(), states, strict=True):
        assert all(torch.equal(state[key], old[key]) for key in old)


def test_a_step_whose_gradient_is_not_finite_is_left_out_if_that_is_asked_for() -> None:
    model, optimizer = made()
    options = {"sequences": 8, "ranks": ALONE, "dtype": torch.float32, "grad_clip": 1.0, "on_nonfinite": "skip"}
    assert not take_step(Objective(model), optimizer, split(8), seed=(0, 0), **options).skipped  # type: ignore[arg-type]
    before = weights(model).clone()
    handle = model.embedding.register_forward_hook(lambda _m, _i, out: out * math.inf)
    assert take_step(Objective(model), optimizer, split(8), seed=(0, 1), **options).skipped  # type: ignore[arg-type]
    handle.remove()
    assert torch.equal(weights(model), before)
    assert not take_step(Objective(model), optimizer, split(8), seed=(0, 2), **options).skipped  # type: ignore[arg-type]
    assert not torch.equal(weights(model), before)
    assert all(int(state["step"]) == 2 for state in optimizer.state.values())


def test_dropout_depends_on_the_seed_and_the_step_alone() -> None:
    def after(seed: tuple[int, int], noise: int) -> Tensor:
        model, optimizer = made(dropout=0.3)
        torch.manual_seed(noise)  # what happened before the step must not matter
        step(model, optimizer, split(4), grad_clip=0.0, seed=seed)
        return weights(model)

    assert torch.equal(after((1, 5), noise=1), after((1, 5), noise=2))
    assert not torch.equal(after((1, 5), noise=1), after((1, 6), noise=1))
    assert not torch.equal(after((1, 5), noise=1), after((2, 5), noise=1))


def test_micro_batches_of_one_step_do_not_share_their_dropout() -> None:
    model, optimizer = made(dropout=0.5)
    seen: list[Tensor] = []
    model.dropout.register_forward_hook(lambda _m, _i, out: seen.append(out.detach() == 0))
    step(model, optimizer, split(4), grad_clip=0.0)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("arithmetic", ["working", "autocast"])
def test_either_arithmetic_computes_low_and_leaves_weights_and_state_in_float32(
    arithmetic: Literal["working", "autocast"],
) -> None:
    model, optimizer = made()
    model.arithmetic = arithmetic
    inside: list[torch.dtype] = []
    block = model.get_submodule("blocks.0")
    block.get_submodule("attention.qkv").register_forward_hook(lambda _m, _i, out: inside.append(out.dtype))
    block.register_forward_hook(lambda _m, _i, out: inside.append(out[0].dtype))

    step(model, optimizer, split(8), dtype=torch.bfloat16, grad_clip=1.0)

    stream = torch.bfloat16 if arithmetic == "working" else torch.float32
    assert inside == [torch.bfloat16, stream]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}
    assert model(batch()[0]).dtype == torch.float32, "nothing of the step is left behind"


def test_a_tied_tables_gradients_meet_as_they_would_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    for _ in range(2):
        model, optimizer = made()
        assert model.config.tied_head
        table = model.embedding.weight

        def keep(table: Tensor = table) -> None:
            assert table.grad is not None
            found.append(table.grad.clone())

        monkeypatch.setattr(optimizer, "step", keep)
        step(model, optimizer, split(4), dtype=torch.bfloat16)
        monkeypatch.setattr(GPT, "looked_up", lambda self, tokens: (self.embedding(tokens), self.head.weight))

    together, apart = found
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 3])
def test_micro_batches_of_a_low_step_add_up_in_float32(rows: int) -> None:
    """The same sums as of the whole batch, but for the rounding of each part: no more of it with more parts."""
    (whole, optimizer), (parts, their_optimizer) = made(), made()
    one = step(whole, optimizer, split(8), dtype=torch.bfloat16)
    other = step(parts, their_optimizer, split(rows), dtype=torch.bfloat16)
    assert other.loss == pytest.approx(one.loss, rel=1e-3)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=5e-3)
    for name, p in whole.named_parameters():
        assert optimizer.state[p]["exp_avg"].dtype == torch.float32
        mean, other_mean = optimizer.state[p]["exp_avg"], their_optimizer.state[parts.get_parameter(name)]["exp_avg"]
        assert (other_mean - mean).norm() <= 0.02 * mean.norm(), name


class HalfOfTwo(Ranks):
    """One of two ranks, whose sum with the other is told by a mark on its own numbers."""

    def total(self, *numbers: float) -> list[float]:
        return [number + 1000 for number in numbers]


def test_ranks_share_the_batches_of_an_evaluation_and_sum_what_they_found() -> None:
    model, _ = made()
    batches = list(evaluation_batches(torch.arange(77).numpy().astype("uint16") % 31, 8, 2, end_of_text_id=0))
    whole, count = evaluate(model, batches, ranks=ALONE, dtype=torch.float32)
    halves = [
        evaluate(model, batches, ranks=HalfOfTwo(rank, 2, torch.device("cpu")), dtype=torch.float32) for rank in (0, 1)
    ]
    assert sum(nats for nats, _ in halves) - 2000 == pytest.approx(whole)
    assert sum(tokens for _, tokens in halves) - 2000 == count == 77


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_an_evaluation_is_the_sum_over_every_token_whatever_the_batches(rows: int) -> None:
    model, _ = made(dropout=0.4)
    tokens = torch.randint(31, (77,), generator=torch.Generator().manual_seed(1)).numpy().astype("uint16")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(tokens, 8, rows, end_of_text_id=0)

    nats, count = evaluate(model, batches(), ranks=ALONE, dtype=torch.float32)
    again, _ = evaluate(model, batches(), ranks=ALONE, dtype=torch.float32)
    assert count == 77
    assert nats == again  # no dropout
    assert nats / count == pytest.approx(math.log(31), rel=0.05)  # an untrained model knows nothing
    whole, _ = evaluate(model, evaluation_batches(tokens, 8, 1000, end_of_text_id=0), ranks=ALONE, dtype=torch.float32)
    assert nats == pytest.approx(whole, rel=1e-5)
    assert model.training
