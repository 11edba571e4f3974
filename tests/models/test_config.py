"""A decoder's configuration in parts, and the names that it had without them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.declared.wrong import out_of_range
from tests.models.kinds import KINDS
from weightdecay.declared.fields import choices, leaves
from weightdecay.declared.values import plain
from weightdecay.errors import ConfigError
from weightdecay.models import huggingface
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.flat import FLAT, PLACEMENT, PLACEMENTS
from weightdecay.models.parts import AttentionConfig, ExpertsConfig, NormsConfig, TrainingConfig

SHAPE: dict[str, Any] = {"vocab_size": 50, "context": 24, "n_layers": 3, "d_model": 24}
SMALL = ModelConfig(**SHAPE, n_heads=4)
every_kind = pytest.mark.parametrize("kind", KINDS)
old_names = pytest.mark.parametrize("name", FLAT)


def without_parts(config: ModelConfig) -> dict[str, Any]:
    """A configuration by the names that it had before it came in parts."""
    top = {name: value for name, value in plain(config).items() if not isinstance(value, dict)}
    return top | {name: getattr(config, name) for name in FLAT} | {PLACEMENT: getattr(config, PLACEMENT)}


@every_kind
def test_by_the_old_names_it_is_the_same_configuration(kind: str) -> None:
    assert ModelConfig(**without_parts(KINDS[kind])) == KINDS[kind]


@every_kind
def test_parts_may_be_dataclasses_or_tables(kind: str) -> None:
    config = KINDS[kind]
    assert ModelConfig(**vars(config)) == ModelConfig(**plain(config)) == config.replace() == config


@every_kind
def test_it_is_a_value_that_can_be_copied_sent_and_kept(kind: str) -> None:
    config = KINDS[kind]
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(copy.deepcopy(config)) == hash(config)


@old_names
def test_every_old_name_is_of_a_field_that_there_is_and_still_answers(name: str) -> None:
    found = leaves(ModelConfig)[FLAT[name]]
    if name != "n_heads":
        assert getattr(KINDS["gpt2"].replace(mixing=None), name) in (found.default, 4, 6, 0.2)


@old_names
def test_a_wrong_value_by_an_old_name_is_told_by_the_name_of_today(name: str) -> None:
    found = leaves(ModelConfig)[FLAT[name]]
    wrong: list[Any] = [*out_of_range(found.hint), *(["no-such"] if choices(found.hint) else [])] or [[1]]
    with pytest.raises(ConfigError, match=f"model\\.{FLAT[name]} = "):
        ModelConfig(**{**SHAPE, "n_heads": 4, name: wrong[0]})


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_where_norms_stand_is_one_word_or_two(placement: str) -> None:
    config = SMALL.replace(norm_placement=placement)
    assert getattr(config, PLACEMENT) == placement
    before, after = PLACEMENTS[placement].values()
    assert config == SMALL.replace(norms=NormsConfig(before=before, after=after))


def test_norms_before_and_after_the_sum_are_a_block_too() -> None:
    """A fifth place, that nothing had to be written for."""
    torch.manual_seed(0)
    model = GPT(SMALL.replace(norms=NormsConfig(before=True, after="sum"))).eval()
    block: Any = model.blocks[0]
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        y = block.attention_output_norm(x + block.attention(block.attention_norm(x)))
        expected = block.feedforward_output_norm(y + block.feedforward(block.feedforward_norm(y)))
        torch.testing.assert_close(block(x)[0], expected)


def test_a_part_can_be_given_whole_in_some_of_its_fields_and_taken_away() -> None:
    experts = ExpertsConfig(n_experts=4, router="sigmoid")
    made = SMALL.replace(bias=False, experts=experts, training=TrainingConfig(dropout=0.1))
    assert made.replace(n_experts=8).experts == ExpertsConfig(n_experts=8, router="sigmoid")
    assert made.replace(n_experts=0).experts is made.replace(experts=None).experts is None
    assert made.replace(attention=AttentionConfig(n_heads=2)).attention.head_dim == 12
    assert made.training.dropout == 0.1


def test_a_misspelt_part_or_field_of_a_part_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**SHAPE, attention={"n_head": 4}, expertz={"n_experts": 2})
    text = str(caught.value)
    for words in (
        "model.attention.n_heads is missing",
        "unknown key 'model.attention.n_head': did you mean 'model.attention.n_heads'",
        "unknown key 'model.expertz.n_experts': did you mean 'model.experts.n_experts'",
    ):
        assert words in text


def test_the_same_function_is_told_apart_from_how_it_is_trained() -> None:
    trained = SMALL.replace(dropout=0.3, z_loss=1e-4, init="small", residual_init="wang")
    assert trained.as_function() == SMALL.as_function() == SMALL.as_function().as_function()
    assert SMALL.replace(window=3).as_function() != SMALL.as_function()


@every_kind
def test_a_directory_of_the_first_form_is_read(kind: str, tmp_path: Path) -> None:
    document = {"format": 1, "model": without_parts(KINDS[kind])}
    (tmp_path / "weightdecay.json").write_text(json.dumps(document), encoding="utf-8")
    assert huggingface.read_config(tmp_path) == KINDS[kind]
