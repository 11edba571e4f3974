"""PEFT's methods on a small Llama, as anyone would fine-tune with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.model import Model, of


def base() -> nn.Module:
    transformers = of("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def adapted(kind: str, **settings: Any) -> nn.Module:
    """Llama with one method's adapters."""
    peft = of("peft")
    model: nn.Module = peft.get_peft_model(base(), getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **settings))
    return model


def batch() -> Any:
    return {"input_ids": torch.randint(1, 64, (2, 12))}


ROTATION = (
    "generates a rotation: decay pulls it to the identity, as LoRA's to no update; or angles, which scale nothing"
)
TARGETS = {"target_modules": ["q_proj", "v_proj"]}
P = "peft"
MODELS = [
    Model(P, "LoRA", lambda: adapted("Lora", r=4, **TARGETS), batch),
    Model(
        P,
        "DoRA",
        lambda: adapted("Lora", r=4, use_dora=True, **TARGETS),
        batch,
        exempt={r"magnitude_vector": "the length of each row, as weight norm's gain"},
    ),
    Model(
        P,
        "LoRA on embeddings",
        lambda: adapted("Lora", r=4, target_modules=["q_proj", "embed_tokens"]),
        batch,
        decays={r"lora_embedding_[AB]": "factors of the embedding's update, looked up and multiplied"},
    ),
    Model(
        P,
        "LoRA with trainable tokens",
        lambda: adapted("Lora", r=4, trainable_token_indices=[3, 5], **TARGETS),
        batch,
        decays={r"trainable_tokens_delta": "rows that stand in the embedding in place of its own"},
    ),
    Model(P, "LoRA, a head trained whole", lambda: adapted("Lora", r=4, modules_to_save=["lm_head"], **TARGETS), batch),
    Model(
        P,
        "AdaLoRA",
        lambda: adapted("AdaLora", init_r=4, target_r=2, total_step=100, **TARGETS),
        batch,
        decays={r"lora_[AB]\.": "the singular vectors: factors of the update"},
        exempt={r"lora_E\.": "the singular values, which scale them"},
    ),
    Model(
        P,
        "IA³",
        lambda: adapted("IA3", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        batch,
        exempt={r"ia3_l\.": "scales features, starts at 1"},
    ),
    Model(
        P,
        "VeRA",
        lambda: adapted("Vera", r=4, **TARGETS),
        batch,
        exempt={r"vera_lambda_[bd]\.": "scale the rows and columns of frozen random matrices"},
    ),
    Model(
        P,
        "SHiRA",
        lambda: adapted("Shira", r=2, **TARGETS),
        batch,
        decays={r"shira_weight\.": "entries of the update, scattered into a matrix"},
    ),
    Model(
        P,
        "FourierFT",
        lambda: adapted("FourierFT", n_frequency=50, **TARGETS),
        batch,
        decays={r"fourierft_spectrum\.": "entries of the update's spectrum: scattered into a matrix, then ifft2"},
    ),
    Model(
        P,
        "RandLoRA",
        lambda: adapted("RandLora", r=4, **TARGETS),
        batch,
        exempt={r"randlora_(lambda|gamma)\.": "scale rows and columns of frozen random bases"},
    ),
    Model(
        P,
        "VB-LoRA",
        lambda: adapted("VBLoRA", r=4, num_vectors=16, vector_length=8, **TARGETS),
        batch,
        decays={r"vector_bank": "rows of which A and B are put together"},
        exempt={r"vblora_logits_[AB]\.": "top-k and softmax choose rows by them: logits"},
    ),
    Model(
        P,
        "Poly",
        lambda: adapted("Poly", r=4, n_tasks=3, n_skills=2, n_splits=2, **TARGETS),
        lambda: {**batch(), "task_ids": torch.tensor([0, 1])},
        decays={r"poly_lora_[AB]\.": "factors of the update"},
        exempt={r"module_logits$": "a sigmoid makes them the skills' shares: gates"},
    ),
    Model(
        P,
        "LoKr",
        lambda: adapted("LoKr", r=4, **TARGETS),
        batch,
        decays={r"lokr_w\d": "factors of a Kronecker product"},
    ),
    Model(
        P,
        "LoHa",
        lambda: adapted("LoHa", r=4, **TARGETS),
        batch,
        decays={r"hada_w\d_[ab]": "factors of the update: (a1 @ b1) * (a2 @ b2)"},
    ),
    Model(P, "OFT", lambda: adapted("OFT", oft_block_size=8, **TARGETS), batch, open={r"oft_R\.": ROTATION}),
    Model(
        P,
        "BOFT",
        lambda: adapted("BOFT", boft_block_size=8, **TARGETS),
        batch,
        exempt={r"boft_s\.": "scales the rows, starts at 1"},
        open={r"boft_R\.": ROTATION},
    ),
    Model(
        P,
        "HRA",
        lambda: adapted("HRA", r=4, **TARGETS),
        batch,
        decays={r"hra_u\.": "directions of reflections, normalised on their way as weight norm's are"},
    ),
    Model(
        P,
        "MiSS",
        lambda: adapted("Miss", r=8, **TARGETS),
        batch,
        decays={r"miss_block\.": "sums of the input, times this matrix"},
    ),
    Model(
        P,
        "C³A",
        lambda: adapted("C3A", block_size=8, **TARGETS),
        batch,
        decays={r"c3a_kernel\.": "first rows of circulant blocks: the update, each entry on a diagonal"},
    ),
    Model(P, "LN tuning", lambda: adapted("LNTuning"), batch, exempt={r"ln_tuning_layers\.": "gains of RMSNorms"}),
    Model(
        P,
        "trainable tokens",
        lambda: adapted("TrainableTokens", token_indices=[3, 5], target_modules=["embed_tokens"]),
        batch,
        decays={r"trainable_tokens_delta": "rows that stand in the embedding in place of its own"},
    ),
    Model(
        P,
        "prompt tuning",
        lambda: adapted("PromptTuning", num_virtual_tokens=4),
        batch,
        open={
            r"prompt_encoder\.default\.embedding": "a prompt in an Embedding, read whole: learned tokens, or a table"
        },
    ),
    Model(
        P,
        "prefix tuning",
        lambda: adapted("PrefixTuning", num_virtual_tokens=4),
        batch,
        open={
            r"prompt_encoder\.default\.embedding": "a prompt in an Embedding, read whole: learned tokens, or a table"
        },
    ),
    Model(
        P,
        "P-tuning",
        lambda: adapted("PromptEncoder", num_virtual_tokens=4, encoder_hidden_size=16),
        batch,
        open={
            r"prompt_encoder\.default\.embedding": "a prompt in an Embedding, read whole: learned tokens, or a table"
        },
    ),
    Model(
        P,
        "LLaMA-Adapter",
        lambda: adapted("AdaptionPrompt", adapter_len=4, adapter_layers=2),
        batch,
        exempt={r"adaption_gate$": "scales what attention to the prompt gives"},
        open={r"adaption_prompt$": "a prompt in each layer: learned tokens"},
    ),
    Model(
        P,
        "DeLoRA",
        lambda: adapted("Delora", r=4, **TARGETS),
        batch,
        decays={r"delora_[AB]\.": "factors of the update, normalised on their way"},
        exempt={r"delora_lambda\.": "the update's length"},
    ),
    Model(
        P,
        "WaveFT",
        lambda: adapted("WaveFT", n_frequency=50, **TARGETS),
        batch,
        decays={r"waveft_spectrum\.": "entries of the update's wavelet transform, scattered into a matrix"},
    ),
    Model(
        P,
        "HiRA",
        lambda: adapted("Hira", r=4, **TARGETS),
        batch,
        decays={r"hira_[AB]\.": "factors of a matrix that is multiplied into the frozen weight"},
    ),
    Model(
        P,
        "GraLoRA",
        lambda: adapted("Gralora", r=4, gralora_k=2, **TARGETS),
        batch,
        decays={r"gralora_[AB]\.": "factors of the update, block by block"},
    ),
    Model(
        P,
        "RoAd",
        lambda: adapted("Road", group_size=8, **TARGETS),
        batch,
        exempt={r"road_(theta|alpha)\.": "angle and length by which pairs of features are turned and scaled"},
    ),
    Model(
        P,
        "PVeRA",
        lambda: adapted("Pvera", r=4, **TARGETS),
        batch,
        exempt={r"pvera_lambda_[bd]\.": "scale the rows and columns of frozen random matrices"},
    ),
]
