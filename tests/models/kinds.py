"""Small decoders of every kind that a published system has."""

from __future__ import annotations

from weightdecay.models.config import ModelConfig

_GPT = ModelConfig(vocab_size=50, context=24, n_layers=3, d_model=24, n_heads=4, init_std=0.2)
_LLAMA = _GPT.replace(norm="rmsnorm", positions="rotary", feedforward="swiglu", bias=False, tied_head=False)

KINDS = {
    "gpt1": _GPT.replace(norm_placement="post"),
    "gpt2": _GPT,
    "gpt3": _GPT.replace(window=5, window_pattern="LS"),
    "opt": _GPT.replace(feedforward="relu"),
    "opt, narrow embedding": _GPT.replace(feedforward="relu", norm_placement="post", d_embedding=10),
    "bloom": _GPT.replace(positions="alibi", embedding_norm=True, n_heads=6, n_kv_heads=6, head_dim=4),
    "pythia": _GPT.replace(positions="rotary", rotary_fraction=0.34, branches="parallel", feedforward="gelu"),
    "llama": _LLAMA.replace(n_kv_heads=2),
    "mistral": _LLAMA.replace(n_kv_heads=2, window=7),
    "mixtral": _LLAMA.replace(n_kv_heads=2, n_experts=4, d_ff=20, load_balancing=0.01),
    "chinchilla": _GPT.replace(norm="rmsnorm", positions="relative", feedforward="gelu", bias=False),
    "palm": _LLAMA.replace(
        norm="layernorm", n_kv_heads=1, branches="parallel_one_norm", tied_head=True, init="fan_in",
        embedding_init_std=1.0, residual_init="plain", logit_multiplier=24**-0.5, z_loss=1e-4,
    ),
    "grok1": _LLAMA.replace(
        norm_placement="sandwich", attention_softcap=3.0, n_experts=4, d_ff=20, router="softmax_of_all",
        feedforward="geglu_tanh", embedding_multiplier=24**0.5, attention_scale=0.3, logit_multiplier=0.58,
    ),
    "olmo2": _LLAMA.replace(norm_placement="output", qk_norm="all_heads", n_kv_heads=2, z_loss=1e-5),
    "gemma": _LLAMA.replace(
        norm="rmsnorm_unit_offset", feedforward="geglu", norm_placement="sandwich", logit_softcap=9.0,
    ),
    "nanochat": _LLAMA.replace(
        norm="rmsnorm_without_gain", qk_norm="head", feedforward="relu_squared", logit_softcap=15.0, window=6,
        window_pattern="SSL", embedding_norm=True, value_gate_inputs=5, value_gate_max=3.0, smear_inputs=7,
        residual_scale_first=1.15, residual_scale_last=1.05, input_scale_first=0.2, input_scale_last=0.05,
        backout_scale=0.2,
    ),
    "deepseek": _LLAMA.replace(
        kv_rank=10, q_rank=14, head_dim=6, rotary_head_dim=4, value_head_dim=8, latent_norm_eps=1e-6,
        n_experts=8, d_ff=12, n_shared_experts=1, n_dense_layers=1, d_ff_dense=40, router="sigmoid", router_scale=2.5,
        experts_per_token=3, n_expert_groups=4, expert_groups_per_token=2, load_balancing=0.01,
        balance_over="sequence", router_bias_speed=0.001,
    ),
    "moonlight": _LLAMA.replace(
        kv_rank=10, head_dim=6, rotary_head_dim=4, latent_norm_eps=1e-6, n_experts=6, d_ff=12, n_shared_experts=2,
        n_dense_layers=1, d_ff_dense=40, router="sigmoid", router_scale=2.446, experts_per_token=3,
        router_bias_speed=0.001, router_bias_update="centred_sign",
    ),
}  # fmt: skip
