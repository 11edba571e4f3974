"""The model families of transformers that our decoder has: their configurations and the names of their tensors.

A family reads its config.json into a ModelConfig and describes a ModelConfig in its terms. A model belongs to a family
if reading the description gives the same function back: nothing else says what a family can express.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weightdecay.errors import ConfigError
from weightdecay.models.config import ModelConfig
from weightdecay.models.family_gpt import (
    describe_bloom,
    describe_gpt2,
    describe_neox,
    describe_opt,
    link_bloom,
    link_gpt2,
    link_neox,
    link_opt,
    read_bloom,
    read_gpt2,
    read_neox,
    read_opt,
)  # fmt: skip
from weightdecay.models.family_llama import (
    describe_llama,
    describe_mistral,
    describe_mixtral,
    describe_olmo2,
    link_llama,
    read_llama,
    read_mistral,
    read_mixtral,
    read_olmo2,
)  # fmt: skip
from weightdecay.models.tensors import Link

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Args:
        model_type, architecture: as in its config.json.
        prefix: of the base model's tensors; older files lack it.
        required: what its config.json says if it is the plain architecture, with what an absent key means.
        read, describe: config.json to a ModelConfig, and back.
        links: where every tensor lies.
    """

    model_type: str
    architecture: str
    prefix: str
    required: Mapping[str, Any]
    read: Callable[[Values], ModelConfig]
    describe: Callable[[ModelConfig], dict[str, Any]]
    links: Callable[[ModelConfig], list[Link]]

    def config(self, values: Values) -> ModelConfig:
        """The decoder that a config.json describes.

        Raises:
            ConfigError: it asks for what this decoder has not; everything is named.
        """
        faults = [
            f"{key} = {values[key]!r}: only {wanted!r} is known here"
            for key, wanted in self.required.items()
            if key in values and values[key] != wanted
        ]
        rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            faults.append(f"rope_type = {kind!r}: stretched rotary positions are not known here")
        if faults:
            raise ConfigError(faults)
        try:
            return self.read(values)
        except KeyError as error:
            raise ConfigError(f"{error.args[0]} is missing") from error

    def differences(self, config: ModelConfig) -> list[str]:
        """What of a decoder this family cannot say; empty if it is one of the family."""
        try:
            back = self.config(self.describe(config)).as_function()
        except ConfigError as error:
            return error.faults
        ours = config.as_function()
        return [
            f"{item.name} = {getattr(ours, item.name)!r}"
            for item in dataclasses.fields(ModelConfig)
            if getattr(ours, item.name) != getattr(back, item.name)
        ]


def family_of(config: ModelConfig) -> Family:
    """The family whose members include this decoder.

    Raises:
        ConfigError: there is none; the message names the nearest and what it lacks.
    """
    differences = [(family.differences(config), family) for family in FAMILIES.values()]
    lacking, nearest = min(differences, key=lambda pair: len(pair[0]))
    if lacking:
        raise ConfigError(
            f"transformers has no counterpart of this model: the nearest, {nearest.architecture}, cannot say "
            + ", ".join(lacking)
        )
    return nearest


_PLAIN_LLAMA = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "opt", "OPTForCausalLM", "model.",
            {"do_layer_norm_before": True, "enable_bias": True, "_remove_final_layer_norm": False,
             "layer_norm_elementwise_affine": True},
            read_opt, describe_opt, link_opt,
        ),
        Family(
            "gpt2", "GPT2LMHeadModel", "transformer.",
            {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
            read_gpt2, describe_gpt2, link_gpt2,
        ),
        Family("llama", "LlamaForCausalLM", "model.", _PLAIN_LLAMA, read_llama, describe_llama, link_llama),
        Family("mistral", "MistralForCausalLM", "model.", _PLAIN_LLAMA, read_mistral, describe_mistral, link_llama),
        Family("mixtral", "MixtralForCausalLM", "model.", _PLAIN_LLAMA, read_mixtral, describe_mixtral, link_llama),
        Family("olmo2", "Olmo2ForCausalLM", "model.", _PLAIN_LLAMA, read_olmo2, describe_olmo2, link_llama),
        Family("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.", {"attention_bias": True}, read_neox, describe_neox,
               link_neox),
        Family("bloom", "BloomForCausalLM", "transformer.", {"apply_residual_connection_post_layernorm": False},
               read_bloom, describe_bloom, link_bloom),
    )
}  # fmt: skip
