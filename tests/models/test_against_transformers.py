"""Our GPT-2 and LLaMA shapes against transformers', on the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT

pytestmark = pytest.mark.transformers


def gpt2_weights(theirs: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """transformers' GPT-2 names and transposed matrices to ours."""
    ours = {
        "embedding.weight": theirs["transformer.wte.weight"],
        "head.weight": theirs["transformer.wte.weight"],
        "positions.weight": theirs["transformer.wpe.weight"],
    }
    pairs = {
        "attention_norm": "ln_1",
        "feedforward_norm": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
    }
    for part in ("weight", "bias"):
        ours[f"norm.{part}"] = theirs[f"transformer.ln_f.{part}"]
        for layer in range(n_layers):
            for mine, name in pairs.items():
                tensor = theirs[f"transformer.h.{layer}.{name}.{part}"]
                ours[f"blocks.{layer}.{mine}.{part}"] = tensor.T if tensor.ndim == 2 else tensor
    return ours


def test_gpt2_has_the_loss_and_the_gradients_of_transformers_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=97, n_positions=32, n_embd=48, n_layer=3, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
        )
    )  # fmt: skip
    ours = GPT(ModelConfig(vocab_size=97, context=32, n_layers=3, d_model=48, n_heads=4))
    ours.load_state_dict(gpt2_weights(theirs.state_dict(), 3))
    tokens = torch.randint(97, (4, 33))
    our_loss = torch.nn.functional.cross_entropy(ours(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    their_logits = theirs(input_ids=tokens[:, :-1]).logits
    their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    (our_gradient,) = torch.autograd.grad(our_loss, ours.get_parameter("blocks.1.attention.qkv.weight"))
    (their_gradient,) = torch.autograd.grad(their_loss, theirs.transformer.h[1].attn.c_attn.weight)
    torch.testing.assert_close(our_gradient, their_gradient.T, rtol=1e-4, atol=1e-6)


def test_llama_has_the_logits_of_transformers_llama() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, initializer_range=0.2,
            tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    ours = GPT(
        ModelConfig(
            vocab_size=97, context=32, n_layers=2, d_model=48, n_heads=6, n_kv_heads=2, d_ff=80, norm="rmsnorm",
            positions="rotary", feedforward="swiglu", bias=False, tied_head=False,
        )
    ).eval()  # fmt: skip
    state = theirs.state_dict()
    weights = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    for layer in range(2):
        old, new = f"model.layers.{layer}.", f"blocks.{layer}."
        qkv = [state[f"{old}self_attn.{part}_proj.weight"] for part in "qkv"]
        up = [state[f"{old}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        weights |= {
            f"{new}attention.qkv.weight": torch.cat(qkv),
            f"{new}attention.out.weight": state[f"{old}self_attn.o_proj.weight"],
            f"{new}feedforward.up.weight": torch.cat(up),
            f"{new}feedforward.down.weight": state[f"{old}mlp.down_proj.weight"],
            f"{new}attention_norm.weight": state[f"{old}input_layernorm.weight"],
            f"{new}feedforward_norm.weight": state[f"{old}post_attention_layernorm.weight"],
        }
    ours.load_state_dict(weights)
    tokens = torch.randint(97, (3, 32))
    torch.testing.assert_close(ours(tokens), theirs(input_ids=tokens).logits, rtol=1e-5, atol=1e-5)
