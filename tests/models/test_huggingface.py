"""Directories of models: what is written, and every way in which one can be unreadable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.kinds import KINDS
from weightdecay.errors import ConfigError, DamagedError
from weightdecay.models import huggingface
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.families import FAMILIES, family_of
from weightdecay.models.routing import Router
from weightdecay.recipes.schema import Recipe, all_recipes


def written(folder: Path, kind: str = "llama", config: ModelConfig | None = None) -> tuple[ModelConfig, GPT]:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = GPT(config or KINDS[kind])
    for router in (module for module in model.modules() if isinstance(module, Router)):
        if router.selection_bias is not None:
            torch.nn.init.normal_(router.selection_bias)
    huggingface.write(folder, model.config, model.tensors(), end_of_text_id=3)
    return model.config, model


def read(folder: Path) -> dict[str, torch.Tensor]:
    return huggingface.read_weights(folder, huggingface.read_config(folder), report=lambda _: None)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config, model = written(tmp_path, kind)
    assert huggingface.read_config(tmp_path).as_function() == config.as_function()
    again = read(tmp_path)
    tensors = model.tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in again)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("gpt2", "GPT2LMHeadModel"), ("opt", "OPTForCausalLM"), ("bloom", "BloomForCausalLM"),
        ("gpt1", "OPTForCausalLM"), ("opt, narrow embedding", "OPTForCausalLM"),
        ("llama", "LlamaForCausalLM"), ("mistral", "MistralForCausalLM"), ("mixtral", "MixtralForCausalLM"),
        ("olmo2", "Olmo2ForCausalLM"), ("deepseek", "DeepseekV3ForCausalLM"), ("moonlight", "DeepseekV3ForCausalLM"),
    ],
)  # fmt: skip
def test_each_family_is_recognised(kind: str, architecture: str) -> None:
    assert family_of(KINDS[kind]).architecture == architecture


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("gpt3", "attention.window = 5"),
        ("palm", "branches = 'parallel_one_norm'"),
        ("grok1", "attention.softcap = 3.0"),
        ("nanochat", "logit_softcap = 15.0"),
    ],
)
def test_a_model_without_a_counterpart_is_written_in_our_format_and_says_why(
    kind: str, lacking: str, tmp_path: Path
) -> None:
    said = huggingface.write(tmp_path, KINDS[kind], GPT(KINDS[kind]).tensors()).lacking
    assert said.startswith("transformers has no counterpart of this model: the nearest, ")
    assert lacking in said
    assert {path.name for path in tmp_path.iterdir()} == {"weightdecay.json", "model.safetensors"}
    assert huggingface.read_config(tmp_path) == KINDS[kind]


def test_every_family_reads_what_it_describes() -> None:
    seen = {family_of(config).model_type for config in KINDS.values() if not _lacking(config)}
    assert seen | {"gpt_neox"} == set(FAMILIES)
    neox = KINDS["pythia"].replace(head_dim=8, d_model=32, d_ff=128, rotary_fraction=0.25)
    assert family_of(neox).model_type == "gpt_neox"


COUNTERPARTS = {
    "gpt2": "gpt2", "opt": "opt", "bloom": "bloom", "pythia": "gpt_neox", "olmo2": "olmo2", "mixtral": "mixtral",
    "mistral": "mistral", "llama1": "llama", "llama2": "llama", "llama3": "llama",
    "deepseek-v3": "deepseek_v3", "moonlight": "deepseek_v3",
    "gpt1": "opt",  # the same function: norms after the branches, and another activation
}  # fmt: skip


@pytest.mark.parametrize("one", all_recipes(), ids=lambda one: one.name)
def test_every_recipe_has_the_counterpart_of_its_system_or_none(one: Recipe) -> None:
    found = None if _lacking(one.model) else family_of(one.model).model_type
    assert found == COUNTERPARTS.get(one.system)


def _lacking(config: ModelConfig) -> bool:
    try:
        family_of(config)
    except ConfigError:
        return True
    return False


def test_selection_biases_stay_in_float32_where_weights_are_rounded(tmp_path: Path) -> None:
    config, model = KINDS["deepseek"], GPT(KINDS["deepseek"])
    for name, tensor in model.tensors().items():
        if name.endswith("selection_bias"):
            torch.nn.init.normal_(tensor)
    huggingface.write(tmp_path, config, model.tensors(), dtype=torch.bfloat16)
    again = read(tmp_path)
    name = "blocks.1.feedforward.router"
    assert torch.equal(again[f"{name}.selection_bias"], model.tensors()[f"{name}.selection_bias"])
    assert torch.equal(again[f"{name}.weight"], model.tensors()[f"{name}.weight"].bfloat16().float())


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no weights: neither model\.safetensors nor"):
        read(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is pickle, which is not read here"):
        read(tmp_path)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_architecture_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path)
    change(tmp_path, model_type="lama", architectures=["LamaForCausalLM"])
    with pytest.raises(ConfigError, match=r"architecture 'lama' \(LamaForCausalLM\).*did you mean 'llama'"):
        huggingface.read_config(tmp_path)


def test_every_setting_of_a_known_architecture_that_is_not_known_is_told(tmp_path: Path) -> None:
    written(tmp_path)
    change(tmp_path, attention_bias=True, hidden_act="gelu", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    change(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})  # the older name counts beside the newer, too
    with pytest.raises(ConfigError) as caught:
        huggingface.read_config(tmp_path)
    assert len(caught.value.faults) == 4
    for expected in ("attention_bias = True", "hidden_act = 'gelu'", "rope_type = 'yarn'", "rope_type = 'linear'"):
        assert expected in str(caught.value)


def test_an_activation_that_is_not_known_is_told_with_those_that_are(tmp_path: Path) -> None:
    written(tmp_path, "opt")
    change(tmp_path, activation_function="quick_gelu")
    with pytest.raises(ConfigError, match=r"activation_function = 'quick_gelu': known here are 'gelu_new', .*'relu'"):
        huggingface.read_config(tmp_path)


def test_a_config_that_misses_a_value_or_has_one_of_another_type_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    lacking = {"hidden_size", "vocab_size"}
    path.write_text(json.dumps({key: value for key, value in whole.items() if key not in lacking}))
    with pytest.raises(ConfigError) as caught:
        huggingface.read_config(tmp_path)
    assert [fault.split(": ")[1] for fault in caught.value.faults] == [
        "vocab_size is missing",
        "hidden_size is missing",
    ]
    path.write_text(json.dumps(whole | {"hidden_size": "wide"}))
    with pytest.raises(ConfigError, match=r"config\.json: model\.d_model = 'wide': must be a whole number"):
        huggingface.read_config(tmp_path)
    path.write_text("{")
    with pytest.raises(DamagedError, match="cannot be read"):
        huggingface.read_config(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.9.norm.weight"] = torch.ones(3)
    tensors["lm_head.weight"] = torch.ones(50, 23)
    save_file(tensors, path)
    with pytest.raises(DamagedError) as caught:
        read(tmp_path)
    assert len(str(caught.value).splitlines()) == 4
    for expected in (
        "no tensor 'model.norm.weight'",
        "no tensor 'model.layers.1.mlp.up_proj.weight'",
        "tensor 'model.layers.9.norm.weight' is not this model's",
        "tensor 'lm_head.weight' is [50, 23], the configuration makes it [50, 24]",
    ):
        assert expected in str(caught.value)


def test_names_without_the_prefix_and_computed_masks_are_as_good(tmp_path: Path) -> None:
    """As openai-community/gpt2 has them on the hub."""
    _, model = written(tmp_path, "gpt2")
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "lm_head.weight": tensors["wte.weight"].clone()}
    save_file(tensors, path)
    assert torch.equal(
        read(tmp_path)["blocks.2.attention.qkv.weight"], model.get_parameter("blocks.2.attention.qkv.weight")
    )
    save_file(tensors | {"lm_head.weight": tensors["wte.weight"] + 1}, path)
    with pytest.raises(DamagedError, match=r"'lm_head\.weight' is not the embedding, to which"):
        read(tmp_path)


def test_a_truncated_file_and_an_index_that_leads_elsewhere_are_damage(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedError, match=r"model\.safetensors: cannot be read"):
        read(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}))
    with pytest.raises(DamagedError) as caught:
        read(tmp_path)
    assert len(str(caught.value).splitlines()) == 2
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(DamagedError, match="outside the directory"):
        read(tmp_path)


def test_weights_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ConfigError, match=r"weights in torch\.int8"):
        read(tmp_path)
