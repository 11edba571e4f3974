"""UNets that take away noise, and the autoencoders around them."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.diffusion import diffusers
from tests.zoo.inputs import latents
from tests.zoo.model import Model, of
from tests.zoo.reasons import GAMMA, MEMORY

UNET = {"sample_size": 16, "block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1}


BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


D = "diffusers"


MODELS = [
    Model(
        D,
        "UNet2DConditionModel",
        lambda: diffusers("UNet2DConditionModel", **UNET, **BLOCKS, cross_attention_dim=16, attention_head_dim=4),
        lambda: latents(4, 16, 16, states=(5, 16)),
    ),
    Model(
        D,
        "UNet2DModel",
        lambda: diffusers(
            "UNet2DModel",
            **UNET,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
        ),
        lambda: latents(3, 16, 16),
    ),
    Model(
        D,
        "UNetSpatioTemporalConditionModel (SVD)",
        lambda: diffusers(
            "UNetSpatioTemporalConditionModel",
            sample_size=16,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            layers_per_block=1,
            num_attention_heads=(2, 2),
            cross_attention_dim=16,
            projection_class_embeddings_input_dim=24,
            addition_time_embed_dim=8,
            transformer_layers_per_block=1,
        ),
        lambda: latents(2, 8, 16, 16, states=(1, 16), added_time_ids=torch.randn(1, 3)),
        exempt={r"mix_factor$": "a sigmoid makes it the share of the temporal branch: a gate"},
    ),
    Model(
        D,
        "AutoencoderKL",
        lambda: diffusers(
            "AutoencoderKL",
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ),
        lambda: torch.randn(1, 3, 16, 16),
    ),
    Model(
        D,
        "VQModel",
        lambda: diffusers(
            "VQModel",
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            num_vq_embeddings=32,
        ),
        lambda: torch.randn(1, 3, 16, 16),
    ),
    Model(
        D,
        "AutoencoderKLWan",
        lambda: diffusers(
            "AutoencoderKLWan",
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        lambda: torch.randn(1, 3, 5, 16, 16),
        exempt=GAMMA,
    ),
    Model(
        D,
        "ControlNetModel",
        lambda: diffusers(
            "ControlNetModel",
            block_out_channels=(16, 32),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=BLOCKS["down_block_types"],
            cross_attention_dim=16,
            attention_head_dim=4,
            conditioning_embedding_out_channels=(8, 16),
        ),
        lambda: latents(4, 16, 16, states=(5, 16), controlnet_cond=torch.randn(1, 3, 32, 32)),
    ),
    Model(
        "denoising-diffusion-pytorch",
        "Unet",
        lambda: of("denoising_diffusion_pytorch").Unet(dim=16, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2),
        lambda: (torch.randn(1, 3, 16, 16), torch.tensor([5])),
        exempt={r"\.g$": "the gain of its RMSNorm"},
        open=MEMORY,
    ),
    Model(
        "denoising-diffusion-pytorch",
        "KarrasUnet",
        lambda: of("denoising_diffusion_pytorch.karras_unet").KarrasUnet(
            image_size=16,
            dim=16,
            dim_max=32,
            num_downsamples=1,
            num_blocks_per_stage=1,
            attn_res=(8,),
            fourier_dim=8,
            attn_dim_head=8,
        ),
        lambda: (torch.randn(1, 4, 16, 16), torch.tensor([0.5])),
        decays={r"weight$": "of a convolution or a linear layer, normalised on its way"},
        exempt={r"gain$": "one number that scales a layer's output"},
        open=MEMORY,
    ),
    Model(
        "denoising-diffusion-pytorch",
        "UViT",
        lambda: of("denoising_diffusion_pytorch.simple_diffusion").UViT(
            dim=16, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2, vit_depth=1, patch_size=2
        ),
        lambda: (torch.randn(1, 3, 16, 16), torch.tensor([0.5])),
        exempt={
            r"\.g$": "the gain of its RMSNorm",
            r"[qk]_scale$": "scales the normalised q and k",
            r"time_mlp\.0\.weights$": "frequencies: sin(2π w t)",
        },
    ),
    Model(
        "denoising-diffusion-pytorch",
        "GaussianDiffusion",
        lambda: gaussian(),
        lambda: torch.rand(1, 3, 16, 16),
        exempt={r"\.g$": "the gain of its RMSNorm"},
        open=MEMORY,
    ),
]


def gaussian() -> nn.Module:
    package = of("denoising_diffusion_pytorch")
    model: nn.Module = package.GaussianDiffusion(
        package.Unet(dim=16, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2, flash_attn=False),
        image_size=16,
        timesteps=10,
    )
    return model
