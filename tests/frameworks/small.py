"""Small models and data that the frameworks train on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

VOCABULARY, LENGTH = 64, 16


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Sequences that a small model learns, all of the vocabulary among them."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(LENGTH) * (index % 7 + 1) + index) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, **_SIZES))


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(hidden_size=32, state_size=4, **_SIZES))


_SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Scale(nn.Module):
    """A gain that rules on shapes decay."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:]) * self.gain


def decoder(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, width), nn.Linear(width, width), Scale(width), nn.Linear(width, VOCABULARY)
    )


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(tokens)
    return nn.functional.cross_entropy(logits.flatten(0, -2), tokens.flatten())


class Listed:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ends: list[str] = []

    def start(self, run: Any, step: int) -> None:
        del run, step
        self.ends.append("start")

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.ends.append("close")


def codes(audit: Any) -> dict[str, tuple[str, ...]]:
    """What is wrong, notes left out, with the tensors it is said of."""
    return {finding.code: finding.tensors for finding in audit if finding.severity != "note"}
