"""nanochat's learned mixtures of the stream, against the same written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.models.kinds import KINDS
from weightdecay.errors import ConfigError
from weightdecay.models.attention import Attention
from weightdecay.models.decoder import GPT
from weightdecay.models.mixing import ResidualScales, Smear, ValueAttention
from weightdecay.planning.plan import plan
from weightdecay.planning.roles.roles import Role
from weightdecay.recipes.schema import recipe

CONFIG = KINDS["nanochat"].replace(n_layers=4)


def made() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_the_whole_stream_is_mixed_as_nanochat_does() -> None:
    model = made()
    smear, scales = model.get_submodule("smear"), model.get_submodule("residual_scales")
    assert isinstance(smear, Smear)
    assert isinstance(scales, ResidualScales)
    tokens = torch.randint(50, (2, 24))
    with torch.no_grad():
        x = F.rms_norm(model.embedding(tokens), (24,), eps=1e-5)
        share = smear.scale * torch.sigmoid(x[:, 1:, :7] @ smear.amount.weight.T)
        x = first = torch.cat((x[:, :1], x[:, 1:] + share * x[:, :-1]), dim=1)
        middle = first
        for layer, block in enumerate(model.blocks):
            x = scales.residual_scale[layer] * x + scales.input_scale[layer] * first
            more = [model.get_submodule(f"value_embeddings.{layer}")(tokens)] if layer in (1, 3) else []
            x = block(x, None, *more)[0]
            middle = x if layer == 2 else middle
        x = F.rms_norm(x - model.get_parameter("backout_scale") * middle, (24,), eps=1e-5)
        expected = 15 * torch.tanh(model.head(x) / 15)
        torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)


def test_each_head_adds_its_part_of_the_value_embedding_times_its_gate() -> None:
    torch.manual_seed(0)
    config = CONFIG.replace(window=0)
    assert config.mixing is not None
    gated, plain = ValueAttention(config, config.mixing, 3), Attention(config, 3)
    plain.load_state_dict(gated.state_dict(), strict=False)
    x, more = torch.randn(2, 1, 24), torch.randn(2, 1, 24)  # one position: attention gives back its value
    gate = 3 * torch.sigmoid(x[..., :5] @ gated.value_gate.weight.T).repeat_interleave(6, dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(gated(x, None, more) - plain(x), gated.out(gate * more))


def test_the_scales_begin_along_a_line_from_the_first_layer_to_the_last() -> None:
    assert CONFIG.mixing is not None
    scales = ResidualScales(CONFIG.mixing, CONFIG.n_layers)
    assert scales.residual_scale.tolist() == pytest.approx([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05])
    assert scales.input_scale.tolist() == pytest.approx([0.20, 0.15, 0.10, 0.05])
    assert Smear(7).scale.item() == 0.0


def test_branches_can_begin_at_zero_and_the_head_narrower_than_the_rest() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG.replace(residual_init="zero", init="fan_in", head_init_std=0.001, embedding_init_std=0.8))
    assert model.get_parameter("blocks.1.attention.out.weight").abs().max() == 0
    assert model.get_parameter("blocks.1.feedforward.down.weight").abs().max() == 0
    assert model.head.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model.embedding.weight.std().item() == pytest.approx(0.8, rel=0.1)
    assert model.get_parameter("value_embeddings.1.weight").std().item() == pytest.approx(24**-0.5, rel=0.1)


def test_nanochats_weights_start_as_its_code_draws_them() -> None:
    """karpathy/nanochat@92d63d4, nanochat/gpt.py, init_weights()."""
    torch.manual_seed(0)
    shape = {"model.vocab_size": 300, "model.context": 16, "model.n_layers": 2, "model.d_model": 96, "model.n_heads": 6}
    model = GPT(recipe("nanochat:d12").config(shape).model)
    bound = math.sqrt(3 / 96)
    for name, low, high in (
        ("blocks.1.attention.qkv", -bound, bound),
        ("blocks.1.feedforward.up", -0.4 * bound, 0.4 * bound),
        ("value_embeddings.1", -bound, bound),
        ("blocks.1.attention.value_gate", 0.0, 0.02),
        ("smear.amount", 0.0, 0.02),
    ):
        weight = model.get_parameter(f"{name}.weight").detach()
        assert low <= weight.min() < low + 0.15 * (high - low), name
        assert high - 0.15 * (high - low) < weight.max() <= high, name
        if weight.numel() > 100:
            assert weight.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.02), name
    for name, std in (("embedding", 0.8), ("head", 0.001)):
        weight = model.get_parameter(f"{name}.weight").detach()
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert weight.abs().max() > 3 * std
    for name in ("attention.out", "feedforward.down"):
        assert model.get_parameter(f"blocks.1.{name}.weight").abs().max() == 0


def test_its_tables_are_embeddings_and_its_scales_do_not_decay() -> None:
    decided = plan(GPT(CONFIG), weight_decay=0.1)
    assert decided["value_embeddings.3.weight"].role == Role.EMBEDDING
    assert decided["smear.amount.weight"].role == decided["blocks.3.attention.value_gate.weight"].role == Role.LINEAR
    for name in ("smear.scale", "backout_scale", "residual_scales.residual_scale", "residual_scales.input_scale"):
        assert decided[name].role == Role.SCALE
        assert decided[name].weight_decay == 0.0


def test_scales_of_the_embeddings_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"begin with model\.mixing\.residual_scale_first"):
        CONFIG.replace(residual_scale_first=0.0)


def test_a_gate_cannot_read_more_features_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"value_gate_inputs = 25 is more than model\.d_model = 24"):
        CONFIG.replace(value_gate_inputs=25)
    with pytest.raises(ConfigError, match=r"needs model\.mixing\.value_gate_inputs = 0, got 5"):
        KINDS["deepseek"].replace(value_gate_inputs=5)
