"""Networks for images by timm, torchvision, OpenCLIP, MONAI and others; self-supervised heads, slots, codebooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.inputs import features, images
from tests.zoo.model import Model, of
from tests.zoo.reasons import CHANNELS, CLS, GAMMA, LATENTS, LISTED, POSITIONS, RELATIVE


def timm(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = of("timm").create_model(name, num_classes=10, **settings)
    return model


MODELS = [
    Model(
        "timm",
        "ConvNeXt",
        lambda: timm("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 16, 32, 32)),
        images,
        exempt=GAMMA,
    ),
    Model(
        "timm",
        "Swin",
        lambda: timm(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)
        ),
        images,
        exempt={r"relative_position_bias_table$": LISTED},
    ),
    Model(
        "timm",
        "Swin v2",
        lambda: timm(
            "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)
        ),
        images,
        exempt={r"cpb_mlp|logit_scale$": LISTED, r"[qv]_bias$": "biases of the in-projection"},
    ),
    Model(
        "timm",
        "EVA-02",
        lambda: timm("eva02_tiny_patch14_224", img_size=28, embed_dim=32, depth=2, num_heads=4),
        lambda: images(28),
        exempt={r"pos_embed$|cls_token$": LISTED, r"[qv]_bias$": "biases of the in-projection"},
    ),
    Model(
        "timm",
        "BEiT v2",
        lambda: timm("beitv2_base_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4),
        images,
        exempt={
            r"relative_position_bias_table$|cls_token$": LISTED,
            r"[qv]_bias$": "biases of the in-projection",
            r"gamma_\d$": "layer scale",
        },
    ),
    Model(
        "timm",
        "MLP-Mixer",
        lambda: of("timm.models.mlp_mixer").MlpMixer(
            num_classes=10, img_size=32, patch_size=8, embed_dim=32, num_blocks=2
        ),
        images,
    ),
    Model(
        "timm",
        "gMLP",
        lambda: of("timm.models.mlp_mixer").MlpMixer(
            num_classes=10,
            img_size=32,
            patch_size=8,
            embed_dim=32,
            num_blocks=2,
            mlp_ratio=4,
            block_layer=of("timm.models.mlp_mixer").SpatialGatingBlock,
            mlp_layer=of("timm.layers").GatedMlp,
        ),
        images,
    ),
    Model(
        "timm",
        "ResMLP",
        lambda: of("timm.models.mlp_mixer").MlpMixer(
            num_classes=10,
            img_size=32,
            patch_size=8,
            embed_dim=32,
            num_blocks=2,
            mlp_ratio=4,
            block_layer=of("timm.models.mlp_mixer").ResBlock,
            norm_layer=of("timm.models.mlp_mixer").Affine,
        ),
        images,
        exempt={r"(alpha|beta)$": "Affine, which stands where a norm would: gain and bias", r"ls\d$": "layer scale"},
    ),
    Model(
        "timm",
        "ViT, registers, layer scale",
        lambda: timm("vit_small_patch14_reg4_dinov2", img_size=28, embed_dim=32, depth=2, num_heads=4),
        lambda: images(28),
        exempt=GAMMA | {r"pos_embed$|(cls|reg)_token$": LISTED},
    ),
    Model(
        "torchvision",
        "ResNet",
        lambda: of("torchvision.models").ResNet(
            of("torchvision.models.resnet").BasicBlock, [1, 1, 1, 1], num_classes=10
        ),
        lambda: images(64),
    ),
    Model(
        "torchvision",
        "Vision transformer",
        lambda: of("torchvision.models").VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
        ),
        images,
        decays=POSITIONS,
        open=CLS,
    ),
    Model("torchvision", "ConvNeXt", lambda: convnext(), lambda: images(64), exempt={r"layer_scale$": "layer scale"}),
    Model(
        "torchvision",
        "Swin",
        lambda: of("torchvision.models").SwinTransformer(
            patch_size=[4, 4], embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=10
        ),
        images,
        open=RELATIVE,
    ),
    Model(
        "open-clip-torch",
        "CLIP",
        lambda: clip(),
        lambda: (images(), torch.randint(1, 64, (2, 16))),
        decays={r"proj(ection)?$": "pooled @ proj: a matrix"},
        exempt={r"logit_scale$": "scales the logits", r"(positional|class)_embedding$": LISTED},
    ),
    Model(
        "open-clip-torch",
        "CoCa",
        lambda: coca(),
        lambda: {"image": images(), "text": torch.randint(1, 64, (2, 16))},
        decays={r"proj(ection)?$": "pooled @ proj: a matrix"},
        exempt={r"logit_scale$": "scales the logits", r"(positional|class)_embedding$|cls_emb$": LISTED},
        open=LATENTS,
    ),
    Model(
        "segmentation-models-pytorch",
        "Unet, scse attention",
        lambda: of("segmentation_models_pytorch").Unet("resnet18", encoder_weights=None, decoder_attention_type="scse"),
        lambda: images(64),
    ),
    Model(
        "segmentation-models-pytorch",
        "Segformer",
        lambda: of("segmentation_models_pytorch").Segformer(
            "mit_b0", encoder_weights=None, decoder_segmentation_channels=32
        ),
        lambda: images(64),
    ),
    Model(
        "monai",
        "UNet",
        lambda: of("monai.networks.nets").UNet(
            spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1
        ),
        lambda: images(32, 1),
    ),
    Model(
        "monai",
        "UNETR",
        lambda: of("monai.networks.nets").UNETR(
            in_channels=1,
            out_channels=2,
            img_size=32,
            feature_size=8,
            hidden_size=32,
            mlp_dim=64,
            num_heads=4,
            spatial_dims=2,
        ),
        lambda: images(32, 1),
        decays=POSITIONS,
    ),
    Model(
        "monai",
        "SwinUNETR",
        lambda: of("monai.networks.nets").SwinUNETR(
            in_channels=1, out_channels=2, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2)
        ),
        lambda: images(64, 1),
        open=RELATIVE,
    ),
    Model(
        "monai",
        "SegResNet",
        lambda: of("monai.networks.nets").SegResNet(
            spatial_dims=2, in_channels=1, out_channels=2, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)
        ),
        lambda: images(32, 1),
    ),
    Model(
        "monai",
        "AttentionUnet",
        lambda: of("monai.networks.nets").AttentionUnet(
            spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2)
        ),
        lambda: images(32, 1),
    ),
    Model(
        "axial-attention",
        "AxialImageTransformer",
        lambda: of("axial_attention").AxialImageTransformer(dim=32, depth=2, heads=4, axial_pos_emb_shape=(8, 8)),
        lambda: images(8, 32),
        decays={r"pos_emb\.param_\d$": "added along rows and along columns: position embeddings"},
        exempt=CHANNELS,
    ),
    Model(
        "perceiver-pytorch",
        "Perceiver",
        lambda: of("perceiver_pytorch").Perceiver(
            input_channels=3,
            input_axis=2,
            num_freq_bands=4,
            max_freq=8.0,
            depth=2,
            num_latents=8,
            latent_dim=32,
            num_classes=10,
        ),
        lambda: torch.randn(2, 16, 16, 3),
        open=LATENTS,
    ),
    Model(
        "perceiver-pytorch",
        "PerceiverIO",
        lambda: of("perceiver_pytorch").PerceiverIO(
            dim=32, queries_dim=32, logits_dim=10, depth=2, num_latents=8, latent_dim=32
        ),
        lambda: {"data": features(), "queries": torch.randn(5, 32)},
        open=LATENTS,
    ),
    Model(
        "slot-attention",
        "SlotAttention",
        lambda: of("slot_attention").SlotAttention(num_slots=4, dim=32),
        features,
        exempt={r"slots_logsigma$": "its exponential scales the noise that slots start from"},
        open={r"slots_mu$": "what all slots start from: a learned token, or a vector"},
    ),
    Model(
        "slot-attention",
        "MultiHeadSlotAttention",
        lambda: of("slot_attention").MultiHeadSlotAttention(num_slots=4, dim=32, heads=2),
        features,
        exempt={r"slots_logsigma$": "its exponential scales the noise that slots start from"},
        open={r"slots_mu$": "what all slots start from: a learned token, or a vector"},
    ),
    Model(
        "lightly",
        "DINO head",
        lambda: of("lightly.models.modules.heads").DINOProjectionHead(32, 64, 16, 20),
        lambda: torch.randn(4, 32),
        decays={r"weight_v$": "weight norm's direction"},
        exempt={r"weight_g$": "weight norm's gain, frozen at 1"},
    ),
    Model("lightly", "SwaV head and prototypes", lambda: swav(), lambda: torch.randn(4, 32)),
    Model(
        "lightly",
        "SimCLR head",
        lambda: of("lightly.models.modules.heads").SimCLRProjectionHead(32, 64, 16),
        lambda: torch.randn(4, 32),
    ),
    Model(
        "vector-quantize-pytorch",
        "ResidualVQ, implicit codebooks",
        lambda: of("vector_quantize_pytorch").ResidualVQ(
            dim=32,
            codebook_size=32,
            num_quantizers=2,
            implicit_neural_codebook=True,
            learnable_codebook=True,
            ema_update=False,
        ),
        features,
        decays={r"_codebook\.embed$": "the codebook: one row a code, compared and looked up"},
    ),
    Model(
        "vector-quantize-pytorch",
        "VectorQuantize, learned, projected",
        lambda: of("vector_quantize_pytorch").VectorQuantize(
            dim=32, codebook_dim=16, codebook_size=32, learnable_codebook=True, ema_update=False
        ),
        features,
        decays={r"_codebook\.embed$": "the codebook: one row a code, compared and looked up"},
    ),
    Model(
        "vector-quantize-pytorch",
        "SimVQ",
        lambda: of("vector_quantize_pytorch").SimVQ(dim=32, codebook_size=32),
        features,
    ),
    Model(
        "vector-quantize-pytorch",
        "LatentQuantize",
        lambda: of("vector_quantize_pytorch").LatentQuantize(levels=[5, 5], dim=32),
        lambda: images(4, 32),
        open={r"values_per_latent": "the levels of each latent: a codebook of width 1, or a vector"},
    ),
    Model(
        "kornia",
        "TinyViT",
        lambda: of("kornia.models.tiny_vit").TinyViT(
            img_size=64,
            num_classes=10,
            embed_dims=(16, 16, 32, 32),
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 2, 2),
            window_sizes=(4, 4, 4, 2),
        ),
        lambda: images(64),
        open={r"attention_biases$": "biases by distance, looked up and added to the logits: a table, or biases"},
    ),
]


def convnext() -> nn.Module:
    config = of("torchvision.models.convnext").CNBlockConfig
    model: nn.Module = of("torchvision.models").ConvNeXt([config(16, 32, 1), config(32, None, 1)], num_classes=10)
    return model


VISION_TOWER = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}


TEXT_TOWER = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}


def clip() -> nn.Module:
    model: nn.Module = of("open_clip").CLIP(embed_dim=32, vision_cfg=VISION_TOWER, text_cfg=TEXT_TOWER)
    return model


def coca() -> nn.Module:
    model: nn.Module = of("open_clip").CoCa(
        embed_dim=32,
        multimodal_cfg=TEXT_TOWER,
        text_cfg={**TEXT_TOWER, "embed_cls": True, "output_tokens": True},
        vision_cfg={**VISION_TOWER, "attentional_pool": True, "output_tokens": True},
    )
    return model


def swav() -> nn.Module:
    heads = of("lightly.models.modules.heads")
    return nn.Sequential(heads.SwaVProjectionHead(32, 64, 16), heads.SwaVPrototypes(16, 12))
