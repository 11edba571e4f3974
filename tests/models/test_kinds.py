from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.kinds import KINDS
from weightdecay.errors import ConfigError
from weightdecay.models.attention import Attention, causal_attention, score_mask
from weightdecay.models.block import Block, make_block
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.generate import generate
from weightdecay.models.layers import Rotary, UnitOffsetRMSNorm, alibi_slopes, make_norm
from weightdecay.models.objective import Objective
from weightdecay.models.relative import RelativePositions
from weightdecay.planning.plan import plan
from weightdecay.planning.roles.roles import Role

every_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(kind: str, **changes: object) -> GPT:
    torch.manual_seed(0)
    return GPT(KINDS[kind].replace(**changes))


@every_kind
def test_no_position_sees_what_comes_after_it(kind: str) -> None:
    model = model_of(kind).eval()
    tokens = torch.randint(50, (2, 24))
    changed = tokens.clone()
    changed[:, 13:] = (changed[:, 13:] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :13], after[:, :13], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 13:], after[:, 13:])


@every_kind
def test_the_cache_changes_no_token_also_past_the_end_of_the_context(kind: str) -> None:
    model = model_of(kind)
    each: list[dict[str, Any]] = [{"temperature": 0.0}, {"seed": 3}]
    for options in each:
        cached, whole = (
            list(generate(model, [1, 2, 3], max_tokens=40, cached=cached, **options)) for cached in (True, False)
        )
        assert cached == whole
    assert len(cached) == 40


@every_kind
def test_a_model_in_bfloat16_runs_forwards_backwards_and_from_the_cache(kind: str) -> None:
    model = model_of(kind).to(torch.bfloat16)
    assert all(0 <= token < 50 for token in generate(model, [1, 2, 3], max_tokens=30, temperature=0.0))
    logits = model(torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0)))
    exact = model_of(kind)(torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0)))
    # Rounding sends a token now and then to another expert, and those behind it see that.
    off = (logits.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert (off.median() if model.config.experts else off.max()) <= 0.04
    logits.float().sum().backward()


@every_kind
def test_training_moves_every_tensor_the_same_way_twice(kind: str) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        model = model_of(kind, dropout=0.1, stochastic_depth=0.1).train()
        torch.manual_seed(1)
        tokens = torch.randint(50, (3, 25))
        with torch.autocast("cpu", torch.bfloat16):
            loss = Objective(model)(tokens[:, :-1], tokens[:, 1:]).total
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    first, second = gradients(), gradients()
    assert first.keys() == dict(model_of(kind).named_parameters()).keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    still = {"smear.amount.weight"}  # its factor starts at 0
    assert all(gradient.abs().max() > 0 for name, gradient in first.items() if name not in still)


@every_kind
def test_the_default_plan_decays_the_matrices_and_nothing_else(kind: str) -> None:
    model = model_of(kind)
    decided = plan(model, weight_decay=0.1)
    for name, parameter in model.named_parameters():
        assert decided[name].weight_decay == (0.1 if parameter.ndim >= 2 else 0.0), name


def test_the_projections_of_a_narrow_embedding_are_linear_layers_without_biases() -> None:
    model = model_of("opt, narrow embedding")
    decided = plan(model, weight_decay=0.1)
    assert [name for name, _ in model.named_parameters() if name.startswith("project_")] == [
        "project_in.weight", "project_out.weight",
    ]  # fmt: skip
    assert decided["project_in.weight"].role == decided["project_out.weight"].role == Role.LINEAR
    assert model.embedding.weight.shape == model.head.weight.shape == (50, 10)


def test_the_places_of_the_norms_are_those_of_their_papers() -> None:
    def block(placement: str) -> tuple[Block, torch.Tensor]:
        torch.manual_seed(0)
        config = KINDS["llama"].replace(norm_placement=placement, n_layers=1)
        return first_block(config), torch.randn(2, 5, 24)

    with torch.no_grad():
        one, x = block("pre")
        y = x + one.attention(one.attention_norm(x))
        torch.testing.assert_close(one(x)[0], y + one.feedforward(second_norm(one)(y)))
        one, x = block("post")
        y = one.attention_norm(x + one.attention(x))
        torch.testing.assert_close(one(x)[0], second_norm(one)(y + one.feedforward(y)))
        one, x = block("output")
        y = x + one.attention_norm(one.attention(x))
        torch.testing.assert_close(one(x)[0], y + second_norm(one)(one.feedforward(y)))
        one, x = block("sandwich")
        y = x + one.attention_output_norm(one.attention(one.attention_norm(x)))
        z = one.feedforward_output_norm(one.feedforward(second_norm(one)(y)))
        torch.testing.assert_close(one(x)[0], y + z)


def first_block(config: ModelConfig) -> Block:
    return make_block(config, 0, Attention(config, 0)).eval()


def second_norm(block: Block) -> torch.nn.Module:
    assert block.feedforward_norm is not None
    return block.feedforward_norm


def test_parallel_branches_read_the_same_stream() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        one = first_block(KINDS["palm"])
        normed = one.attention_norm(x)
        torch.testing.assert_close(one(x)[0], x + one.attention(normed) + one.feedforward(normed))
        one = first_block(KINDS["pythia"])
        expected = x + one.attention(one.attention_norm(x)) + one.feedforward(second_norm(one)(x))
        torch.testing.assert_close(one(x)[0], expected)


def test_gpt3_sees_all_and_a_band_in_turn() -> None:
    config = KINDS["gpt3"].replace(n_layers=4)
    assert [config.window_of(layer) for layer in range(4)] == [0, 5, 0, 5]
    assert [block.attention.window for block in GPT(config).blocks] == [0, 5, 0, 5]  # type: ignore[union-attr]


@settings(deadline=None, max_examples=40)
@given(time=st.integers(1, 9), before=st.integers(0, 5), window=st.integers(0, 12), heads=st.sampled_from([1, 3]))
def test_a_mask_shows_each_position_itself_and_the_window_before_it(
    time: int, before: int, window: int, heads: int
) -> None:
    span = time + before
    slopes = tuple(alibi_slopes(heads))
    mask = score_mask(time, span, window, (), torch.zeros(()))
    leaning = score_mask(time, span, window, slopes, torch.zeros(()))
    for row in range(time):
        place = before + row
        for key in range(span):
            seen = key <= place and (window == 0 or place - key < window)
            assert mask[row, key].item() == (0.0 if seen else -math.inf)
            for head in range(heads):
                expected = -slopes[head] * (place - key) if seen else -math.inf
                assert leaning[head, row, key].item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("slopes", [(), (0.5, 0.25, 0.125)])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_every_path_of_attention_is_the_formula(
    dtype: torch.dtype, softcap: float, slopes: tuple[float, ...], window: int, biased: bool
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, time, 8) for time in (6, 9, 9))
    scores = q @ k.transpose(2, 3) * 0.4
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    bias = torch.randn(2, 3, 6, 9) if biased else torch.zeros(2, 3, 6, 9)
    expected = (scores + bias + score_mask(6, 9, window, slopes, scores)).softmax(-1) @ v
    q, k, v = (x.to(dtype) for x in (q, k, v))
    seen = causal_attention(
        q, k, v, scale=0.4, softcap=softcap, window=window, slopes=slopes, bias=bias if biased else None
    ).float()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(seen, expected, atol=tolerance, rtol=tolerance)


def test_alibis_slopes_are_the_papers() -> None:
    assert alibi_slopes(8) == [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(16)[:2] == [2**-0.5, 2**-1.0]
    assert alibi_slopes(12)[8:] == [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


@settings(deadline=None, max_examples=30)
@given(time=st.integers(1, 6), before=st.integers(0, 5), seed=st.integers(0, 99))
def test_relative_positions_are_transformer_xls_formula(time: int, before: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = KINDS["chinchilla"]
    relative, span = RelativePositions(config), time + before
    for parameter in relative.parameters():
        torch.nn.init.normal_(parameter)
    q, k = torch.randn(2, 4, time, 6), torch.randn(2, 4, span, 6)
    queries, gained = relative(q, span)
    scores = queries @ k.transpose(2, 3) + gained
    u, v = relative.content_bias.view(4, 6), relative.position_bias.view(4, 6)
    for row in range(time):
        for key in range(before + row + 1):
            angle = [(before + row - key) * 10_000 ** (-2 * pair / 24) for pair in range(12)]
            r = relative.project(torch.tensor([*map(math.sin, angle), *map(math.cos, angle)])).view(4, 6)
            expected = ((q[:, :, row] + u) * k[:, :, key]).sum(-1) + ((q[:, :, row] + v) * r).sum(-1)
            torch.testing.assert_close(scores[:, :, row, key], expected, rtol=1e-4, atol=1e-4)


def test_relative_positions_are_scaled_like_the_scores() -> None:
    torch.manual_seed(0)
    attention = Attention(KINDS["chinchilla"], 0).eval()
    assert attention.relative is not None
    x = torch.randn(2, 7, 24)
    heads = attention.qkv(x).view(2, 7, 12, 6).transpose(1, 2)
    q, k, v = heads[:, :4], heads[:, 4:8], heads[:, 8:]
    queries, gained = attention.relative(q, 7)
    scores = (queries @ k.transpose(2, 3) + gained) / math.sqrt(6)
    weights = (scores + torch.full((7, 7), -math.inf).triu(1)).softmax(-1)
    torch.testing.assert_close(attention(x), attention.out((weights @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("window", [0, 4])
def test_a_single_query_sees_what_the_last_of_many_sees(window: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8) for _ in range(3))
    bias = torch.randn(2, 3, 9, 9)
    whole = causal_attention(q, k, v, window=window, bias=bias)
    last = causal_attention(q[:, :, -1:], k, v, window=window, bias=bias[:, :, -1:])
    torch.testing.assert_close(last, whole[:, :, -1:])


def test_the_biases_of_relative_positions_do_not_decay_and_their_projection_does() -> None:
    decided = plan(model_of("chinchilla"), weight_decay=0.1)
    at = "blocks.1.attention.relative"
    assert decided[f"{at}.project.weight"].role == Role.LINEAR
    assert decided[f"{at}.content_bias"].role == decided[f"{at}.position_bias"].role == Role.BIAS


def test_a_part_of_a_head_turns_and_the_rest_stays() -> None:
    turn = Rotary(head_dim=6, context=24, base=10_000.0, fraction=0.34)
    x = torch.randn(1, 4, 24, 6)
    turned = turn(x)
    assert torch.equal(turned[..., 2:], x[..., 2:])
    assert not torch.allclose(turned[:, :, 1:, :2], x[:, :, 1:, :2])
    torch.testing.assert_close(turn(x[:, :, 9:], start=9), turned[:, :, 9:])


def test_a_gain_of_one_plus_w_starts_as_the_plain_norm() -> None:
    x = torch.randn(3, 8)
    norm = UnitOffsetRMSNorm(8, eps=1e-5)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (8,), eps=1e-5))
    norm.weight.data.fill_(1.0)
    torch.testing.assert_close(norm(x), 2 * torch.nn.functional.rms_norm(x, (8,), eps=1e-5))


@pytest.mark.parametrize("norm", ["rmsnorm", "rmsnorm_unit_offset", "rmsnorm_without_gain"])
def test_a_norm_gives_back_the_precision_it_was_given(norm: str) -> None:
    made = make_norm(KINDS["llama"].replace(norm=norm))
    assert made(torch.randn(2, 24).bfloat16()).dtype == torch.bfloat16
    assert made(torch.randn(2, 24)).dtype == torch.float32


def test_a_norm_without_gain_has_no_parameter() -> None:
    names = [name for name, _ in model_of("nanochat").named_parameters() if "norm" in name]
    assert names == []


def test_logits_are_capped() -> None:
    model = model_of("nanochat", embedding_init_std=50.0, logit_multiplier=100.0).eval()
    logits = model(torch.randint(50, (2, 24)))
    assert logits.abs().max() <= 15.0
    assert logits.abs().max() > 14.0


def test_the_objective_is_cross_entropy_and_what_the_configuration_adds() -> None:
    model = model_of("mixtral", z_loss=0.01).eval()
    tokens = torch.randint(50, (2, 25))
    x, y = tokens[:, :-1], tokens[:, 1:]
    losses = Objective(model)(x, y)
    x_BTD, spread = model.head_input_and_spread(x)
    logits = model.logits(x_BTD)
    assert spread is not None
    torch.testing.assert_close(
        losses.cross_entropy, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    )
    z = logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(losses.auxiliary, 0.01 * z + 0.01 * spread.imbalance)
    torch.testing.assert_close(losses.total, losses.cross_entropy + losses.auxiliary)
    assert Objective(model_of("gpt2"))(x, y).auxiliary.item() == 0.0


def test_initial_weights_have_the_spread_that_was_asked_for() -> None:
    torch.manual_seed(0)
    base = KINDS["palm"].replace(d_model=256, d_ff=512, n_heads=4, head_dim=64)
    model = GPT(base)
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.05)
    for name, inputs in (("attention.qkv", 256), ("feedforward.up", 256), ("feedforward.down", 512)):
        weight = model.get_parameter(f"blocks.1.{name}.weight")
        assert weight.std().item() == pytest.approx(inputs**-0.5, rel=0.05)


def test_truncated_initial_weights_end_at_three_deviations() -> None:
    model = model_of("gpt2", init="truncated", init_std=0.02, residual_init="plain", d_model=128, d_ff=512)
    for table in (True, False):
        weights = [
            parameter.detach().flatten()
            for name, parameter in model.named_parameters()
            if parameter.ndim == 2 and ("embedding" in name) == table
        ]
        assert 0.055 < float(torch.cat(weights).abs().max()) <= 0.06
    zero = model_of("gpt2", init="truncated", residual_init="zero")
    assert float(zero.get_parameter("blocks.0.attention.out.weight").detach().abs().max()) == 0.0


def test_embedding_dropout_can_be_off_while_the_rest_drops() -> None:
    assert model_of("opt", dropout=0.1, embedding_dropout=False).dropout.p == 0.0
    assert model_of("opt", dropout=0.1).dropout.p == 0.1


def test_values_that_contradict_each_other_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(
            vocab_size=5, context=8, n_layers=1, d_model=8, n_heads=2, n_experts=2, experts_per_token=3,
            window_pattern="SX", branches="parallel", norm_placement="output", rotary_fraction=1.5,
        )  # fmt: skip
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 5
    for expected in ("rotary_fraction", "experts.per_token", "no biases", "window_pattern", "norms before them"):
        assert expected in text
