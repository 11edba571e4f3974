"""The decoder: embedding, blocks, final norm, head.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightdecay.errors import ConfigError
from weightdecay.models.attention import Attention
from weightdecay.models.config import ModelConfig
from weightdecay.models.feedforward import FeedForward
from weightdecay.models.layers import StochasticDepth, make_norm


class Block(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + feedforward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.stochastic_depth = StochasticDepth(config.stochastic_depth * (layer + 1) / config.n_layers)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self._branch(self.attention(self.attention_norm(x_BTD)))
        return x_BTD + self._branch(self.feedforward(self.feedforward_norm(x_BTD)))

    def _branch(self, y_BTD: Tensor) -> Tensor:
        dropped_BTD: Tensor = self.stochastic_depth(self.dropout(y_BTD))
        return dropped_BTD


class GPT(nn.Module):
    """A causal language model: tokens [B, T] to logits [B, T, V].

        model = GPT(ModelConfig(vocab_size=50257, context=1024, n_layers=12, d_model=768, n_heads=12))

    The weights are drawn from torch's global generator: N(0, init_std²) for matrices, biases 0, gains 1, and, with
    `residual_init="scaled"`, layers that write to the residual stream divided by √(2·n_layers) (Radford et al. 2019,
    §2.3: 1/√N for N residual layers). A tied head is one tensor under two names.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self._draw_weights()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] for the token that follows each position.

        Raises:
            ConfigError: the sequence is longer than the model's context.
        """
        time = tokens_BT.shape[1]
        if time > self.config.context:
            raise ConfigError(f"{time} tokens do not fit the model's context of {self.config.context}: cut the input")
        x_BTD = self.embedding(tokens_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[:time]
        x_BTD = self.dropout(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV

    def n_parameters(self) -> int:
        """Elements of all parameters, a tied tensor once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def _draw_weights(self) -> None:
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * self.config.n_layers) if self.config.residual_init == "scaled" else std
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, nn.Linear) and not (module is self.head and self.config.tied_head):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attention.out.weight, std=residual_std)
            nn.init.normal_(block.feedforward.down.weight, std=residual_std)
