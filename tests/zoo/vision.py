"""vit-pytorch's transformers for images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.inputs import images
from tests.zoo.model import Model, of
from tests.zoo.reasons import CHANNELS, CLS, DYNAMIC, GAMMA, LATENTS, POSITIONS, RELATIVE, STREAMS


def vit(module: str, name: str = "ViT", **settings: Any) -> nn.Module:
    base = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64}
    wanted = {key: value for key, value in {**base, **settings}.items() if value is not None}
    model: nn.Module = getattr(of(f"vit_pytorch.{module}"), name)(**wanted)
    return model


V = "vit-pytorch"


MODELS = [
    Model(V, "ViT", lambda: vit("vit"), images, decays=POSITIONS, open=CLS),
    Model(V, "SimpleViT", lambda: vit("simple_vit", "SimpleViT"), images),
    Model(
        V, "SimpleViT, register tokens", lambda: vit("simple_vit_with_register_tokens", "SimpleViT"), images, open=CLS
    ),
    Model(V, "SimpleViT, qk norm", lambda: vit("simple_vit_with_qk_norm", "SimpleViT"), images, exempt=GAMMA),
    Model(
        V,
        "SimpleViT, hyper-connections",
        lambda: vit("simple_vit_with_hyper_connections", "SimpleViT", num_residual_streams=4),
        images,
        decays=DYNAMIC,
        exempt=STREAMS,
        open=CLS,
    ),
    Model(
        V,
        "ViT, patch merger",
        lambda: vit("vit_with_patch_merger", "ViT", patch_merge_layer=1, patch_merge_num_tokens=4),
        images,
        decays=POSITIONS,
        open=LATENTS,
    ),
    Model(
        V,
        "NaViT",
        lambda: vit("na_vit", "NaViT"),
        lambda: [[torch.randn(3, 16, 24), torch.randn(3, 32, 16)], [torch.randn(3, 24, 24)]],
        decays={r"pos_embed_(height|width)$": "looked up by row and by column, added: position embeddings"},
        exempt=GAMMA,
        open=LATENTS,
    ),
    Model(
        V,
        "nViT",
        lambda: vit("normalized_vit", "nViT"),
        images,
        decays={
            r"weight\.original$": "a Linear's weight, normalised on its way; that of abs_pos_emb is looked up and added"
        },
        exempt={
            r"_scales?(\.\d+)*$": "scales of logits, q, k and hidden units; weights of the residual's interpolation"
        },
    ),
    Model(
        V,
        "CaiT",
        lambda: vit("cait", "CaiT", cls_depth=1),
        images,
        decays=POSITIONS | {r"mix_heads": "einsum('b h i j, h g -> b g i j'): a matrix over heads"},
        exempt={r"\.scale$": "layer scale"},
        open=CLS,
    ),
    Model(
        V,
        "DeepViT",
        lambda: vit("deepvit", "DeepViT"),
        images,
        decays=POSITIONS | {r"reattn_weights$": "einsum('b h i j, h g -> b g i j'): a matrix over heads"},
        open=CLS,
    ),
    Model(
        V,
        "T2TViT",
        lambda: vit("t2t", "T2TViT", patch_size=None, t2t_layers=((3, 2), (3, 2))),
        images,
        decays=POSITIONS,
        open=CLS,
    ),
    Model(
        V,
        "CCT",
        lambda: of("vit_pytorch.cct").CCT(
            img_size=32,
            embedding_dim=32,
            n_conv_layers=1,
            num_layers=2,
            num_heads=4,
            mlp_ratio=2.0,
            num_classes=10,
            positional_embedding="learnable",
        ),
        images,
        decays={r"positional_emb$": "added along the sequence: position embeddings"},
    ),
    Model(
        V,
        "CvT",
        lambda: of("vit_pytorch.cvt").CvT(
            num_classes=10, s1_emb_dim=16, s2_emb_dim=16, s2_heads=2, s3_emb_dim=32, s3_heads=2, s3_depth=2
        ),
        lambda: images(64),
        exempt=CHANNELS,
    ),
    Model(
        V,
        "Twins-SVT",
        lambda: of("vit_pytorch.twins_svt").TwinsSVT(
            num_classes=10,
            s1_emb_dim=16,
            s2_emb_dim=16,
            s3_emb_dim=32,
            s4_emb_dim=32,
            s1_patch_size=2,
            s1_local_patch_size=4,
            s2_local_patch_size=4,
            s3_local_patch_size=2,
            s4_local_patch_size=2,
            s3_depth=1,
            s1_global_k=2,
            s2_global_k=2,
            s3_global_k=2,
            s4_global_k=2,
        ),
        lambda: images(64),
        exempt=CHANNELS,
    ),
    Model(
        V,
        "CrossFormer",
        lambda: of("vit_pytorch.crossformer").CrossFormer(
            num_classes=10,
            dim=(32, 32, 64, 64),
            depth=(1, 1, 1, 1),
            global_window_size=(4, 2, 1, 1),
            local_window_size=2,
        ),
        lambda: images(64),
        exempt=CHANNELS,
    ),
    Model(
        V,
        "MaxViT",
        lambda: of("vit_pytorch.max_vit").MaxViT(
            num_classes=10, dim_conv_stem=16, dim=16, dim_head=8, depth=(1, 1), window_size=4
        ),
        lambda: images(64),
        open=RELATIVE,
    ),
    Model(
        V,
        "XCiT",
        lambda: vit("xcit", "XCiT", cls_depth=1),
        images,
        decays=POSITIONS,
        exempt={r"\.scale$": "layer scale", r"temperature$": "scales the logits of each head"},
        open=CLS,
    ),
    Model(V, "RvT", lambda: vit("rvt", "RvT"), images, open=CLS),
    Model(
        V,
        "RegionViT",
        lambda: of("vit_pytorch.regionvit").RegionViT(
            dim=(16, 16, 32, 32), depth=(1, 1, 1, 1), window_size=2, num_classes=10
        ),
        lambda: images(64),
        open=RELATIVE,
    ),
    Model(
        V,
        "ScalableViT",
        lambda: of("vit_pytorch.scalable_vit").ScalableViT(
            num_classes=10,
            dim=16,
            heads=(2, 2, 2, 2),
            depth=(1, 1, 1, 1),
            ssa_dim_key=(8, 8, 8, 8),
            reduction_factor=(2, 2, 1, 1),
            window_size=(4, 2, None, None),
        ),
        lambda: images(64),
        exempt=CHANNELS,
    ),
    Model(
        V,
        "LeViT",
        lambda: of("vit_pytorch.levit").LeViT(
            image_size=32, num_classes=10, stages=2, dim=(32, 64), depth=1, heads=(2, 4), mlp_mult=2
        ),
        images,
        open={r"pos_bias\.weight$": "biases by distance, looked up and added to the logits: a table, or biases"},
    ),
    Model(
        V,
        "NesT",
        lambda: of("vit_pytorch.nest").NesT(
            image_size=32, patch_size=4, dim=16, heads=2, num_hierarchies=2, block_repeats=(1, 1), num_classes=10
        ),
        images,
        exempt=CHANNELS,
        open={r"pos_emb$": "one number a position, added to all channels: positions of width 1, or a vector of biases"},
    ),
    Model(
        V,
        "CrossViT",
        lambda: of("vit_pytorch.cross_vit").CrossViT(
            image_size=32,
            num_classes=10,
            sm_dim=16,
            lg_dim=32,
            sm_patch_size=8,
            lg_patch_size=16,
            sm_enc_depth=1,
            lg_enc_depth=1,
            depth=1,
        ),
        images,
        decays=POSITIONS,
        open=CLS,
    ),
    Model(
        V,
        "ViViT",
        lambda: of("vit_pytorch.vivit").ViViT(
            image_size=32,
            image_patch_size=8,
            frames=4,
            frame_patch_size=2,
            num_classes=10,
            dim=32,
            spatial_depth=1,
            temporal_depth=1,
            heads=4,
            mlp_dim=64,
        ),
        lambda: torch.randn(2, 3, 4, 32, 32),
        decays=POSITIONS,
        open=CLS,
    ),
    Model(
        V,
        "LookViT",
        lambda: of("vit_pytorch.look_vit").LookViT(
            image_size=32,
            patch_size=8,
            num_classes=10,
            dim=32,
            depth=2,
            heads=4,
            dim_head=8,
            highres_patch_size=4,
            cross_attn_heads=4,
            cross_attn_dim_head=8,
        ),
        images,
        decays=POSITIONS,
        exempt=GAMMA,
    ),
]
