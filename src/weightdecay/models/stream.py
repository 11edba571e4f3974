"""The residual stream's way from the embedding to the last block.

Shapes: B batch, T time, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from weightdecay.models.attention import Attention
from weightdecay.models.cache import Cache
from weightdecay.models.config import ModelConfig
from weightdecay.models.latent import LatentAttention
from weightdecay.models.routing import Routing

if TYPE_CHECKING:
    from weightdecay.models.decoder import GPT


class Stream:
    """Block after block. A family with a way of its own has a stream of its own, which this one need not know.

    It holds no weights: what it needs, it adds to the decoder, whose tensors keep their names.
    """

    def attention(self, config: ModelConfig, layer: int) -> nn.Module:
        """The attention of a block."""
        return LatentAttention(config, config.latent, layer) if config.latent else Attention(config, layer)

    def add_to(self, model: GPT) -> None:
        """Give the decoder the modules that this way needs."""

    def entered(self, model: GPT, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        """The embeddings as the first block sees them."""
        return x_BTD

    def through(
        self, model: GPT, tokens_BT: Tensor, x_BTD: Tensor, cache: Cache | None
    ) -> tuple[Tensor, list[Routing]]:
        """The stream after the last block, and where the tokens went in each layer with experts."""
        routings: list[Routing] = []
        for layer in range(len(model.blocks)):
            x_BTD, routing = model.run_block(layer, x_BTD, cache)
            if routing is not None:
                routings.append(routing)
        return x_BTD, routings

    def draw_tables(self, model: GPT, draw: Callable[[Tensor], None]) -> None:
        """Start the tables that it added."""

    def draw_gates(self, module: nn.Module) -> None:
        """Start the gates that it added to a block, or to the decoder."""
