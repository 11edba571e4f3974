"""From where a decoder's weights start.

Matrices from N(0, std²) or another of `initialisation.kind`, biases at 0, gains at 1. Layers that write to the residual
stream start as `initialisation.residual` says; `scaled` divides by √(2·n_layers) (Radford et al. 2019, §2.3: 1/√N for N
residual layers).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightdecay.models.block import Block
from weightdecay.models.config import ModelConfig
from weightdecay.models.experts import Experts
from weightdecay.models.feedforward import FeedForward

if TYPE_CHECKING:
    from weightdecay.models.decoder import GPT


class Undrawn(TorchFunctionMode):
    """Layers that are made within leave their tensors as they are: nobody will look at the values.

    On the meta device torch draws by means of its compiler, whose import alone takes a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def draw_weights(model: GPT) -> None:
    """Draw all weights anew from torch's global generator."""
    start = _Start(model.config)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            start.draw_normal(module.weight, start.table_std(positions=module is model.positions))
        elif isinstance(module, nn.Linear) and not (module is model.head and model.config.tied_head):
            if module is model.head and model.config.initialisation.head_std:
                start.draw_normal(module.weight, model.config.initialisation.head_std)
            else:
                start.draw(module.weight, start.std(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    model.stream.draw_tables(model, lambda table: start.draw(table, start.std(model.config.d_model)))
    for block in model.blocks:
        assert isinstance(block, Block)
        start.draw_block(block)
        model.stream.draw_gates(block)
    model.stream.draw_gates(model)


class _Start:
    """The distributions of a configuration."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.initial = config.initialisation

    def draw_block(self, block: Block) -> None:
        """What in a block starts unlike other linear layers, or is none."""
        config, feedforward = self.config, block.feedforward
        out = block.attention.get_submodule("out")
        assert isinstance(out, nn.Linear)
        self.draw(out.weight, self._residual_std(out.in_features))
        if isinstance(feedforward, Experts):
            self.draw(feedforward.expert_up, self.initial.up_scale * self.std(config.d_model))
            self.draw(feedforward.expert_down, self._residual_std(config.d_ff))
        dense = feedforward.shared if isinstance(feedforward, Experts) else feedforward
        if isinstance(dense, FeedForward):
            dense.up.weight.mul_(self.initial.up_scale)
            self.draw(dense.down.weight, self._residual_std(dense.down.in_features))

    def draw(self, weight: Tensor, std: float) -> None:
        if self.initial.kind == "fan_in_uniform":
            nn.init.uniform_(weight, -math.sqrt(3) * std, math.sqrt(3) * std)
        else:
            self.draw_normal(weight, std)

    def draw_normal(self, weight: Tensor, std: float) -> None:
        if self.initial.kind == "truncated" and std > 0.0:
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
        else:
            nn.init.normal_(weight, std=std)

    def table_std(self, *, positions: bool) -> float:
        """Of an embedding."""
        of_positions = self.initial.position_std if positions else 0.0
        return of_positions or self.initial.embedding_std or self.std()

    def std(self, inputs: int | None = None) -> float:
        """Of a matrix with so many inputs; a table has none."""
        match self.initial.kind:
            case "small":
                return math.sqrt(2 / (5 * self.config.d_model))
            case "fan_in" | "fan_in_uniform" if inputs:
                return 1 / math.sqrt(inputs)
            case _:
                return self.initial.std

    def _residual_std(self, inputs: int) -> float:
        """Of a matrix that writes to the residual stream."""
        config = self.config
        match self.initial.residual:
            case "zero":
                return 0.0
            case "wang":
                return 2 / (config.n_layers * math.sqrt(config.d_model))
            case "scaled":
                return self.std(inputs) * (1 / math.sqrt(2 * config.n_layers))
            case _:
                return self.std(inputs)
