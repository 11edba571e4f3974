"""Checkpoints of torch, transformers and nanoGPT programs, read by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.state import from_positional, load_state_by_name, positional_names


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(6)
        self.attn = nn.Linear(6, 6)
        self.mlp = nn.Linear(6, 6, bias=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(9, 6)
        self.h = nn.ModuleList([Block(), Block()])
        self.norm = nn.RMSNorm(6)


def nanogpts_groups(model: nn.Module) -> list[dict[str, Any]]:
    """As karpathy/nanoGPT `model.py` configure_optimizers has them."""
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int = 2) -> list[Tensor]:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("layout", ["torch", "nanogpt"])
def test_an_old_run_goes_on_bit_for_bit_under_names(layout: Any) -> None:
    old = Model()
    groups = nanogpts_groups(old) if layout == "nanogpt" else [{"params": list(old.parameters()), "weight_decay": 0.1}]
    torchs = torch.optim.AdamW(groups, lr=0.01)
    train(old, torchs, 0)
    new = Model()
    new.load_state_dict(old.state_dict())
    reordered = [(name, p) for name, p in reversed(list(new.named_parameters()))]
    optimizer = AdamW(
        [
            {"params": [pair], "weight_decay": 0.1 if layout == "torch" or pair[1].dim() >= 2 else 0}
            for pair in reordered
        ],
        lr=0.01,
    )
    tensors, settings = from_positional(torchs.state_dict(), new, layout)
    load_state_by_name(optimizer, tensors, settings, ignore=("rule", "rounding"))
    expected, found = train(old, torchs, 2), train(new, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.transformers
def test_the_trainers_order_is_the_trainers() -> None:
    """The Trainer's own rule; the Trainer itself cannot be made without the extra package accelerate."""
    transformers = pytest.importorskip("transformers")
    for config in (
        transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8),
        transformers.LlamaConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2,
                                 num_key_value_heads=2, vocab_size=11),
        transformers.BertConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2,
                                vocab_size=11),
    ):  # fmt: skip
        model = transformers.AutoModel.from_config(config)
        decaying = set(transformers.Trainer.get_decay_parameter_names(None, model))
        named = [name for name, _ in model.named_parameters()]
        expected = [name for name in named if name in decaying] + [name for name in named if name not in decaying]
        assert positional_names(model, "transformers") == expected
        assert 0 < len(decaying) < len(named)


def test_names_in_the_state_itself_go_before_any_layout() -> None:
    model = Model()
    backwards = list(model.named_parameters())[::-1]
    old = torch.optim.AdamW(backwards, lr=0.01)
    train(model, old, 0)
    tensors, settings = from_positional(old.state_dict(), model)
    assert settings["groups"][0]["params"] == [name for name, _ in backwards]
    assert torch.equal(tensors["wte.weight/exp_avg"], old.state[model.wte.weight]["exp_avg"])


def test_another_order_or_model_is_told_with_every_name() -> None:
    model = Model()
    old = torch.optim.AdamW(nanogpts_groups(model), lr=0.01)
    train(model, old, 0)
    with pytest.raises(OptimizerError, match=r"h\.0\.ln_1\.weight/exp_avg: saved with shape \(6, 6\)") as caught:
        from_positional(old.state_dict(), model, "torch")
    assert len(caught.value.faults) > 4
    with pytest.raises(OptimizerError, match=r"14 parameters|12 parameters|the state is of"):
        from_positional(old.state_dict(), Block(), "nanogpt")
    with pytest.raises(OptimizerError, match="did you mean 'nanogpt'"):
        positional_names(model, "nanogtp")  # type: ignore[arg-type]


def test_a_whole_checkpoint_is_not_taken_for_the_optimizers_part() -> None:
    model = nn.Linear(2, 2)
    state = torch.optim.AdamW(model.parameters()).state_dict()
    checkpoint = {"model": model.state_dict(), "optimizer": state}  # as nanoGPT writes it
    with pytest.raises(OptimizerError, match=r"no 'param_groups' and no 'state'.*checkpoint\['optimizer'\]"):
        from_positional(checkpoint, model, "nanogpt")
    assert from_positional(checkpoint["optimizer"], model)[0] == {}
