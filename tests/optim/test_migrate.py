"""Checkpoints of torch, transformers and nanoGPT programs, read by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.state import from_positional, load_state_by_name, positional_names, state_by_name


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


# --- state that has not its parameter's shape


def come(p: Tensor) -> dict[str, Any]:
    """As CAME keeps it: means over rows and columns."""
    rows = {"exp_avg_sq_row": torch.ones(p.shape[0]), "exp_avg_sq_col": torch.ones(p.shape[-1])}
    return {"exp_avg": torch.ones_like(p), **(rows if p.ndim > 1 else {"exp_avg_sq": torch.ones_like(p)})}


STATES: dict[str, Any] = {
    "rows and columns": come,
    "means that keep their axis": lambda p: {"row_var": torch.ones(*p.shape[:-1], 1), "step": torch.tensor(1.0)},
    "squares of each axis": lambda p: {"exp_avg": torch.ones_like(p), "GG": [torch.eye(n) for n in p.shape], "Q": None},
    "a square and the inverse": lambda p: {"precond_0": torch.eye(p.shape[0]), "inv_precond_0": torch.eye(p.shape[0])},
    "8 bits in blocks": lambda p: {
        "state1": torch.ones(p.shape, dtype=torch.uint8),
        "qmap1": torch.ones(256),
        "absmax1": torch.ones(-(-p.numel() // 4)),
    },
    "a dict in a dict": lambda p: {0: {"exp_avg": torch.ones_like(p), "begun": True}},
}


@pytest.mark.parametrize("kind", STATES)
def test_state_that_has_not_its_parameters_shape_is_no_sign_of_another_order(kind: str) -> None:
    model = Model()
    old = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        old.state[p] = STATES[kind](p.detach())
    tensors, settings = from_positional(old.state_dict(), model)
    assert settings["stateless"] == []
    assert tensors.keys() == state_by_name(old, model).keys()


def test_torchs_adafactor_goes_on_bit_for_bit() -> None:
    old, new = Model(), Model()
    first, second = torch.optim.Adafactor(old.parameters(), lr=0.01), torch.optim.Adafactor(new.parameters(), lr=0.01)
    train(old, first, 0)
    new.load_state_dict(old.state_dict())
    tensors, settings = from_positional(first.state_dict(), new)
    assert load_state_by_name(second, tensors, settings, names=new) == []
    expected, found = train(old, first, 2), train(new, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_parameters_in_each_others_place_are_another_order_whatever_the_state() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False))
    old = torch.optim.SGD(list(model.parameters())[::-1], lr=0.1)
    for p in model.parameters():
        old.state[p] = {"m": torch.ones_like(p), "row": torch.ones(p.shape[0])}
    with pytest.raises(OptimizerError, match="not saved in the order of layout 'torch'") as caught:
        from_positional(old.state_dict(), model)
    assert len(caught.value.faults) == 3  # the rows tell nothing


def test_the_state_of_a_wider_model_is_named_as_one() -> None:
    wide, model = nn.Linear(8, 8), nn.Linear(4, 4)
    old = torch.optim.AdamW(wide.parameters())
    train(wide, old, 0)
    with pytest.raises(
        OptimizerError, match=r"weight/exp_avg: saved with shape \(8, 8\), this model has \(4, 4\)"
    ) as c:
        from_positional(old.state_dict(), model)
    assert "the state is of another model" in c.value.faults[-1]


def test_state_that_cannot_be_saved_by_name_is_refused_with_its_path() -> None:
    model = nn.Linear(4, 4)
    old = torch.optim.SGD(model.parameters(), lr=0.1)
    old.state[model.weight] = {"graft": object()}
    with pytest.raises(OptimizerError, match="weight/graft is a object"):
        from_positional(old.state_dict(), model)


@pytest.mark.parametrize("layout", ["torch", "transformers", "nanogpt"])
def test_a_wrapper_around_the_model_changes_no_layout(layout: Any) -> None:
    assert positional_names(torch.compile(Model()), layout) == positional_names(Model(), layout)  # type: ignore[arg-type]
