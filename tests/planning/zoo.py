"""Tiny models of every architecture in transformers, built from its own configuration with small sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from tests.planning.zoo_specials import SPECIAL

LARGEST = 150_000_000
_SIZES: dict[int, str] = {
    32: """
        hidden_size d_model n_embd embed_dim embedding_size dim emb_dim decoder_d_model encoder_d_model
        projection_dim fpn_hidden_size out_hidden_size encoder_hidden_size decoder_hidden_size embedding_dim
        moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size
        moe_ffn_hidden_size entity_emb_size
        """,
    64: """
        intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size feed_forward_size
        intermediate_size_mlp mlp_dim attention_hidden_size max_position_embeddings n_positions n_ctx max_seq_len
        entity_vocab_size
        """,
    2: """
        n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers depth
        num_key_value_heads num_experts_per_tok moe_k moe_topk index_n_heads linear_num_key_heads
        """,
    4: """
        num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts
        n_routed_experts num_local_experts moe_num_experts qk_rope_head_dim index_topk linear_num_value_heads
        sliding_window
        """,
    8: """
        head_dim kv_channels qk_nope_head_dim v_head_dim mamba_d_state state_size hidden_size_per_layer_input
        laurel_rank index_head_dim linear_key_head_dim linear_value_head_dim adapter_rank d_kv patch_size
        num_queries
        """,
}
_SMALL: dict[str, int] = {
    **{name: size for size, names in _SIZES.items() for name in names.split()},
    "num_hidden_layers": 3, "vocab_size": 128, "vocab_size_per_layer_input": 128, "kv_lora_rank": 16, "q_lora_rank": 16,
    "router_hidden_size": 16, "num_mel_bins": 16, "image_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_DEPTHS = {name for name, size in _SMALL.items() if "layer" in name and size in (2, 3)} | {"depth"}
# what is left at its own size, where a family ties its sizes to each other
_KEPT: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"head_dim", "kv_channels"}),
    frozenset({"image_size", "patch_size"}),
    frozenset({"head_dim", "kv_channels", "image_size", "patch_size", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim",
               "v_head_dim"}),
    frozenset(_SMALL) - _DEPTHS - {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "intermediate_size"},
)  # fmt: skip


def causal_models() -> list[str]:
    """Class names of all causal language models."""
    return _classes("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


def other_models() -> list[str]:
    """Class names of the base models of all other families: encoders, vision, audio, several modalities."""
    from transformers.models.auto import modeling_auto

    decoders = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return _classes("MODEL_MAPPING_NAMES", without=decoders)


def _classes(mapping: str, without: Collection[str] = ()) -> list[str]:
    from transformers.models.auto import modeling_auto

    names: dict[str, None] = {}
    for family, classes in getattr(modeling_auto, mapping).items():
        if family not in without:
            names.update(dict.fromkeys([classes] if isinstance(classes, str) else classes))
    return list(names)


def tiny(name: str) -> nn.Module | None:
    """A small model of that class in evaluation mode, or None if it does not build (mostly: a missing dependency).

    One that will not shrink below `LARGEST` elements stands on the meta device.
    """
    import transformers

    try:
        cls: Any = getattr(transformers, name)
        best: tuple[int, Any] | None = None
        for config in _configs(cls.config_class, SPECIAL.get(name, {})):
            try:
                with torch.device("meta"):
                    elements = sum(parameter.numel() for parameter in cls(config).parameters())
            except Exception:
                continue
            if best is None or elements < best[0]:
                best = (elements, config)
            if elements < 6_000_000:
                break
        if best is None:
            return None
        torch.manual_seed(0)
        with torch.device("meta") if best[0] > LARGEST else nullcontext():
            model: nn.Module = cls(best[1]).eval()
    except Exception:
        return None
    return model


def _configs(config_class: Any, special: Mapping[str, Any]) -> Iterator[Any]:
    """From the smallest to the one that changes nothing."""
    for kept in (*_KEPT, None):
        for extra in [special, {}] if special else [{}]:
            try:
                sizes = {} if kept is None else _sizes(config_class(), kept)
            except Exception:  # its own defaults do not hold together
                sizes = {}
            try:
                yield config_class(**_merged(sizes, extra))
            except Exception:
                continue


def _merged(sizes: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second first; nested configurations are merged likewise."""
    nested = {
        name: _merged(sizes[name], value)
        for name, value in extra.items()
        if isinstance(value, Mapping) and isinstance(sizes.get(name), Mapping) and name.endswith("config")
    }
    return {**sizes, **extra, **nested}


def _sizes(config: Any, kept: frozenset[str]) -> dict[str, Any]:
    """Small sizes for what this configuration has, nested ones too."""
    from transformers import PretrainedConfig

    small: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            small[name] = {**_sizes(value, kept), "model_type": value.model_type}
        elif name in _SMALL and name not in kept and isinstance(value, int) and not isinstance(value, bool):
            small[name] = min(_layers_for_all_kinds(config), value) if name == "num_hidden_layers" else _SMALL[name]
        elif name == "n_inner" and value is None:
            small[name] = _SMALL[name]
    return small


def _layers_for_all_kinds(config: Any) -> int:
    """So many layers that every kind of layer is there, at most 12."""
    count = _SMALL["num_hidden_layers"]
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "block_types"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and kinds:
            first_seen = [kinds.index(kind) for kind in set(map(str, kinds)) if kind in kinds]
            count = max(count, min(max(first_seen, default=0) + 1, 12))
    return count
