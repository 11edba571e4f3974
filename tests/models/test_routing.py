from __future__ import annotations

import pytest
import torch

from tests.models.kinds import KINDS
from weightdecay.models.decoder import GPT
from weightdecay.models.experts import Experts
from weightdecay.models.routing import Router, counted, load_imbalance


def router(kind: str) -> Router:
    torch.manual_seed(0)
    config = KINDS[kind]
    assert config.experts is not None
    made = Router(config.d_model, config.experts, centred=config.training.router_bias_update == "centred_sign")
    torch.nn.init.normal_(made.weight, std=0.5)
    return made


def bias_of(made: Router) -> torch.Tensor:
    assert made.selection_bias is not None
    return made.selection_bias


@pytest.mark.parametrize(("kind", "total"), [("mixtral", 1.0), ("deepseek", 2.5), ("moonlight", 2.446)])
def test_weights_over_the_chosen_add_up_to_the_routers_scale(kind: str, total: float) -> None:
    weights = router(kind)(torch.randn(40, 24)).weights
    torch.testing.assert_close(weights.sum(-1), torch.full((40,), total))


def test_weights_over_all_experts_add_up_to_less_than_one() -> None:
    made, x = router("grok1"), torch.randn(40, 24)
    routing = made(x)
    torch.testing.assert_close(routing.weights, (x @ made.weight.T).softmax(-1).gather(1, routing.chosen))
    assert (routing.weights.sum(-1) < 1).all()


def test_the_bias_decides_who_is_chosen_and_not_with_what_weight() -> None:
    made, x = router("moonlight"), torch.randn(40, 24)
    before = made(x)
    bias_of(made)[2] = 2.0
    after = made(x)
    assert (before.chosen == 2).any(1).sum() < 40
    assert (after.chosen == 2).any(1).all()
    scores = after.logits.sigmoid().gather(1, after.chosen)
    torch.testing.assert_close(after.weights, 2.446 * scores / scores.sum(-1, keepdim=True))
    kept = (before.chosen.sort(-1).values == after.chosen.sort(-1).values).all(-1)
    torch.testing.assert_close(before.weights[kept].sort(-1).values, after.weights[kept].sort(-1).values)


def test_a_token_stays_within_its_best_groups() -> None:
    made, x = router("deepseek"), torch.randn(200, 24)
    routing = made(x)
    groups = routing.chosen // 2
    assert max(len(set(row.tolist())) for row in groups) == 2
    best = routing.logits.sigmoid().view(200, 4, 2).sum(-1).topk(2).indices
    assert all(set(row.tolist()) <= set(allowed.tolist()) for row, allowed in zip(groups, best, strict=True))
    anywhere = routing.logits.topk(3).indices.sort(-1).values
    assert not torch.equal(anywhere, routing.chosen.sort(-1).values)


@pytest.mark.parametrize("kind", ["mixtral", "deepseek"])
def test_the_router_computes_in_float32_under_autocast(kind: str) -> None:
    made, x = router(kind), torch.randn(40, 24)
    with torch.autocast("cpu", torch.bfloat16):
        routing = made(x)
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.logits, made(x).logits)


def test_the_bias_goes_up_for_experts_with_too_few_tokens_and_down_for_those_with_too_many() -> None:
    made = router("deepseek")
    made.shift_bias(torch.tensor([9, 3, 1, 3, 3, 3, 1, 1]), speed=0.001)  # 3 each would be even
    expected = torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]) * 0.001
    torch.testing.assert_close(bias_of(made), expected)
    centred = router("moonlight")
    centred.shift_bias(torch.tensor([13, 1, 1, 1, 1, 1]), speed=0.001)
    torch.testing.assert_close(bias_of(centred), torch.tensor([-5 / 3, *[1 / 3] * 5]) * 0.001)
    assert abs(float(bias_of(centred).sum())) < 1e-9


def test_moving_the_bias_evens_out_a_load_that_was_uneven() -> None:
    made = router("moonlight")
    x = torch.randn(500, 24) + 0.5 * made.weight.detach()[0]

    def violation() -> float:
        load = counted(made(x).chosen.view(1, -1), 6)[0].float()
        return float(load.max() / load.mean() - 1)

    before = violation()
    for _ in range(300):
        made.shift_bias(counted(made(x).chosen.view(1, -1), 6)[0], speed=0.005)
    assert before > 0.5
    assert violation() < 0.1 * before


def test_the_load_of_a_model_is_counted_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = GPT(KINDS["deepseek"].replace(init_std=0.5))
    tokens = torch.randint(50, (3, 24))
    _, spread = model.head_input_and_spread(tokens)
    assert spread is not None
    assert spread.load.shape == (2, 8)  # the first of three layers is dense
    assert spread.load.sum(1).tolist() == [3 * 24 * 3] * 2
    model.shift_router_biases(spread.load, 0.001)
    biases = [bias_of(module) for module in model.modules() if isinstance(module, Router)]
    for bias, load in zip(biases, spread.load, strict=True):
        torch.testing.assert_close(bias, 0.001 * torch.sign(27.0 - load))


def test_choices_are_counted_group_by_group() -> None:
    chosen = torch.tensor([[0, 0, 3], [1, 2, 2]])
    assert counted(chosen, 4).tolist() == [[2, 0, 0, 1], [0, 1, 2, 0]]


def test_the_imbalance_is_one_where_tokens_spread_evenly_and_grows_to_the_number_of_experts() -> None:
    even = torch.eye(4).repeat(5, 1)[None] * 1e-3
    assert load_imbalance(even, even.topk(1).indices, "softmax_of_chosen").item() == pytest.approx(1.0, abs=1e-3)
    one = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).repeat(8, 1)[None]
    assert load_imbalance(one, one.topk(1).indices, "softmax_of_all").item() == pytest.approx(4.0)


def test_sequences_that_are_uneven_each_in_its_own_way_are_even_as_a_batch() -> None:
    one = 50.0 * torch.eye(4)[:, None].repeat(1, 6, 1)  # a sequence an expert
    chosen = one.topk(1).indices
    assert load_imbalance(one, chosen, "softmax_of_all").item() == pytest.approx(4.0)
    assert load_imbalance(one.view(1, -1, 4), chosen.view(1, -1, 1), "softmax_of_all").item() == pytest.approx(1.0)


def test_the_loss_over_sequences_is_deepseek_v3s_formula_whatever_the_bias_chose() -> None:
    torch.manual_seed(0)
    config = KINDS["deepseek"]
    assert config.experts is not None
    experts = Experts(config, config.experts)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(bias_of(experts.router))
    x = torch.randn(2, 7, 24)
    losses = []
    for sequence in x:
        scores = (sequence @ experts.router.weight.T).sigmoid()  # [T, X]
        among_best = torch.zeros_like(scores).scatter(1, scores.topk(3).indices, 1.0)
        f = 8 / (3 * 7) * among_best.sum(0)
        p = (scores / scores.sum(1, keepdim=True)).mean(0)
        losses.append((f * p).sum())
    torch.testing.assert_close(experts.spread(experts(x)[1], sequences=2).imbalance, torch.stack(losses).mean())


def test_the_imbalance_pulls_the_router_towards_an_even_spread() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(1, 64, 4) + torch.tensor([2.0, 0.0, 0.0, 0.0])).requires_grad_()
    (gradient,) = torch.autograd.grad(load_imbalance(logits, logits.topk(2).indices, "softmax_of_chosen"), logits)
    assert gradient[..., 0].sum() > 0
    assert gradient[..., 1:].sum() < 0
