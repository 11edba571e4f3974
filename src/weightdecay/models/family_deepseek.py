"""DeepSeek-V3, and Moonlight with it, in transformers' terms: latent attention, routers with a selection bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightdecay.models.config import ModelConfig
from weightdecay.models.family import ROTARY_BASE, SHAPE, Family, Key, optional
from weightdecay.models.family_llama import LLAMA, NORMS_BEFORE, SWIGLU
from weightdecay.models.tensors import How, Link, Piece, each_expert, gate_and_up, same


def _neighbours_turn(plain: Callable[[ModelConfig], int]) -> How:
    """The last `rotary_head_dim` rows of each head turn in neighbouring pairs there, in pairs half of them apart here.

    Args:
        plain: rows of a head before those.
    """

    def how(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
        turning = config.latent.rotary_head_dim if config.latent else 0

        def swapped(whole: Tensor, pairs: tuple[int, int]) -> Tensor:
            heads = whole.view(-1, plain(config) + turning, whole.shape[1])
            still, turned = heads[:, :-turning], heads[:, -turning:]
            other = turned.reshape(len(heads), *pairs, -1).transpose(1, 2).reshape(turned.shape)
            return torch.cat((still, other), dim=1).view(whole.shape)

        def pack(parts: Sequence[Tensor]) -> Tensor:
            return swapped(parts[0], (turning // 2, 2))

        def unpack(whole: Tensor) -> Sequence[Tensor]:
            return [swapped(whole, (2, turning // 2))]

        return [Link(f"{ours}.weight", (f"{theirs}.weight",), pack, unpack)]

    return how


def _router(ours: str, theirs: str, config: ModelConfig) -> list[Link]:  # noqa: ARG001  # one signature for all
    bias = same(f"{ours}.selection_bias", f"{theirs}.e_score_correction_bias")
    return [same(f"{ours}.weight", f"{theirs}.weight"), bias]


_heads = _neighbours_turn(lambda config: config.attention.head_dim)
_latent = _neighbours_turn(lambda config: config.latent.kv_rank if config.latent else 0)

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    prefix="model.",
    block="layers.{}",
    required={
        "attention_bias": False,
        "hidden_act": "silu",
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    # Their norms of the latents have this ε whatever `rms_norm_eps` is.
    fixed={**LLAMA.fixed, "experts.router": "sigmoid", "latent.norm_eps": 1e-6},
    keys={
        **SHAPE,
        "q_lora_rank": optional("latent.q_rank", 1536),
        "kv_lora_rank": Key("latent.kv_rank"),
        "qk_nope_head_dim": Key("attention.head_dim"),
        "qk_rope_head_dim": Key("latent.rotary_head_dim"),
        "v_head_dim": optional("latent.value_head_dim"),
        "intermediate_size": Key("experts.d_ff_dense"),
        "moe_intermediate_size": Key("d_ff"),
        "first_k_dense_replace": Key("experts.n_dense_layers", 3),
        "n_routed_experts": Key("experts.n_experts"),
        "n_shared_experts": optional("experts.n_shared"),
        "num_experts_per_tok": Key("experts.per_token", 8),
        "routed_scaling_factor": Key("experts.router_scale", 2.5),
        "n_group": Key("experts.n_groups", 8),
        "topk_group": Key("experts.groups_per_token", 4),
        "rms_norm_eps": Key("norms.eps", 1e-6),
        "rope_theta": Key("attention.rotary_base", ROTARY_BASE, read=float),
        "tie_word_embeddings": Key("tied_head", False),
    },
    around=LLAMA.around,
    within=(
        *NORMS_BEFORE,
        Piece("attention.query", "self_attn.q_proj", _heads),
        Piece("attention.query_down", "self_attn.q_a_proj"),
        Piece("attention.query_norm", "self_attn.q_a_layernorm"),
        Piece("attention.query_up", "self_attn.q_b_proj", _heads),
        Piece("attention.kv_down", "self_attn.kv_a_proj_with_mqa", _latent),
        Piece("attention.kv_norm", "self_attn.kv_a_layernorm"),
        Piece("attention.kv_up", "self_attn.kv_b_proj"),
        Piece("attention.out", "self_attn.o_proj"),
        *SWIGLU,
        Piece("feedforward.router", "mlp.gate", _router),
        Piece("feedforward.expert_up", "mlp.experts.{}", each_expert("gate_proj", "up_proj")),
        Piece("feedforward.expert_down", "mlp.experts.{}", each_expert("down_proj")),
        Piece("feedforward.shared.up", "mlp.shared_experts.{}_proj", gate_and_up),
        Piece("feedforward.shared.down", "mlp.shared_experts.down_proj"),
    ),
    written=lambda config: {
        **LLAMA.written(config),
        "num_key_value_heads": config.attention.n_heads,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 0,
    },
)
