"""Transformers that take away noise, from images and from videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.inputs import latents
from tests.zoo.model import Model, of
from tests.zoo.reasons import POSITIONS, RMS


def diffusers(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = getattr(of("diffusers"), name)(**settings)
    return model


TABLE = {r"scale_shift_table$": "added to what the time step gives, then cut into shifts, scales and gates"}


D = "diffusers"


MODELS = [
    Model(
        D,
        "PixArtTransformer2DModel",
        lambda: diffusers(
            "PixArtTransformer2DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            caption_channels=12,
        ),
        lambda: latents(
            4, 8, 8, key="hidden_states", states=(5, 12), added_cond_kwargs={"resolution": None, "aspect_ratio": None}
        ),
        exempt=TABLE,
    ),
    Model(
        D,
        "SanaTransformer2DModel",
        lambda: diffusers(
            "SanaTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=8,
        ),
        lambda: latents(4, 8, 8, key="hidden_states", states=(5, 12)),
        exempt=TABLE | RMS,
    ),
    Model(
        D,
        "WanTransformer3DModel",
        lambda: diffusers(
            "WanTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
        ),
        lambda: latents(4, 2, 8, 8, key="hidden_states", states=(5, 16)),
        exempt=TABLE,
    ),
    Model(
        D,
        "FluxTransformer2DModel",
        lambda: diffusers(
            "FluxTransformer2DModel",
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        lambda: flux(),
    ),
    Model(
        D,
        "SD3Transformer2DModel",
        lambda: diffusers(
            "SD3Transformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            out_channels=4,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        lambda: latents(4, 8, 8, key="hidden_states", states=(5, 16), pooled_projections=torch.randn(1, 16)),
        exempt={r"norm_(added_)?[qk]\.weight$": "gains of the RMSNorms of q and k"},
    ),
    Model(
        D,
        "CogVideoXTransformer3DModel",
        lambda: diffusers(
            "CogVideoXTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=8,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            max_text_seq_length=6,
            use_rotary_positional_embeddings=False,
        ),
        lambda: latents(2, 4, 8, 8, key="hidden_states", states=(6, 8)),
    ),
    Model(
        D,
        "DiTTransformer2DModel",
        lambda: diffusers(
            "DiTTransformer2DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            num_layers=2,
            sample_size=8,
            norm_num_groups=4,
            num_embeds_ada_norm=10,
        ),
        lambda: latents(4, 8, 8, key="hidden_states", class_labels=torch.tensor([3])),
    ),
    Model(
        D,
        "HunyuanDiT2DModel",
        lambda: diffusers(
            "HunyuanDiT2DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            sample_size=8,
            patch_size=2,
            hidden_size=16,
            num_layers=2,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=16,
            text_len=4,
            text_len_t5=5,
            activation_fn="gelu-approximate",
        ),
        lambda: hunyuan(),
        decays={r"positional_embedding$": "added along the sequence"},
        open={
            r"text_embedding_padding$": "stands where the text is padded: learned tokens",
            r"style_embedder\.weight$": "an Embedding of one row: a table, or a learned token",
        },
    ),
    Model(
        D,
        "LTXVideoTransformer3DModel",
        lambda: diffusers(
            "LTXVideoTransformer3DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=12,
        ),
        lambda: {
            "hidden_states": torch.randn(1, 8, 4),
            "timestep": torch.tensor([5]),
            "encoder_hidden_states": torch.randn(1, 5, 12),
            "encoder_attention_mask": torch.ones(1, 5),
            "num_frames": 2,
            "height": 2,
            "width": 2,
        },
        exempt=TABLE,
    ),
    Model(
        D,
        "AuraFlowTransformer2DModel",
        lambda: diffusers(
            "AuraFlowTransformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
        lambda: latents(4, 8, 8, key="hidden_states", states=(5, 16)),
        decays=POSITIONS,
        open={r"register_tokens$": "learned tokens beside the real ones"},
    ),
    Model(
        D,
        "Lumina2Transformer2DModel",
        lambda: diffusers(
            "Lumina2Transformer2DModel",
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 8),
            axes_lens=(16, 16, 16),
            cap_feat_dim=16,
        ),
        lambda: latents(
            4, 8, 8, key="hidden_states", states=(5, 16), encoder_attention_mask=torch.ones(1, 5, dtype=torch.bool)
        ),
        exempt={r"norm\w*\.weight$|caption_embedder\.0\.weight$": "gains of its RMSNorms"},
    ),
]


def flux() -> Any:
    return {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.tensor([3.5]),
    }


def hunyuan() -> Any:
    rotary = (torch.ones(16, 8), torch.zeros(16, 8))
    return {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([5.0]),
        "encoder_hidden_states": torch.randn(1, 4, 16),
        "text_embedding_mask": torch.ones(1, 4),
        "encoder_hidden_states_t5": torch.randn(1, 5, 16),
        "text_embedding_mask_t5": torch.ones(1, 5),
        "image_meta_size": torch.tensor([[8, 8, 8, 8, 0, 0]]),
        "style": torch.tensor([0]),
        "image_rotary_emb": rotary,
    }
