"""What some architectures need beside small sizes, so that they build and have every kind of tensor they can have."""

from __future__ import annotations

from typing import Any

_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_RESNET: dict[str, Any] = {
    "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False,
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1],
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
    },
}  # fmt: skip
_SERIES: dict[str, Any] = {
    "prediction_length": 8, "context_length": 16, "d_model": 16, "num_static_categorical_features": 1,
    "cardinality": [5], "embedding_dimension": [4], "num_time_features": 2, "encoder_layers": 2, "decoder_layers": 2,
    "lags_sequence": [1, 2, 3],
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "GraniteMoeHybridForCausalLM": {
        "mamba_n_heads": 8, "mamba_d_head": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "CohereCompassForCausalLM": {
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "Dots3NoteForCausalLM": {
        "num_key_value_heads": 4, "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 5, "num_kv_shared_layers": 0, "intermediate_size": [64] * 5,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0, 0.0],
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
    },
    "Gemma4ForCausalLM": {
        "num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "global_head_dim": 8,
    },
    "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4},
    "Lfm2MoeForCausalLM": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    "ReformerModelWithLMHead": {
        "is_decoder": True, "attn_layers": ["local", "lsh"], "num_hidden_layers": 2, "num_buckets": 4,
        "axial_pos_shape": [4, 8], "axial_pos_embds_dim": [16, 16], "attention_head_size": 8,
        "max_position_embeddings": 32, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
    },
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    "NemotronForCausalLM": {"num_key_value_heads": 2},
    "ZambaForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 4,
        "attention_head_dim": 16, "mamba_dt_rank": 4,
    },
    "Zamba2ForCausalLM": {
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"], "num_hidden_layers": 3,
        "mamba_headdim": 8, "num_mem_blocks": 1, "hybrid_layer_ids": [2], "num_key_value_heads": 4,
    },
    "DbrxForCausalLM": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 8},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 8},
    "MinistralForCausalLM": {"head_dim": 8},
    "AXK1ForCausalLM": {"n_group": 2, "topk_group": 1},
    "BailingHybridForCausalLM": {"n_group": 2, "topk_group": 1},
    "BeamForCausalLM": {"n_group": 2, "topk_group": 1},
    "DeepseekV2ForCausalLM": {"n_group": 1, "topk_group": 1, "topk_method": "greedy"},
    "DeepseekV32ForCausalLM": {"n_group": 2, "topk_group": 1},
    "KimiLinearForCausalLM": {"num_experts_per_token": 2, "n_group": 1, "topk_group": 1},
    "SwinModel": {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 16, "window_size": 4, "patch_size": 2},
    "JambaForCausalLM": {"num_hidden_layers": 8},
    "Gemma3nForConditionalGeneration": {
        "text_config": {
            "num_hidden_layers": 5, "num_kv_shared_layers": 0, "intermediate_size": [64] * 5,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0, 0.0],
            "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        },
    },
    "Qwen4ExpForCausalLM": {
        "ple_layer_ids": [1], "ple_embed_dim": 64, "ngram_vocab_size_base": 64, "indexer_n_heads": 2, "hc_lowrank": 8,
        "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4,
        "layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2, "split_ngram_parts": 1,
        "eos_token_id": 2,
    },
    "AutoformerModel": _SERIES, "InformerModel": _SERIES, "TimeSeriesTransformerModel": _SERIES,
    "ConditionalDetrModel": _RESNET, "DabDetrModel": _RESNET, "DeformableDetrModel": _RESNET, "DetrModel": _RESNET,
    "TableTransformerModel": _RESNET,
    "TimmBackbone": {"backbone": "resnet18"},
    "ChameleonModel": {"vocabulary_map": {"<image>": 4, "IMGIMGA": 5}},
    "CohereCompassModel": {
        "text_config": {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        },
    },
    "EsmModel": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1, "hidden_size": 32, "num_hidden_layers": 2},
    "KyutaiSpeechToTextModel": {"audio_pad_token_id": 3, "audio_bos_token_id": 2, "pad_token_id": 3},
    "HunYuanVLTextModel": {"head_dim": 8},
    "HunYuanVLModel": {"text_config": {"head_dim": 8}},
    "DiffusionGemmaModel": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    },
}  # fmt: skip
