"""What attention has seen of a text: keys and values of every layer, so that a new token costs one token's work.

Latent attention keeps its latents in the place of keys and the shared rotary keys in the place of values.

Shapes: B batch, K key and value heads, T time, E head_dim.
"""

from __future__ import annotations

from torch import Tensor

from weightdecay.models.config import ModelConfig


class LayerCache:
    """Keys and values of one layer, in room for `context` positions."""

    def __init__(self, context: int) -> None:
        self.length = 0
        self._context = context
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extended(self, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Everything seen up to and with these, in order."""
        if self._keys is None or self._values is None:
            self._keys, self._values = (
                new.new_empty(*new.shape[:2], self._context, new.shape[3]) for new in (k_BKTE, v_BKTE)
            )
        end = self.length + k_BKTE.shape[2]
        self._keys[:, :, self.length : end] = k_BKTE
        self._values[:, :, self.length : end] = v_BKTE
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class Cache:
    """One text's keys and values, layer by layer; filled by `GPT.forward`."""

    def __init__(self, config: ModelConfig) -> None:
        self.layers = [LayerCache(config.context) for _ in range(config.n_layers)]
        self.last_embedding: Tensor | None = None  # where a token's is added to the next one's

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.layers[0].length
