"""diffusers' textual inversion froze all tokens but one by zeroing their gradients, and they went on decaying.

A gradient of zero is a gradient: the step decays the row. Over a long run the "frozen" embeddings fade. Only a
gradient of None, or no λ, leaves a weight alone.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, backward

NEW_TOKEN = 47


def step_of_the_new_token(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    rows = torch.arange(len(model.tokens.weight)) != NEW_TOKEN
    assert model.tokens.weight.grad is not None
    model.tokens.weight.grad[rows] = 0
    optimizer.step()


def loop(**settings: Any) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    for p in model.parameters():
        p.requires_grad_(p is model.tokens.weight)
    optimizer = torch.optim.AdamW([model.tokens.weight], lr=5e-4, **settings)

    for _ in range(3):
        model.zero_grad()
        step_of_the_new_token(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": settings["weight_decay"]})


EXHIBIT = Exhibit(
    project="diffusers",
    reference="https://github.com/huggingface/diffusers/issues/1009",
    bug="tokens frozen by zeroed gradients decay on",
    code="idle-decay",
    severity="note",
    tensors=["tokens.weight"],
    wrong=lambda: loop(weight_decay=0.01),
    mended=lambda: loop(weight_decay=0.0),
)
