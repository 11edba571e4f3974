from __future__ import annotations

import pytest
import torch

from tests.models.kinds import KINDS
from weightdecay.errors import ConfigError
from weightdecay.models.cache import Cache
from weightdecay.models.decoder import GPT
from weightdecay.models.latent import LatentAttention
from weightdecay.planning.plan import plan
from weightdecay.planning.roles.roles import Role
from weightdecay.recipes.schema import recipe

latent_kinds = pytest.mark.parametrize("kind", ["deepseek", "moonlight"])


@latent_kinds
@pytest.mark.parametrize("changes", [{}, {"window": 5}, {"attention_softcap": 3.0}], ids=["plain", "window", "capped"])
def test_a_token_after_a_cache_is_the_last_one_of_the_whole_text(kind: str, changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = GPT(KINDS[kind].replace(**changes)).eval()
    tokens = torch.randint(50, (2, 24))
    cache = Cache(model.config)
    with torch.no_grad():
        whole = model(tokens)
        steps = [model(tokens[:, :9], cache), model(tokens[:, 9:14], cache)]
        steps += [model(tokens[:, place : place + 1], cache) for place in range(14, 24)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


@latent_kinds
def test_the_cache_holds_the_latent_and_the_rotary_key_and_nothing_a_head(kind: str) -> None:
    model, config = GPT(KINDS[kind]).eval(), KINDS[kind]
    cache = Cache(config)
    model(torch.randint(50, (2, 7)), cache)
    kept = sum(
        tensor.numel() for layer in cache.layers for tensor in (layer._keys, layer._values) if tensor is not None
    )
    assert kept == 2 * config.context * config.n_layers * (
        config.at("latent.kv_rank") + config.at("latent.rotary_head_dim")
    )


def test_the_scale_is_that_of_the_whole_head() -> None:
    config = KINDS["deepseek"]
    assert config.latent is not None
    assert LatentAttention(config, config.latent, 0).scale == pytest.approx(10**-0.5)


def test_what_each_tensor_of_it_is_for_is_known() -> None:
    decided = plan(GPT(KINDS["deepseek"]), weight_decay=0.1)
    at = "blocks.1.attention"
    for name in ("query_down", "query_up", "kv_down", "kv_up", "out"):
        assert decided[f"{at}.{name}.weight"].role == Role.LINEAR
    for name in ("query_norm", "kv_norm"):
        assert decided[f"{at}.{name}.weight"].role == Role.NORM_GAIN
    assert decided["blocks.1.feedforward.router.weight"].role == Role.ROUTER
    decided_on = {tensor.name for tensor in decided}
    assert not [name for name in decided_on if "selection_bias" in name]  # no gradient, so no optimizer and no decay


@pytest.mark.parametrize(
    ("name", "total", "active", "tables"),
    [
        # Without the module that predicts a second token; the report's 671B and 37B, and 36.7B with one table of 0.9B.
        ("deepseek-v3:671b", 671_026_404_352, 36.6e9, 1),
        # Liu et al. 2025, table 4: 15.29B and 2.24B without embedding and head.
        ("moonlight:16b", 15_960_108_544, 2.24e9, 0),
    ],
)
def test_published_models_have_the_parameters_and_the_active_ones_that_their_papers_say(
    name: str, total: int, active: float, tables: int
) -> None:
    model = GPT.blueprint(recipe(name).model)
    config = model.config
    assert model.n_parameters() == total
    asleep = sum(p.numel() for name, p in model.named_parameters() if ".expert_" in name)
    asleep -= asleep * config.at("experts.per_token") // config.at("experts.n_experts")
    assert total - asleep - (2 - tables) * config.vocab_size * config.d_model == pytest.approx(active, rel=3e-3)


def test_what_does_not_go_with_latent_attention_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        KINDS["deepseek"].replace(positions="learned", qk_norm="head", n_kv_heads=2, rotary_head_dim=3)
    assert len(caught.value.faults) == 4
    for expected in ("positions = 'rotary'", "qk_norm = 'none'", "n_kv_heads = 4, got 2", "rotary_head_dim = 3 must"):
        assert expected in str(caught.value)
    with pytest.raises(
        ConfigError, match=r"model\.latent\.q_rank = 14, model\.latent\.rotary_head_dim = 4.* of latent attention alone"
    ):
        KINDS["deepseek"].replace(kv_rank=0)


def test_groups_that_cannot_be_are_told() -> None:
    with pytest.raises(ConfigError, match=r"n_experts = 8 are not model\.experts\.n_groups = 3 of two or more"):
        KINDS["deepseek"].replace(n_expert_groups=3)
    with pytest.raises(ConfigError, match=r"1 of 4 groups of 2 cannot give model\.experts\.per_token = 3"):
        KINDS["deepseek"].replace(expert_groups_per_token=1)
    with pytest.raises(ConfigError, match=r"belong to model\.experts\.router = 'sigmoid'"):
        KINDS["mixtral"].replace(router_bias_speed=0.001)
