from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdecay.errors import ConfigError
from weightdecay.models.attention import causal_attention
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.generate import _draw, generate
from weightdecay.models.layers import Linear, Rotary, StochasticDepth
from weightdecay.recipes.schema import recipe

GPT2_LIKE = ModelConfig(vocab_size=50, context=16, n_layers=2, d_model=24, n_heads=4)
LLAMA_LIKE = GPT2_LIKE.replace(
    n_kv_heads=2, norm="rmsnorm", positions="rotary", feedforward="swiglu", bias=False, tied_head=False,
    residual_init="plain",
)  # fmt: skip
FAMILIES = pytest.mark.parametrize("config", [GPT2_LIKE, LLAMA_LIKE], ids=["gpt2", "llama"])


@FAMILIES
def test_no_position_sees_what_comes_after_it(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = GPT(config).eval()
    tokens = torch.randint(50, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@FAMILIES
def test_a_longer_prefix_does_not_change_what_a_shorter_one_predicts(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = GPT(config).eval()
    tokens = torch.randint(50, (1, 16))
    torch.testing.assert_close(model(tokens)[:, :5], model(tokens[:, :5]))


@FAMILIES
def test_two_models_of_one_seed_are_equal_and_of_two_seeds_are_not(config: ModelConfig) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in GPT(config).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_layers_that_write_to_the_residual_stream_start_smaller_by_the_root_of_their_number() -> None:
    torch.manual_seed(0)
    config = GPT2_LIKE.replace(d_model=256, n_layers=8)
    scaled, plain = GPT(config), GPT(config.replace(residual_init="plain"))
    assert std_of(scaled, "blocks.3.attention.qkv.weight") == pytest.approx(0.02, rel=0.02)
    for name in ("blocks.3.attention.out.weight", "blocks.3.feedforward.down.weight"):
        assert std_of(scaled, name) == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
        assert std_of(plain, name) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(
    ("size", "inner", "output"),
    [("410m", math.sqrt(2 / (5 * 128)), 2 / (8 * math.sqrt(128))), ("12b", 0.02, 0.02 / math.sqrt(2 * 8))],
)
def test_pythias_weights_start_as_its_files_say(size: str, inner: float, output: float) -> None:
    """EleutherAI/gpt-neox@ea7aefd, init_functions.py: small_init and wang_init; 6.9b and 12b name neither."""
    torch.manual_seed(0)
    shape = {
        "model.vocab_size": 300,
        "model.context": 16,
        "model.n_layers": 8,
        "model.d_model": 128,
        "model.n_heads": 4,
    }
    model = GPT(recipe(f"pythia:{size}").config(shape).model)
    for name in ("embedding", "head", "blocks.7.attention.qkv", "blocks.7.feedforward.up"):
        assert std_of(model, f"{name}.weight") == pytest.approx(inner, rel=0.02), name
    for name in ("blocks.7.attention.out", "blocks.7.feedforward.down"):
        assert std_of(model, f"{name}.weight") == pytest.approx(output, rel=0.02), name


def test_gpt2s_positions_start_half_as_wide_as_its_tokens() -> None:
    """openai/gpt-2@9b63575, src/model.py: wpe and wte."""
    torch.manual_seed(0)
    model = GPT(recipe("gpt2:124m").config({"model.n_layers": 1, "model.vocab_size": 600, "model.n_heads": 8}).model)
    assert std_of(model, "positions.weight") == pytest.approx(0.01, rel=0.02)
    assert std_of(model, "embedding.weight") == pytest.approx(0.02, rel=0.02)


def std_of(model: GPT, name: str) -> float:
    return model.get_parameter(name).std().item()


def test_a_tied_head_is_one_tensor_and_counted_once() -> None:
    tied, untied = GPT(GPT2_LIKE), GPT(GPT2_LIKE.replace(tied_head=False))
    assert tied.head.weight is tied.embedding.weight
    assert untied.n_parameters() - tied.n_parameters() == 50 * 24


@settings(deadline=None, max_examples=25)
@given(
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 3)]),
    head_dim=st.sampled_from([2, 8]),
    time=st.integers(1, 12),
    positions=st.sampled_from(["learned", "rotary"]),
    feedforward=st.sampled_from(["gelu", "gelu_tanh", "swiglu"]),
)
def test_grouped_heads_equal_full_heads_with_repeated_rows(
    heads: tuple[int, int], head_dim: int, time: int, positions: str, feedforward: str
) -> None:
    """Grouped-query attention is multi-head attention whose groups share their key and value rows."""
    n_heads, n_kv = heads
    config = ModelConfig(
        vocab_size=11, context=12, n_layers=1, d_model=8, n_heads=n_heads, n_kv_heads=n_kv, head_dim=head_dim,
        positions=positions, feedforward=feedforward,
    )  # fmt: skip
    torch.manual_seed(time)
    grouped, full = GPT(config).eval(), GPT(config.replace(n_kv_heads=n_heads)).eval()
    weights = grouped.state_dict()
    for part in ("weight", "bias"):
        name = f"blocks.0.attention.qkv.{part}"
        q, k, v = weights[name].unflatten(0, (-1, head_dim)).split((n_heads, n_kv, n_kv))
        repeated = [kv.repeat_interleave(n_heads // n_kv, dim=0) for kv in (k, v)]
        weights[name] = torch.cat((q, *repeated)).flatten(0, 1)
    full.load_state_dict(weights)
    tokens = torch.randint(11, (2, time))
    torch.testing.assert_close(grouped(tokens), full(tokens))


@pytest.mark.parametrize("time", [1, 7, 128])
def test_short_bfloat16_attention_on_a_processor_agrees_with_torchs_own(time: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, time, 16, dtype=torch.bfloat16) for _ in range(3))
    ours = causal_attention(q, k, v).float()
    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    torch.testing.assert_close(ours, exact, atol=2e-2, rtol=2e-2)


def test_rotary_scores_depend_on_distance_alone_and_norms_stay() -> None:
    torch.manual_seed(0)
    turn = Rotary(head_dim=16, context=64, base=10_000.0)
    q, k = torch.randn(16), torch.randn(16)
    turned_q = turn(q.expand(1, 1, 64, 16))[0, 0]
    turned_k = turn(k.expand(1, 1, 64, 16))[0, 0]
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(64))
    scores = turned_q @ turned_k.T
    for distance in (0, 3, 20):
        torch.testing.assert_close(
            scores.diagonal(-distance), scores[distance, 0].expand(64 - distance), atol=1e-4, rtol=0
        )
    assert not torch.allclose(scores[3, 0], scores[20, 0])


def test_stochastic_depth_drops_whole_sequences_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    x = torch.ones(20_000, 2, 3)
    y = layer.train()(x)
    per_sequence = y.flatten(1)
    assert (per_sequence == per_sequence[:, :1]).all()
    assert per_sequence[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(x), x)


def test_earlier_blocks_are_dropped_less() -> None:
    model = GPT(GPT2_LIKE.replace(n_layers=4, stochastic_depth=0.2))
    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    assert [layer.probability for layer in layers] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_every_fault_of_a_configuration_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(vocab_size=0, context=8, n_layers=1, d_model=8, n_heads=2, norm="rmsnrm", dropout=1.0)
    assert len(caught.value.faults) == 3
    assert "did you mean 'rmsnorm'" in str(caught.value)
    with pytest.raises(ConfigError, match="not a multiple"):
        ModelConfig(vocab_size=5, context=8, n_layers=1, d_model=8, n_heads=3, n_kv_heads=2, head_dim=2)
    with pytest.raises(ConfigError, match="must be even"):
        ModelConfig(vocab_size=5, context=8, n_layers=1, d_model=9, n_heads=3, positions="rotary")


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="17 tokens do not fit"):
        GPT(GPT2_LIKE)(torch.zeros(1, 17, dtype=torch.long))


@FAMILIES
def test_sampling_repeats_with_its_seed_and_is_greedy_at_temperature_zero(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = GPT(config)

    def draw(**options: float) -> list[int]:
        return list(generate(model, [1, 2], max_tokens=30, **options))  # type: ignore[arg-type]

    assert draw(seed=3) == draw(seed=3)
    assert draw(seed=3) != draw(seed=4)
    greedy = draw(temperature=0.0)
    assert greedy == draw(temperature=0.0, seed=9) == draw(top_k=1, seed=5)
    model.eval()
    assert greedy[0] == int(model(torch.tensor([[1, 2]]))[0, -1].argmax())
    assert greedy[20] == int(model(torch.tensor([[1, 2, *greedy[:20]][-16:]]))[0, -1].argmax())


def test_sampling_ends_at_the_stop_token_and_leaves_the_model_in_its_mode() -> None:
    torch.manual_seed(0)
    model = GPT(GPT2_LIKE).train()
    drawn = list(generate(model, [1], max_tokens=20, temperature=0.0))
    stopped = list(generate(model, [1], max_tokens=20, temperature=0.0, stop_token=drawn[3]))
    assert stopped == drawn[: drawn.index(drawn[3])]
    assert model.training
    with pytest.raises(ConfigError, match="empty prompt"):
        list(generate(model, [], max_tokens=1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [512, 510])  # as many rows in each part, or not
def test_a_single_sampled_row_is_multiplied_as_any_other(outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(384, outputs, bias=bias)
    x = torch.randn(1, 1, 384)
    expected = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.inference_mode():
        seen = layer(x)
    assert seen.shape == (1, 1, outputs)
    torch.testing.assert_close(seen.double(), expected, rtol=1e-5, atol=1e-6)


def test_tokens_are_drawn_as_often_as_the_softmax_says() -> None:
    logits, generator = torch.tensor([0.0, -math.inf, 2.0, 1.0, -math.inf]), torch.Generator().manual_seed(0)
    drawn = torch.tensor([_draw(logits, 0.5, 0, generator) for _ in range(4_000)])
    shares = drawn.bincount(minlength=5) / len(drawn)
    assert shares[1] == shares[4] == 0
    assert (shares - (logits / 0.5).softmax(0)).abs().max() < 4 * math.sqrt(0.25 / len(drawn))
