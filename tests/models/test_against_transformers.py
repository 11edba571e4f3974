"""Our decoder against transformers' own models, weights in both directions, at small sizes and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from weightdecay.models import huggingface
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT

pytestmark = pytest.mark.transformers

_LLAMA = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 32, "initializer_range": 0.2, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_LATENT = {
    **_LLAMA,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
    "num_key_value_heads": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {
        "vocab_size": 97, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4, "initializer_range": 0.2,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **_NO_TOKENS,
    }),
    "llama, all heads": ("LlamaForCausalLM", _LLAMA),
    "llama, grouped heads, tied": ("LlamaForCausalLM", {**_GROUPED, "tie_word_embeddings": True}),
    "llama, wide heads, one key": ("LlamaForCausalLM", {**_LLAMA, "num_key_value_heads": 1, "head_dim": 16}),
    "mistral, window": ("MistralForCausalLM", {**_LLAMA, "num_key_value_heads": 3, "sliding_window": 5}),
    "mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2ForCausalLM", {**_GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {**_LATENT, "q_lora_rank": 20, "n_group": 4, "topk_group": 2}),
    "deepseek_v3 as Moonlight has it": ("DeepseekV3ForCausalLM", {
        **_LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 2, "rms_norm_eps": 1e-3,
        "routed_scaling_factor": 2.446, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
    }),
    "gpt_neox, a quarter turns": ("GPTNeoXForCausalLM", {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 32, "initializer_range": 0.2, **_NO_TOKENS,
    }),
    "gpt_neox, sequential": ("GPTNeoXForCausalLM", {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 32, "initializer_range": 0.2, "use_parallel_residual": False, **_NO_TOKENS,
    }),
    "opt": ("OPTForCausalLM", {
        "vocab_size": 97, "hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 32, "init_std": 0.2, "dropout": 0.0, **_NO_TOKENS,
    }),
    "opt, norms after, narrow embedding": ("OPTForCausalLM", {
        "vocab_size": 97, "hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 32, "init_std": 0.2, "dropout": 0.0, "word_embed_proj_dim": 20,
        "do_layer_norm_before": False, **_NO_TOKENS,
    }),
    "bloom": ("BloomForCausalLM", {
        "vocab_size": 97, "hidden_size": 48, "n_layer": 3, "n_head": 4, "initializer_range": 0.2, **_NO_TOKENS,
    }),
    "bloom, 6 heads": ("BloomForCausalLM", {
        "vocab_size": 97, "hidden_size": 48, "n_layer": 2, "n_head": 6, "initializer_range": 0.2, **_NO_TOKENS,
    }),
}  # fmt: skip
each_family = pytest.mark.parametrize("name", THEIRS)


def their_model(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    kind, options = THEIRS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, _config_class(kind))(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains start alike, and would hide a mix-up
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.3 * torch.randn_like(buffer))
    return model


def _config_class(kind: str) -> str:
    return kind.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "Config"


def ours_from(folder: Path) -> GPT:
    config = huggingface.read_config(folder)
    model = GPT(config.replace(context=min(config.context, 32)))
    weights = huggingface.read_weights(folder, config, report=lambda _: None)
    model.load_state_dict(weights | ({"head.weight": weights["embedding.weight"]} if config.tied_head else {}))
    return model.eval()


@each_family
def test_the_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(97, (3, 32))
    with torch.no_grad():
        expected, seen = theirs(input_ids=tokens).logits, ours_from(tmp_path)(tokens)
    assert relative_error(seen, expected) < 1e-5


def relative_error(seen: Tensor, expected: Tensor) -> float:
    return float((seen - expected).norm() / expected.norm())


@each_family
def test_what_is_written_is_read_by_transformers_with_the_same_logits_and_back_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    first, second = tmp_path / "theirs", tmp_path / "ours"
    second.mkdir()
    their_model(name).save_pretrained(first)
    config = huggingface.read_config(first)
    weights = huggingface.read_weights(first, config, report=lambda _: None)
    assert huggingface.write(second, config, weights).architecture == THEIRS[name][0]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(second).eval()
    tokens = torch.randint(97, (2, 32))
    with torch.no_grad():
        assert relative_error(loaded(input_ids=tokens).logits, ours_from(first)(tokens)) < 1e-5
    assert huggingface.read_config(second) == config
    again = huggingface.read_weights(second, config, report=lambda _: None)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[key], weights[key]) for key in weights)


def test_gpt2_has_the_loss_and_the_gradients_of_transformers_gpt2(tmp_path: Path) -> None:
    theirs = their_model("gpt2")
    theirs.save_pretrained(tmp_path)
    ours = ours_from(tmp_path)
    tokens = torch.randint(97, (4, 33))
    our_loss = torch.nn.functional.cross_entropy(ours(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    their_logits = theirs(input_ids=tokens[:, :-1]).logits
    their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    (our_gradient,) = torch.autograd.grad(our_loss, ours.get_parameter("blocks.1.attention.qkv.weight"))
    (their_gradient,) = torch.autograd.grad(their_loss, theirs.transformer.h[1].attn.c_attn.weight)
    torch.testing.assert_close(our_gradient, their_gradient.T, rtol=1e-4, atol=1e-6)


def test_the_load_balancing_loss_is_transformers_over_the_choices_a_token_has() -> None:
    """theirs sums the shares of the k choices, ours are shares of all choices: k times as much there."""
    pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    from weightdecay.models.routing import load_imbalance

    torch.manual_seed(0)
    logits = torch.randn(50, 4)
    theirs = load_balancing_loss_func((logits,), num_experts=4, top_k=2)
    ours = load_imbalance(logits[None], logits.topk(2).indices[None], "softmax_of_chosen")
    assert ours.item() == pytest.approx(float(theirs) / 2, rel=1e-6)


def test_a_sharded_directory_is_read_like_a_whole_one(tmp_path: Path) -> None:
    theirs = their_model("llama, all heads")
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    config = huggingface.read_config(tmp_path / "whole")
    whole, parts = (
        huggingface.read_weights(tmp_path / kind, config, report=lambda _: None) for kind in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_becomes_float32_exactly_and_is_said(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = their_model("llama, all heads").to(dtype)
    theirs.save_pretrained(tmp_path)
    said: list[str] = []
    weights = huggingface.read_weights(tmp_path, huggingface.read_config(tmp_path), report=said.append)
    assert len(said) == 1
    assert str(dtype).removeprefix("torch.") + " become float32" in said[0]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(weights["norm.weight"].to(dtype), theirs.model.norm.weight)


def test_the_configurations_of_published_models_are_read(tmp_path: Path) -> None:
    """As their config.json files had it before transformers 5 moved the rotary settings."""
    old = {"model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 512, "intermediate_size": 2048,
           "num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 2048, "rotary_pct": 0.25,
           "rotary_emb_base": 10000, "use_parallel_residual": True, "hidden_act": "gelu"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = huggingface.read_config(tmp_path)
    assert config == ModelConfig(
        vocab_size=50304, context=2048, n_layers=6, d_model=512, n_heads=8, positions="rotary", rotary_fraction=0.25,
        feedforward="gelu", branches="parallel", tied_head=False,
    )  # fmt: skip
