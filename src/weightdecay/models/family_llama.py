"""LLaMA, Mistral, Mixtral and OLMo 2 in transformers' terms: one skeleton, RMSNorm, SwiGLU and rotary positions."""

from __future__ import annotations

from dataclasses import replace

from weightdecay.models.family import ROTARY_BASE, SHAPE, Family, Key, optional
from weightdecay.models.tensors import Piece, each_expert, gate_and_up, qkv

_KEYS = {
    **SHAPE,
    "num_key_value_heads": optional("attention.n_kv_heads"),
    "head_dim": optional("attention.head_dim"),
    "intermediate_size": Key("d_ff"),
    "rms_norm_eps": Key("norms.eps", 1e-6),
    "tie_word_embeddings": Key("tied_head", False),
    "rope_theta": Key("attention.rotary_base", ROTARY_BASE, read=float),
}
_ATTENTION = (
    Piece("attention.qkv", "self_attn.{}_proj", qkv),
    Piece("attention.query_norm", "self_attn.q_norm"),
    Piece("attention.key_norm", "self_attn.k_norm"),
    Piece("attention.out", "self_attn.o_proj"),
)
NORMS_BEFORE = (
    Piece("attention_norm", "input_layernorm"),
    Piece("feedforward_norm", "post_attention_layernorm"),
)
_NORMS_AFTER = (
    Piece("attention_norm", "post_attention_layernorm"),
    Piece("feedforward_norm", "post_feedforward_layernorm"),
)
SWIGLU = (
    Piece("feedforward.up", "mlp.{}_proj", gate_and_up),
    Piece("feedforward.down", "mlp.down_proj"),
)
_EXPERTS = (
    Piece("feedforward.router", "block_sparse_moe.gate"),
    Piece("feedforward.expert_up", "block_sparse_moe.experts.{}", each_expert("w1", "w3")),
    Piece("feedforward.expert_down", "block_sparse_moe.experts.{}", each_expert("w2")),
)

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    block="layers.{}",
    required={"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
    fixed={"norms.kind": "rmsnorm", "positions": "rotary", "feedforward": "swiglu", "bias": False},
    keys=_KEYS,
    around=(
        Piece("embedding", "model.embed_tokens"),
        Piece("norm", "model.norm"),
        Piece("head", "lm_head"),
    ),
    within=(*NORMS_BEFORE, *_ATTENTION, *SWIGLU),
    written=lambda config: {"hidden_act": "silu", "attention_dropout": config.training.dropout},
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    keys={
        **_KEYS,
        "num_key_value_heads": optional("attention.n_kv_heads", 8),
        "sliding_window": optional("attention.window", 4096),
    },
)

MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    keys={
        **MISTRAL.keys,
        "rms_norm_eps": Key("norms.eps", 1e-5),
        "sliding_window": optional("attention.window"),
        "rope_theta": Key("attention.rotary_base", 1_000_000.0, read=float),
        "num_local_experts": Key("experts.n_experts"),
        "num_experts_per_tok": Key("experts.per_token"),
    },
    within=(*NORMS_BEFORE, *_ATTENTION, *_EXPERTS),
    written=lambda config: {**LLAMA.written(config), "router_aux_loss_coef": config.training.load_balancing},
)

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fixed={**LLAMA.fixed, "norms.before": False, "norms.after": "branch", "attention.qk_norm": "all_heads"},
    keys={name: key for name, key in _KEYS.items() if name != "head_dim"} | {"rms_norm_eps": Key("norms.eps", 1e-5)},
    within=(*_NORMS_AFTER, *_ATTENTION, *SWIGLU),
)
