"""A stream with small learned mixtures of itself and of the embeddings, as nanochat has it.

Shapes: B batch, T time, D d_model, K key and value heads, E head_dim.

Reference: karpathy/nanochat@92d63d4, nanochat/gpt.py, where these come from modded-nanogpt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weightdecay.models.attention import Attention
from weightdecay.models.cache import Cache, LayerCache
from weightdecay.models.config import ModelConfig
from weightdecay.models.layers import Linear
from weightdecay.models.parts import MixingConfig
from weightdecay.models.routing import Routing
from weightdecay.models.stream import Stream

if TYPE_CHECKING:
    from weightdecay.models.decoder import GPT


class MixedStream(Stream):
    """Smeared embeddings, scales before each block, value embeddings in every second, and a last step back.

        x ← x_L − β·x_{L/2},   β learned, behind the last of L blocks

    Args:
        mixing: which of them there are; `config.mixing`.
    """

    def __init__(self, mixing: MixingConfig) -> None:
        self.mixing = mixing

    def attention(self, config: ModelConfig, layer: int) -> nn.Module:
        if self._has_table(config, layer):
            return ValueAttention(config, self.mixing, layer)
        return super().attention(config, layer)

    def _has_table(self, config: ModelConfig, layer: int) -> bool:
        """Whether a table is added to a layer's values: in every second, counted from the last."""
        return self.mixing.value_gate_inputs > 0 and (config.n_layers - 1 - layer) % 2 == 0

    def add_to(self, model: GPT) -> None:
        config, mixing = model.config, self.mixing
        if mixing.smear_inputs:
            model.add_module("smear", Smear(mixing.smear_inputs))
        if mixing.value_gate_inputs:
            width = config.attention.n_kv_heads * config.attention.head_dim
            layers = [layer for layer in range(config.n_layers) if self._has_table(config, layer)]
            tables = {str(layer): nn.Embedding(config.vocab_size, width) for layer in layers}
            model.add_module("value_embeddings", nn.ModuleDict(tables))
        if mixing.residual_scale_first:
            model.add_module("residual_scales", ResidualScales(mixing, config.n_layers))
        if mixing.backout_scale:
            model.register_parameter("backout_scale", nn.Parameter(torch.full((1,), mixing.backout_scale)))

    def entered(self, model: GPT, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        if not self.mixing.smear_inputs:
            return x_BTD
        before_B1D = cache.last_embedding if cache is not None else None
        if cache is not None:
            cache.last_embedding = x_BTD[:, -1:]
        smeared_BTD: Tensor = model.get_submodule("smear")(x_BTD, before_B1D)
        return smeared_BTD

    def through(
        self, model: GPT, tokens_BT: Tensor, x_BTD: Tensor, cache: Cache | None
    ) -> tuple[Tensor, list[Routing]]:
        first_BTD = middle_BTD = x_BTD
        scales = model.get_submodule("residual_scales") if self.mixing.residual_scale_first else None
        routings: list[Routing] = []
        for layer in range(len(model.blocks)):
            if scales is not None:
                x_BTD = scales(x_BTD, first_BTD, layer)
            tables = [model.get_submodule(f"value_embeddings.{layer}")] if self._has_table(model.config, layer) else []
            more = [table(tokens_BT) for table in tables]
            x_BTD, routing = model.run_block(layer, x_BTD, cache, *more)
            if routing is not None:
                routings.append(routing)
            if layer == model.config.n_layers // 2:
                middle_BTD = x_BTD
        if self.mixing.backout_scale:
            x_BTD = x_BTD - (model.get_parameter("backout_scale") * middle_BTD).to(x_BTD.dtype)
        return x_BTD, routings

    def draw_tables(self, model: GPT, draw: Callable[[Tensor], None]) -> None:
        for name, table in model.named_parameters():
            if name.startswith("value_embeddings."):
                draw(table)

    def draw_gates(self, module: nn.Module) -> None:
        for name in ("attention.value_gate", "smear.amount"):
            try:
                gate = module.get_submodule(name)
            except AttributeError:
                continue
            if self.mixing.gate_init_max and isinstance(gate, Linear):
                nn.init.uniform_(gate.weight, 0.0, self.mixing.gate_init_max)


class ValueAttention(Attention):
    """Attention to whose values a table's rows are added, each head's times a gate of its own.

        v_k ← v_k + max · sigmoid(g_k·x[: inputs]) · table_k

    Reference: Zhou et al. 2024 (ResFormer), arXiv:2410.17897.
    """

    def __init__(self, config: ModelConfig, mixing: MixingConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.value_gate = Linear(mixing.value_gate_inputs, config.attention.n_kv_heads, bias=False)
        self.value_gate_max = mixing.value_gate_max

    @property
    def is_one_function(self) -> bool:
        return False  # values come from a table, too

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None, more_values_BTX: Tensor | None = None) -> Tensor:
        """The branch's output.

        Args:
            more_values_BTX: the table's rows of the tokens, [B, T, K·E].
        """
        q_BHTE, k_BKTE, v_BKTE = self._heads(x_BTD)
        if more_values_BTX is not None:
            v_BKTE = v_BKTE + self._gated(x_BTD, more_values_BTX).to(v_BKTE.dtype)
        return self._attended(q_BHTE, k_BKTE, v_BKTE, cache)

    def _gated(self, x_BTD: Tensor, more_values_BTX: Tensor) -> Tensor:
        """Each head's part of the value embeddings, times its gate."""
        gate_BTK = self.value_gate_max * torch.sigmoid(self.value_gate(x_BTD[..., : self.value_gate.in_features]))
        more_BTKE = more_values_BTX.view(*gate_BTK.shape, self.head_dim)
        return (gate_BTK.unsqueeze(-1) * more_BTKE).transpose(1, 2)


class Smear(nn.Module):
    """Lets each token see the embedding of the one before it.

        x_t ← x_t + scale · sigmoid(w·x_t[: inputs]) · x_{t−1},   the first token as it is

    The scale starts at 0.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.amount = Linear(inputs, 1, bias=False)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Tensor, before_B1D: Tensor | None = None) -> Tensor:
        """The smeared embeddings; `before` is what came ahead of them, not smeared, if anything did."""
        first_B1D = torch.zeros_like(x_BTD[:, :1]) if before_B1D is None else before_B1D
        previous_BTD = torch.cat((first_B1D, x_BTD[:, :-1]), dim=1)
        share_BT1 = self.scale * torch.sigmoid(self.amount(x_BTD[..., : self.amount.in_features]))
        return x_BTD + (share_BT1 * previous_BTD).to(x_BTD.dtype)


class ResidualScales(nn.Module):
    """Scales the stream before each block, and adds some of what it was before the first.

    x ← a_l·x + b_l·x₀,   a and b learned, one of each a layer, first along straight lines
    """

    def __init__(self, mixing: MixingConfig, n_layers: int) -> None:
        super().__init__()
        lines = (
            (mixing.residual_scale_first, mixing.residual_scale_last),
            (mixing.input_scale_first, mixing.input_scale_last),
        )
        residual_L, input_L = (torch.linspace(first, last, n_layers) for first, last in lines)
        self.residual_scale = nn.Parameter(residual_L)
        self.input_scale = nn.Parameter(input_L)

    def forward(self, x_BTD: Tensor, first_BTD: Tensor, layer: int) -> Tensor:
        mixed_BTD = self.residual_scale[layer] * x_BTD + self.input_scale[layer] * first_BTD
        return mixed_BTD.to(x_BTD.dtype)
