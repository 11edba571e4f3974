"""LLaMA, Mistral, Mixtral and OLMo 2 in transformers' terms: one skeleton, RMSNorm, SwiGLU and rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightdecay.models.config import ModelConfig
from weightdecay.models.tensors import Link, head_links, one_matrix_an_expert, same, stacked

Values = Mapping[str, Any]


def rotary_settings(values: Values, default_base: float, default_fraction: float = 1.0) -> dict[str, float]:
    """Rotary settings from `rope_parameters`, or from the keys that older files have."""
    rope = values.get("rope_parameters") or {}
    base: Any = rope.get("rope_theta", values.get("rope_theta", values.get("rotary_emb_base", default_base)))
    fraction: Any = rope.get("partial_rotary_factor", values.get("rotary_pct", default_fraction))
    return {"rotary_base": float(base), "rotary_fraction": float(fraction)}


def read_llama(values: Values) -> ModelConfig:
    return ModelConfig(
        vocab_size=values["vocab_size"],
        context=values["max_position_embeddings"],
        n_layers=values["num_hidden_layers"],
        d_model=values["hidden_size"],
        n_heads=values["num_attention_heads"],
        n_kv_heads=values.get("num_key_value_heads") or 0,
        head_dim=values.get("head_dim") or 0,
        d_ff=values["intermediate_size"],
        norm="rmsnorm",
        norm_eps=values.get("rms_norm_eps", 1e-6),
        positions="rotary",
        feedforward="swiglu",
        bias=False,
        tied_head=values.get("tie_word_embeddings", False),
        **rotary_settings(values, 10_000.0),  # type: ignore[arg-type]  # floats by name
    )


def describe_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_head,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "rope_theta": config.rotary_base,
        "attention_dropout": config.dropout,
    }


def read_mistral(values: Values) -> ModelConfig:
    window = values.get("sliding_window", 4096) or 0
    return read_llama({"num_key_value_heads": 8, **values}).replace(window=window)


def describe_mistral(config: ModelConfig) -> dict[str, Any]:
    return {**describe_llama(config), "sliding_window": config.window or None}


def read_mixtral(values: Values) -> ModelConfig:
    rotary = rotary_settings(values, 1_000_000.0)
    return read_mistral({"rms_norm_eps": 1e-5, "sliding_window": None, **values}).replace(
        n_experts=values["num_local_experts"], experts_per_token=values["num_experts_per_tok"], **rotary
    )


def describe_mixtral(config: ModelConfig) -> dict[str, Any]:
    return {
        **describe_mistral(config),
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.load_balancing,
    }


def read_olmo2(values: Values) -> ModelConfig:
    read = read_llama({"rms_norm_eps": 1e-5, **values, "head_dim": None})
    return read.replace(norm_placement="output", qk_norm="all_heads")


def describe_olmo2(config: ModelConfig) -> dict[str, Any]:
    return {key: value for key, value in describe_llama(config).items() if key != "head_dim"}


def link_llama(config: ModelConfig) -> list[Link]:
    inner, inner_kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    after = config.norm_placement == "output"
    norms = (
        {"attention_norm": "post_attention_layernorm", "feedforward_norm": "post_feedforward_layernorm"}
        if after
        else {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}
    )
    links = [same("embedding.weight", "model.embed_tokens.weight"), same("norm.weight", "model.norm.weight")]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        links += [same(f"{ours}.{mine}.weight", f"{theirs}.{name}.weight") for mine, name in norms.items()]
        links.append(
            stacked(
                f"{ours}.attention.qkv.weight",
                [f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"],
                (inner, inner_kv, inner_kv),
            )
        )
        links.append(same(f"{ours}.attention.out.weight", f"{theirs}.self_attn.o_proj.weight"))
        if config.qk_norm == "all_heads":
            links.append(same(f"{ours}.attention.query_norm.weight", f"{theirs}.self_attn.q_norm.weight"))
            links.append(same(f"{ours}.attention.key_norm.weight", f"{theirs}.self_attn.k_norm.weight"))
        links += _link_experts(ours, theirs, config) if config.n_experts else _link_swiglu(ours, theirs, config)
    return links + head_links(config, "lm_head.weight")


def _link_swiglu(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
    parts = [f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up")]
    return [
        stacked(f"{ours}.feedforward.up.weight", parts, (config.d_ff, config.d_ff)),
        same(f"{ours}.feedforward.down.weight", f"{theirs}.mlp.down_proj.weight"),
    ]


def _link_experts(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
    each = [f"{theirs}.block_sparse_moe.experts.{expert}" for expert in range(config.n_experts)]
    up = [f"{expert}.{part}.weight" for expert in each for part in ("w1", "w3")]
    return [
        same(f"{ours}.feedforward.router.weight", f"{theirs}.block_sparse_moe.gate.weight"),
        one_matrix_an_expert(f"{ours}.feedforward.expert_up", up, config.n_experts, parts_each=2),
        one_matrix_an_expert(
            f"{ours}.feedforward.expert_down", [f"{expert}.w2.weight" for expert in each], config.n_experts
        ),
    ]
