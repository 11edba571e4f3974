"""Transformers and recurrences for text, by other libraries than transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.zoo.inputs import features, tokens
from tests.zoo.model import Model, of
from tests.zoo.reasons import DYNAMIC, GAMMA, MEMORY, RELATIVE, RMS, STREAM_TABLE, STREAMS


def decoder(max_seq_len: int = 32, **attention: Any) -> nn.Module:
    """x-transformers' language model with the settings of its attention layers."""
    xt = of("x_transformers")
    wrapper = {key: attention.pop(key) for key in [*attention] if key.startswith("wrapper_")}
    layers = xt.Decoder(**{"dim": 32, "depth": 2, "heads": 4, **attention})
    settings = {key.removeprefix("wrapper_"): value for key, value in wrapper.items()}
    model: nn.Module = xt.TransformerWrapper(num_tokens=64, max_seq_len=max_seq_len, attn_layers=layers, **settings)
    return model


MODELS = [
    Model("x-transformers", "Decoder", decoder, tokens, exempt=GAMMA),
    Model(
        "x-transformers",
        "Decoder, RMSNorm, rotary, SwiGLU",
        lambda: decoder(use_rmsnorm=True, rotary_pos_emb=True, ff_glu=True, ff_swish=True),
        tokens,
        exempt={r"\.g$": "the gain of its RMSNorm"},
    ),
    Model(
        "x-transformers",
        "Decoder, hyper-connections",
        lambda: decoder(num_residual_streams=4),
        tokens,
        decays=DYNAMIC,
        exempt=GAMMA | STREAMS,
        open=STREAM_TABLE,
    ),
    Model(
        "x-transformers",
        "Decoder, qk norm, layer scale, talking heads, memory",
        lambda: decoder(
            attn_qk_norm=True,
            attn_qk_norm_dim_scale=True,
            attn_pre_talking_heads=True,
            attn_post_talking_heads=True,
            attn_num_mem_kv=3,
            use_layerscale=True,
        ),
        tokens,
        exempt=GAMMA | {r"qk_norm_[qk]_scale$": "multiplies the normalised q and k"},
        open=MEMORY,
    ),
    Model(
        "x-transformers", "Decoder, T5 bias", lambda: decoder(rel_pos_bias=True), tokens, exempt=GAMMA, open=RELATIVE
    ),
    Model(
        "x-transformers",
        "Decoder, dynamic bias, head scale, residual gates",
        lambda: decoder(dynamic_pos_bias=True, attn_head_scale=True, gate_residual=True, scale_residual=True),
        tokens,
        exempt=GAMMA | {r"head_scale_params$": "scales each head's output", r"residual_scale$": "scales the residual"},
    ),
    Model(
        "x-transformers",
        "Decoder, memory tokens, scaled sinusoids",
        lambda: decoder(wrapper_num_memory_tokens=4, wrapper_scaled_sinu_pos_emb=True, use_scalenorm=True),
        tokens,
        exempt={r"\.g$": "ScaleNorm's one gain", r"pos_emb\.scale$": "scales the sinusoids"},
        open=MEMORY,
    ),
    Model(
        "x-transformers",
        "Decoder, laser, value residual, sigmoid gates",
        lambda: decoder(
            attn_laser=True,
            add_value_residual=True,
            learned_value_residual_mix=True,
            attn_gate_values=True,
            attn_gate_value_heads=True,
        ),
        tokens,
        exempt=GAMMA,
    ),
    Model(
        "x-transformers",
        "Encoder-decoder",
        lambda: of("x_transformers").XTransformer(
            dim=32,
            enc_num_tokens=64,
            enc_depth=2,
            enc_heads=4,
            enc_max_seq_len=32,
            dec_num_tokens=64,
            dec_depth=2,
            dec_heads=4,
            dec_max_seq_len=32,
        ),
        lambda: (tokens(), tokens()),
        exempt=GAMMA,
    ),
    Model(
        "xlstm",
        "mLSTM and sLSTM blocks",
        lambda: xlstm(),
        tokens,
        decays={r"(q_proj|k_proj|v_proj|gate)\.weight$": "block-diagonal: einsum('...hd,hod->...ho')"},
        exempt={
            r"norm\w*\.weight$": "gains of its norms, kept as a difference from 1",
            r"learnable_skip$": "scales the skipped convolution",
            r"_bias_$": "the cell's bias",
        },
        open={
            r"_recurrent_kernel_$": "multiplies the hidden state, as nn.LSTM's do; its authors' own groups leave it out"
        },
    ),
    Model("litgpt", "GPT, pythia-14m", lambda: litgpt("pythia-14m"), tokens),
    Model("litgpt", "GPT, Gemma-2", lambda: litgpt("Gemma-2-2b"), tokens, exempt=RMS),
    Model(
        "litgpt",
        "GPT with adapter_v2",
        lambda: litgpt("pythia-14m", "adapter_v2"),
        tokens,
        exempt={
            r"gating_factor$": "scales what attention to the prompt gives",
            r"adapter_(scale|bias)$": "a scale and a bias on each linear layer's output",
        },
        open={r"adapter_wte\.weight$": "the adapter's prompt: learned tokens in an Embedding that is never looked up"},
    ),
    Model(
        "litgpt",
        "GPT with LLaMA-Adapter",
        lambda: litgpt("pythia-14m", "adapter"),
        tokens,
        exempt={r"gating_factor$": "scales what attention to the prompt gives"},
        open={r"adapter_wte\.weight$": "the adapter's prompt: learned tokens in an Embedding that is never looked up"},
    ),
    Model(
        "litgpt",
        "GPT with LoRA",
        lambda: litgpt("pythia-14m", "lora", lora_r=4, lora_query=True, lora_value=True, lora_projection=True),
        tokens,
        decays={r"lora_[AB]$": "factors of a weight"},
    ),
    Model("litgpt", "GPT, Mixtral", lambda: litgpt("Mixtral-8x7B-v0.1", n_expert=4), tokens, exempt=RMS),
    Model(
        "titans-pytorch",
        "NeuralMemory",
        lambda: of("titans_pytorch").NeuralMemory(dim=32, chunk_size=8, heads=2),
        lambda: features(32),
        decays={r"memory_model_parameters\.[12]$": "fast weights at a sequence's start: matrices of the memory's MLP"},
        exempt=GAMMA | {r"memory_model_parameters\.0$": "the memory's norm gain, a copy for each head"},
        open={r"memory_model\.(norm|model)\.": "functional_call puts fast weights in their place: no gradient"},
    ),
    Model(
        "titans-pytorch",
        "MemoryAsContextTransformer",
        lambda: of("titans_pytorch").MemoryAsContextTransformer(
            num_tokens=64,
            dim=32,
            depth=2,
            segment_len=16,
            num_persist_mem_tokens=4,
            num_longterm_mem_tokens=4,
            heads=2,
            dim_head=16,
        ),
        lambda: tokens(32),
        decays={r"memory_model_parameters\.[12]$": "fast weights at a sequence's start: matrices of the memory's MLP"}
        | DYNAMIC,
        exempt=GAMMA | {r"memory_model_parameters\.0$": "the memory's norm gain, a copy for each head"} | STREAMS,
        open={r"memory_model\.(norm|model)\.": "functional_call puts fast weights in their place: no gradient"}
        | MEMORY
        | STREAM_TABLE,
    ),
    Model(
        "performer-pytorch",
        "PerformerLM",
        lambda: of("performer_pytorch").PerformerLM(
            num_tokens=64, max_seq_len=32, dim=32, depth=2, heads=4, dim_head=8, causal=False
        ),
        lambda: tokens(32),
    ),
    Model(
        "reformer-pytorch",
        "ReformerLM",
        lambda: of("reformer_pytorch").ReformerLM(
            num_tokens=64, dim=32, depth=2, max_seq_len=32, heads=4, bucket_size=8, n_hashes=2, causal=True
        ),
        lambda: tokens(32),
    ),
    Model(
        "linear-attention-transformer",
        "LinearAttentionTransformerLM",
        lambda: of("linear_attention_transformer").LinearAttentionTransformerLM(
            num_tokens=64,
            dim=32,
            heads=4,
            depth=2,
            max_seq_len=32,
            causal=True,
            local_attn_window_size=8,
            pkm_layers=(1,),
            pkm_num_keys=16,
        ),
        lambda: tokens(32),
        decays={
            r"pos_emb\.weights": "axial positions: rows plus columns, added",
            r"\.keys$": "einsum of queries and keys: a matrix",
        },
    ),
    Model(
        "nystrom-attention",
        "Nystromformer",
        lambda: of("nystrom_attention").Nystromformer(dim=32, dim_head=8, heads=4, depth=2, num_landmarks=8),
        lambda: features(32),
    ),
    Model(
        "conformer",
        "Conformer",
        lambda: of("conformer").Conformer(dim=32, depth=2, dim_head=8, heads=4),
        features,
        open={r"rel_pos_emb\.weight$": "Shaw's table by distance, met by queries: a matrix, or relative positions"},
    ),
]


def xlstm() -> nn.Module:
    x = of("xlstm")
    config = x.xLSTMLMModelConfig(
        mlstm_block=x.mLSTMBlockConfig(
            mlstm=x.mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=4)
        ),
        slstm_block=x.sLSTMBlockConfig(
            slstm=x.sLSTMLayerConfig(backend="vanilla", num_heads=4, conv1d_kernel_size=4),
            feedforward=x.FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
        ),
        context_length=16,
        num_blocks=2,
        embedding_dim=32,
        slstm_at=[1],
        vocab_size=64,
    )
    model: nn.Module = x.xLSTMLMModel(config)
    return model


def litgpt(name: str, kind: str = "model", **settings: Any) -> nn.Module:
    module = of(f"litgpt.{kind}")
    sizes = {
        "n_layer": 3,
        "n_embd": 32,
        "n_head": 4,
        "n_query_groups": 4,
        "head_size": 8,
        "intermediate_size": 64,
        "vocab_size": 64,
        "padded_vocab_size": 64,
        "block_size": 32,
    }
    if "Mixtral" in name:
        sizes["moe_intermediate_size"] = 64
    if kind == "adapter":
        sizes["adapter_start_layer"] = 0
    model: nn.Module = module.GPT(module.Config.from_name(name, **{**sizes, **settings}))
    return model
