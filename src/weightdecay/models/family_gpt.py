"""GPT-2, GPT-NeoX (Pythia), OPT and BLOOM in transformers' terms: LayerNorm, biases, two-layer feed-forward parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightdecay.errors import ConfigError
from weightdecay.models.config import ModelConfig
from weightdecay.models.family_llama import rotary_settings
from weightdecay.models.tensors import (
    Link,
    below_unused_rows,
    head_links,
    interleaved_by_head,
    norm_links,
    same,
    stacked,
    transposed,
)

Values = Mapping[str, Any]
_GELUS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def read_gpt2(values: Values) -> ModelConfig:
    return ModelConfig(
        vocab_size=values["vocab_size"],
        context=values["n_positions"],
        n_layers=values["n_layer"],
        d_model=values["n_embd"],
        n_heads=values["n_head"],
        d_ff=values.get("n_inner") or 0,
        norm_eps=values.get("layer_norm_epsilon", 1e-5),
        feedforward=_GELUS.get(values.get("activation_function", "gelu_new"), "unknown"),
        tied_head=values.get("tie_word_embeddings", True),
    )


def describe_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": {"gelu": "gelu", "relu": "relu"}.get(config.feedforward, "gelu_new"),
        "tie_word_embeddings": config.tied_head,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout if config.embedding_dropout else 0.0,
        "resid_pdrop": config.dropout,
    }


def link_gpt2(config: ModelConfig) -> list[Link]:
    links = [
        same("embedding.weight", "transformer.wte.weight"),
        same("positions.weight", "transformer.wpe.weight"),
        *norm_links("norm", "transformer.ln_f", config),
    ]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        links += norm_links(f"{ours}.attention_norm", f"{theirs}.ln_1", config)
        links += norm_links(f"{ours}.feedforward_norm", f"{theirs}.ln_2", config)
        for mine, name in (
            ("attention.qkv", "attn.c_attn"),
            ("attention.out", "attn.c_proj"),
            ("feedforward.up", "mlp.c_fc"),
            ("feedforward.down", "mlp.c_proj"),
        ):
            links.append(transposed(f"{ours}.{mine}.weight", f"{theirs}.{name}.weight"))
            links.append(same(f"{ours}.{mine}.bias", f"{theirs}.{name}.bias"))
    return links + head_links(config, "lm_head.weight")


def read_neox(values: Values) -> ModelConfig:
    return ModelConfig(
        vocab_size=values["vocab_size"],
        context=values["max_position_embeddings"],
        n_layers=values["num_hidden_layers"],
        d_model=values["hidden_size"],
        n_heads=values["num_attention_heads"],
        d_ff=values["intermediate_size"],
        norm_eps=values.get("layer_norm_eps", 1e-5),
        positions="rotary",
        feedforward=_GELUS.get(values.get("hidden_act", "gelu"), "unknown"),
        branches="parallel" if values.get("use_parallel_residual", True) else "sequential",
        tied_head=values.get("tie_word_embeddings", False),
        **rotary_settings(values, 10_000.0, 0.25),  # type: ignore[arg-type]  # floats by name
    )


def describe_neox(config: ModelConfig) -> dict[str, Any]:
    rotary = {"rope_theta": config.rotary_base, "partial_rotary_factor": config.rotary_fraction}
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": {"gelu": "gelu", "relu": "relu"}.get(config.feedforward, "gelu_new"),
        "use_parallel_residual": config.branches == "parallel",
        "tie_word_embeddings": config.tied_head,
        "rope_parameters": {"rope_type": "default", **rotary},
        "rotary_emb_base": config.rotary_base,
        "rotary_pct": config.rotary_fraction,
        "attention_dropout": config.dropout,
        "hidden_dropout": config.dropout,
    }


def link_neox(config: ModelConfig) -> list[Link]:
    links = [
        same("embedding.weight", "gpt_neox.embed_in.weight"),
        *norm_links("norm", "gpt_neox.final_layer_norm", config),
    ]
    for layer in range(config.n_layers):
        links += _megatron_layer(f"blocks.{layer}", f"gpt_neox.layers.{layer}", "attention", config)
    return links + head_links(config, "embed_out.weight")


def _megatron_layer(ours: str, theirs: str, attention: str, config: ModelConfig) -> list[Link]:
    """A block as GPT-NeoX and BLOOM name it, query, key and value interleaved by head."""
    links = norm_links(f"{ours}.attention_norm", f"{theirs}.input_layernorm", config)
    links += norm_links(f"{ours}.feedforward_norm", f"{theirs}.post_attention_layernorm", config)
    for part in ("weight", "bias"):
        mixed = f"{theirs}.{attention}.query_key_value.{part}"
        links += [
            interleaved_by_head(f"{ours}.attention.qkv.{part}", mixed, config.n_heads),
            same(f"{ours}.attention.out.{part}", f"{theirs}.{attention}.dense.{part}"),
            same(f"{ours}.feedforward.up.{part}", f"{theirs}.mlp.dense_h_to_4h.{part}"),
            same(f"{ours}.feedforward.down.{part}", f"{theirs}.mlp.dense_4h_to_h.{part}"),
        ]
    return links


def read_opt(values: Values) -> ModelConfig:
    width = values.get("word_embed_proj_dim") or values["hidden_size"]
    if width != values["hidden_size"]:
        raise ConfigError(f"word_embed_proj_dim = {width}: embeddings narrower than the model are not known here")
    return ModelConfig(
        vocab_size=values["vocab_size"],
        context=values["max_position_embeddings"],
        n_layers=values["num_hidden_layers"],
        d_model=values["hidden_size"],
        n_heads=values["num_attention_heads"],
        d_ff=values["ffn_dim"],
        feedforward=_GELUS.get(values.get("activation_function", "relu"), "unknown"),
        tied_head=values.get("tie_word_embeddings", True),
    )


def describe_opt(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.d_model,
        "num_attention_heads": config.n_heads,
        "ffn_dim": config.d_ff,
        "activation_function": "relu",  # with another, it is a GPT-2
        "tie_word_embeddings": config.tied_head,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
    }


def link_opt(config: ModelConfig) -> list[Link]:
    base = "model.decoder"
    links = [
        same("embedding.weight", f"{base}.embed_tokens.weight"),
        below_unused_rows("positions.weight", f"{base}.embed_positions.weight", unused=2),
        *norm_links("norm", f"{base}.final_layer_norm", config),
    ]
    rows = (config.d_model, config.d_model, config.d_model)
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"{base}.layers.{layer}"
        links += norm_links(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm", config)
        links += norm_links(f"{ours}.feedforward_norm", f"{theirs}.final_layer_norm", config)
        for part in ("weight", "bias"):
            heads = [f"{theirs}.self_attn.{kind}_proj.{part}" for kind in "qkv"]
            links += [
                stacked(f"{ours}.attention.qkv.{part}", heads, rows),
                same(f"{ours}.attention.out.{part}", f"{theirs}.self_attn.out_proj.{part}"),
                same(f"{ours}.feedforward.up.{part}", f"{theirs}.fc1.{part}"),
                same(f"{ours}.feedforward.down.{part}", f"{theirs}.fc2.{part}"),
            ]
    return links + head_links(config, "lm_head.weight")


def read_bloom(values: Values) -> ModelConfig:
    return ModelConfig(
        vocab_size=values["vocab_size"],
        context=values.get("seq_length", 2048),
        n_layers=values["n_layer"],
        d_model=values.get("hidden_size") or values["n_embed"],
        n_heads=values["n_head"],
        norm_eps=values.get("layer_norm_epsilon", 1e-5),
        embedding_norm=True,
        positions="alibi",
        feedforward="gelu_tanh",
        tied_head=values.get("tie_word_embeddings", True),
    )


def describe_bloom(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "seq_length": config.context,
        "n_layer": config.n_layers,
        "hidden_size": config.d_model,
        "n_head": config.n_heads,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "attention_dropout": config.dropout,
        "hidden_dropout": config.dropout,
    }


def link_bloom(config: ModelConfig) -> list[Link]:
    links = [
        same("embedding.weight", "transformer.word_embeddings.weight"),
        *norm_links("embedding_norm", "transformer.word_embeddings_layernorm", config),
        *norm_links("norm", "transformer.ln_f", config),
    ]
    for layer in range(config.n_layers):
        links += _megatron_layer(f"blocks.{layer}", f"transformer.h.{layer}", "self_attention", config)
    return links + head_links(config, "lm_head.weight")
