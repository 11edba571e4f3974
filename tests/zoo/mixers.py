"""Layers that mix tokens or experts otherwise: state spaces, retention, sparse attention, routing, keys, streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.inputs import features, tokens
from tests.zoo.model import Model, of
from tests.zoo.reasons import DYNAMIC, GAMMA, MEMORY, RELATIVE, RMS, STREAMS

MODELS = [
    Model(
        "mambapy",
        "Mamba",
        lambda: of("mambapy.mamba").Mamba(of("mambapy.mamba").MambaConfig(d_model=32, n_layers=2)),
        features,
        exempt={
            r"A_log$": "the state's decay rates",
            r"\.D$": "scales the skip",
            r"norm\.weight$": "the gain of its RMSNorm",
        },
    ),
    Model("torchscale", "RetNetDecoder", lambda: retnet(), tokens, exempt=RMS),
    Model(
        "torchscale",
        "Encoder, subln, relative positions",
        lambda: torchscale_encoder(),
        lambda: {"src_tokens": tokens()},
        open=RELATIVE,
    ),
    Model(
        "yet-another-retnet",
        "RetNet",
        lambda: of("yet_another_retnet.retnet").RetNet(
            num_tokens=64, d_model=32, nhead=4, num_layers=2, dim_feedforward=64
        ),
        lambda: (tokens(), tokens()),
    ),
    Model(
        "native-sparse-attention-pytorch",
        "Transformer",
        lambda: of("native_sparse_attention_pytorch.transformer").Transformer(
            num_tokens=64,
            dim=32,
            depth=2,
            heads=4,
            dim_head=8,
            kv_heads=2,
            use_sparse_attn=True,
            causal=True,
            use_flex_sliding_window=False,
            use_triton_fine_selection=False,
            sparse_attn_kwargs={
                "sliding_window_size": 8,
                "compress_block_size": 4,
                "compress_block_sliding_stride": 2,
                "selection_block_size": 4,
                "num_selected_blocks": 2,
            },
        ),
        lambda: tokens(32),
        decays={r"intrablock_positions$": "positions within a block, added to k and v"},
        open=MEMORY,
    ),
    Model(
        "s5-pytorch",
        "S5Block",
        lambda: of("s5").S5Block(32, 16, False),
        features,
        decays={r"\.C$": "reads the state out: C @ x, a matrix"},
        exempt={r"Lambda$": "the state's poles", r"log_step$": "time steps", r"\.D$": "scales the skip"},
        open={r"\.B$": "multiplies the input as a complex matrix; S5's and S4's own training leave it out"},
    ),
    Model(
        "minGRU-pytorch", "minGRULM", lambda: of("minGRU_pytorch.minLM").minLM(num_tokens=64, dim=32, depth=2), tokens
    ),
    Model(
        "local-attention",
        "LocalTransformer",
        lambda: of("local_attention").LocalTransformer(
            num_tokens=64,
            max_seq_len=32,
            dim=32,
            depth=2,
            heads=4,
            dim_head=8,
            local_attn_window_size=8,
            causal=True,
            use_xpos=True,
            use_dynamic_pos_bias=True,
        ),
        lambda: tokens(32),
        decays=DYNAMIC,
        exempt=GAMMA | STREAMS,
    ),
    Model(
        "gateloop-transformer",
        "Transformer",
        lambda: of("gateloop_transformer").Transformer(num_tokens=64, dim=32, depth=2, use_gate_looped_attn=True),
        tokens,
        exempt=GAMMA,
    ),
    Model(
        "st-moe-pytorch",
        "SparseMoEBlock",
        lambda: of("st_moe_pytorch").SparseMoEBlock(
            of("st_moe_pytorch").MoE(dim=32, num_experts=4, gating_top_n=2), add_ff_before=True, add_ff_after=True
        ),
        features,
        exempt=GAMMA | {r"mult_bias$": "ones that scale what leaves the gate"},
    ),
    Model(
        "soft-moe-pytorch",
        "SoftMoE",
        lambda: of("soft_moe_pytorch").SoftMoE(dim=32, seq_len=16, num_experts=4),
        features,
        exempt=GAMMA,
        open={r"slot_embeds$": "the matrix Φ that routes tokens to slots, or learned queries: one vector a slot"},
    ),
    Model(
        "PEER-pytorch",
        "PEER",
        lambda: of("PEER_pytorch").PEER(
            dim=32, heads=2, num_experts=64, num_experts_per_head=4, dim_key=16, pre_rmsnorm=True
        ),
        features,
        decays={r"keys$": "einsum of queries and keys: a matrix"},
        exempt=GAMMA,
    ),
    Model(
        "mixture-of-experts",
        "HeirarchicalMoE",
        lambda: of("mixture_of_experts").HeirarchicalMoE(dim=32, num_experts=(2, 2)),
        features,
        decays={
            r"w_gating$": "einsum('...bnd,...de->...bne'): the router",
            r"experts\.w\d$": "einsum, one matrix an expert",
        },
    ),
    Model(
        "product-key-memory",
        "PKM",
        lambda: of("product_key_memory").PKM(dim=32, heads=2, num_keys=16, topk=4, dim_head=16),
        features,
        decays={r"keys$": "einsum of queries and keys: a matrix"},
    ),
    Model(
        "hyper-connections", "HyperConnections", lambda: of_streams(), features, decays=DYNAMIC, exempt=GAMMA | STREAMS
    ),
    Model(
        "ncps",
        "LTC",
        lambda: of("ncps.torch").LTC(8, of("ncps.wirings").AutoNCP(16, 4)),
        lambda: features(width=8),
        exempt={
            r"(gleak|vleak|cm)$": "time constants of the membrane",
            r"(mu|sigma)$": "sigmoid(sigma * (v - mu)): centre and slope of each synapse",
            r"(in|out)put_[wb]$": "scale and shift of each channel",
        },
        open={r"(_w|\.w|erev)$": "weigh activations, summed over sources; but conductances of an equation"},
    ),
    Model("ncps", "CfC", lambda: of("ncps.torch").CfC(8, 16), lambda: features(width=8)),
]


def retnet() -> nn.Module:
    config = of("torchscale.architecture.config").RetNetConfig(
        decoder_embed_dim=32,
        decoder_value_embed_dim=64,
        decoder_retention_heads=4,
        decoder_ffn_embed_dim=64,
        decoder_layers=2,
        vocab_size=64,
    )
    model: nn.Module = of("torchscale.architecture.retnet").RetNetDecoder(config, embed_tokens=nn.Embedding(64, 32))
    return model


def torchscale_encoder() -> nn.Module:
    config = of("torchscale.architecture.config").EncoderConfig(
        encoder_embed_dim=32,
        encoder_attention_heads=4,
        encoder_ffn_embed_dim=64,
        encoder_layers=2,
        vocab_size=64,
        subln=True,
        rel_pos_buckets=8,
        max_rel_pos=16,
    )
    model: nn.Module = of("torchscale.architecture.encoder").Encoder(
        config, embed_tokens=nn.Embedding(64, 32), embed_positions=None
    )
    return model


class OfStreams(nn.Module):
    """A feedforward of two layers over four residual streams, as the package's README has it."""

    def __init__(self) -> None:
        super().__init__()
        connect, self.expand, self.reduce = of("hyper_connections").get_init_and_expand_reduce_stream_functions(4)
        self.layers = nn.ModuleList(connect(dim=32, branch=nn.Linear(32, 32)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.expand(x)
        for layer in self.layers:
            x = layer(x)
        return self.reduce(x)


def of_streams() -> nn.Module:
    return OfStreams()
