"""GPT-2, OPT, GPT-NeoX (Pythia) and BLOOM in transformers' terms: LayerNorm, biases, two-layer feed-forward parts."""

from __future__ import annotations

from weightdecay.models.family import ROTARY_BASE, SHAPE, Family, Key, optional
from weightdecay.models.tensors import Piece, after_two_rows, conv1d, qkv, qkv_by_head

_GELUS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_ACTIVATIONS = {**_GELUS, "relu": "relu"}


# GPT-NeoX and BLOOM, both from Megatron, lay out a block alike but for the name of its attention.
def _megatron_block(attention: str) -> tuple[Piece, ...]:
    return (
        Piece("attention_norm", "input_layernorm"),
        Piece("feedforward_norm", "post_attention_layernorm"),
        Piece("attention.qkv", f"{attention}.query_key_value", qkv_by_head),
        Piece("attention.out", f"{attention}.dense"),
        Piece("feedforward.up", "mlp.dense_h_to_4h"),
        Piece("feedforward.down", "mlp.dense_4h_to_h"),
    )


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    block="h.{}",
    required={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    fixed={},
    keys={
        "vocab_size": Key("vocab_size"),
        "n_positions": Key("context"),
        "n_layer": Key("n_layers"),
        "n_embd": Key("d_model"),
        "n_head": Key("attention.n_heads"),
        "n_inner": optional("d_ff"),
        "layer_norm_epsilon": Key("norms.eps", 1e-5),
        "activation_function": Key("feedforward", "gelu_new", values=_GELUS),
        "tie_word_embeddings": Key("tied_head", True),
    },
    around=(
        Piece("embedding", "transformer.wte"),
        Piece("positions", "transformer.wpe"),
        Piece("norm", "transformer.ln_f"),
        Piece("head", "lm_head"),
    ),
    within=(
        Piece("attention_norm", "ln_1"),
        Piece("feedforward_norm", "ln_2"),
        Piece("attention.qkv", "attn.c_attn", conv1d),
        Piece("attention.out", "attn.c_proj", conv1d),
        Piece("feedforward.up", "mlp.c_fc", conv1d),
        Piece("feedforward.down", "mlp.c_proj", conv1d),
    ),
    written=lambda config: {
        "attn_pdrop": config.training.dropout,
        "embd_pdrop": config.training.dropout if config.training.embedding_dropout else 0.0,
        "resid_pdrop": config.training.dropout,
    },
)

OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    prefix="model.",
    block="decoder.layers.{}",
    required={"enable_bias": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True},
    fixed={},
    keys={
        **SHAPE,
        "word_embed_proj_dim": optional("d_embedding"),
        "do_layer_norm_before": Key("norm_placement", True, values={True: "pre", False: "post"}),
        "ffn_dim": Key("d_ff"),
        "activation_function": Key("feedforward", "relu", values=_ACTIVATIONS),
        "tie_word_embeddings": Key("tied_head", True),
    },
    around=(
        Piece("embedding", "model.decoder.embed_tokens"),
        Piece("positions", "model.decoder.embed_positions", after_two_rows),
        Piece("project_in", "model.decoder.project_in"),
        Piece("norm", "model.decoder.final_layer_norm"),
        Piece("project_out", "model.decoder.project_out"),
        Piece("head", "lm_head"),
    ),
    within=(
        Piece("attention_norm", "self_attn_layer_norm"),
        Piece("feedforward_norm", "final_layer_norm"),
        Piece("attention.qkv", "self_attn.{}_proj", qkv),
        Piece("attention.out", "self_attn.out_proj"),
        Piece("feedforward.up", "fc1"),
        Piece("feedforward.down", "fc2"),
    ),
    written=lambda config: {"dropout": config.training.dropout, "attention_dropout": config.training.dropout},
)

GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    block="layers.{}",
    required={"attention_bias": True},
    fixed={"positions": "rotary"},
    keys={
        **SHAPE,
        "intermediate_size": Key("d_ff"),
        "layer_norm_eps": Key("norms.eps", 1e-5),
        "hidden_act": Key("feedforward", "gelu", values=_ACTIVATIONS),
        "use_parallel_residual": Key("branches", True, values={True: "parallel", False: "sequential"}),
        "tie_word_embeddings": Key("tied_head", False),
        "rope_theta": Key("attention.rotary_base", ROTARY_BASE, older=("rotary_emb_base",), read=float),
        "partial_rotary_factor": Key("attention.rotary_fraction", 0.25, older=("rotary_pct",), read=float),
    },
    around=(
        Piece("embedding", "gpt_neox.embed_in"),
        Piece("norm", "gpt_neox.final_layer_norm"),
        Piece("head", "embed_out"),
    ),
    within=_megatron_block("attention"),
    written=lambda config: {"attention_dropout": config.training.dropout, "hidden_dropout": config.training.dropout},
)

BLOOM = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    prefix="transformer.",
    block="h.{}",
    required={"apply_residual_connection_post_layernorm": False},
    fixed={"positions": "alibi", "norms.embedding": True, "feedforward": "gelu_tanh"},
    keys={
        "vocab_size": Key("vocab_size"),
        "seq_length": Key("context", 2048),
        "n_layer": Key("n_layers"),
        "hidden_size": Key("d_model", older=("n_embed",)),
        "n_head": Key("attention.n_heads"),
        "layer_norm_epsilon": Key("norms.eps", 1e-5),
        "tie_word_embeddings": Key("tied_head", True),
    },
    around=(
        Piece("embedding", "transformer.word_embeddings"),
        Piece("embedding_norm", "transformer.word_embeddings_layernorm"),
        Piece("norm", "transformer.ln_f"),
        Piece("head", "lm_head"),
    ),
    within=_megatron_block("self_attention"),
    written=lambda config: {"attention_dropout": config.training.dropout, "hidden_dropout": config.training.dropout},
)
