"""Healthy: the groups that Hugging Face's Trainer makes, on a small model of theirs."""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.exhibit import Loop

from tests.auditing.loops.parts import train


def trainers_groups_by_transformers_policy() -> Loop:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    decays = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if (name in decays) == decay],
            "weight_decay": weight_decay,
        }
        for decay, weight_decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True)
    train(model, optimizer, loss=causal_loss)
    return Loop(model, optimizer, {"policy": "transformers", "weight_decay": 0.1})


def causal_loss(model: Any) -> torch.Tensor:
    ids = torch.randperm(48).view(4, -1)
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss
