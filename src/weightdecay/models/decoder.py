"""The decoder: embedding, blocks, final norm, head.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightdecay.errors import ConfigError
from weightdecay.models.attention import Attention
from weightdecay.models.cache import Cache, LayerCache
from weightdecay.models.config import ModelConfig
from weightdecay.models.experts import Experts
from weightdecay.models.feedforward import FeedForward
from weightdecay.models.latent import LatentAttention
from weightdecay.models.layers import Linear, StochasticDepth, make_norm, soft_capped
from weightdecay.models.mixing import ResidualScales, Smear
from weightdecay.models.routing import Router, Routing, Spread


class Block(nn.Module):
    """Attention and feed-forward part, each a branch beside the residual stream.

    pre       x ← x + f(norm(x))            post      x ← norm(x + f(x))
    sandwich  x ← x + norm(f(norm(x)))      output    x ← x + norm(f(x))
    parallel  x ← x + attention(norm₁(x)) + feedforward(norm₂(x)), norm₂ being norm₁ with one norm
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.placement = config.norm_placement
        self.parallel = config.branches != "sequential"
        self.attention_norm = make_norm(config)
        self.attention = LatentAttention(config, layer) if config.kv_rank else Attention(config, layer)
        self.takes_more_values = config.has_value_embedding(layer)
        self.feedforward_norm = make_norm(config) if config.branches != "parallel_one_norm" else None
        self.feedforward = (
            Experts(config) if config.has_experts(layer) else FeedForward(config, _dense_width(config, layer))
        )
        if config.norm_placement == "sandwich":
            self.attention_output_norm = make_norm(config)
            self.feedforward_output_norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.stochastic_depth = StochasticDepth(config.stochastic_depth * (layer + 1) / config.n_layers)

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None = None, more_values_BTX: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """The stream after this block, and which of its experts the tokens went to if it has any."""
        seen = (cache, more_values_BTX) if self.takes_more_values else (cache,)
        if self.parallel:
            normed_BTD = self.attention_norm(x_BTD)
            attended_BTD = self._dropped(self.attention(normed_BTD, *seen))
            second_BTD = normed_BTD if self.feedforward_norm is None else self.feedforward_norm(x_BTD)
            y_BTD, routing = self._feedforward(second_BTD)
            return x_BTD + attended_BTD + self._dropped(y_BTD), routing
        assert self.feedforward_norm is not None
        first, second = self.attention_norm, self.feedforward_norm
        match self.placement:
            case "pre":
                x_BTD = x_BTD + self._dropped(self.attention(first(x_BTD), *seen))
                y_BTD, routing = self._feedforward(second(x_BTD))
                return x_BTD + self._dropped(y_BTD), routing
            case "post":
                x_BTD = first(x_BTD + self._dropped(self.attention(x_BTD, *seen)))
                y_BTD, routing = self._feedforward(x_BTD)
                return second(x_BTD + self._dropped(y_BTD)), routing
            case "output":
                x_BTD = x_BTD + self._dropped(first(self.attention(x_BTD, *seen)))
                y_BTD, routing = self._feedforward(x_BTD)
                return x_BTD + self._dropped(second(y_BTD)), routing
            case _:
                x_BTD = x_BTD + self._dropped(self.attention_output_norm(self.attention(first(x_BTD), *seen)))
                y_BTD, routing = self._feedforward(second(x_BTD))
                return x_BTD + self._dropped(self.feedforward_output_norm(y_BTD)), routing

    def _feedforward(self, x_BTD: Tensor) -> tuple[Tensor, Routing | None]:
        output = self.feedforward(x_BTD)
        return output if isinstance(output, tuple) else (output, None)

    def _dropped(self, y_BTD: Tensor) -> Tensor:
        dropped_BTD: Tensor = self.stochastic_depth(self.dropout(y_BTD))
        return dropped_BTD


class GPT(nn.Module):
    """A causal language model: tokens [B, T] to logits [B, T, V].

        from weightdecay import GPT, ModelConfig

        model = GPT(ModelConfig(vocab_size=50257, context=1024, n_layers=12, d_model=768, n_heads=12))

    The weights are drawn from torch's global generator: N(0, init_std²) for matrices (or another `init`), biases 0,
    gains 1, and, with `residual_init="scaled"`, layers that write to the residual stream divided by √(2·n_layers)
    (Radford et al. 2019, §2.3: 1/√N for N residual layers). A tied head is one tensor under two names.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, narrow = config.embedding_width, config.embedding_width != config.d_model
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.project_in = Linear(width, config.d_model, bias=False) if narrow else None
        self.positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.smear = Smear(config.smear_inputs) if config.smear_inputs else None
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout else 0.0)
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): nn.Embedding(config.vocab_size, config.n_kv_heads * config.head_dim)
                for layer in range(config.n_layers)
                if config.has_value_embedding(layer)
            }
        )
        self.residual_scales = ResidualScales(config) if config.residual_scale_first else None
        self.backout_scale = nn.Parameter(torch.full((1,), config.backout_scale)) if config.backout_scale else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config) if config.norm_placement != "post" else None
        self.project_out = Linear(config.d_model, width, bias=False) if narrow else None
        self.head = Linear(width, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self._draw_weights()

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] for the token that follows each position.

        Args:
            cache: of the tokens before these, which it then takes in.

        Raises:
            ConfigError: the sequence is longer than the model's context.
        """
        return self._logits_and_routings(tokens_BT, cache)[0]

    def logits_and_spread(self, tokens_BT: Tensor) -> tuple[Tensor, Spread | None]:
        """`forward`, and how the tokens fell on the experts: their layers' mean imbalance, each layer's load."""
        logits_BTV, routings = self._logits_and_routings(tokens_BT, None)
        with_experts = [block.feedforward for block in self.blocks if isinstance(block.feedforward, Experts)]
        if not with_experts:
            return logits_BTV, None
        spreads = [e.spread(routing, len(tokens_BT)) for e, routing in zip(with_experts, routings, strict=True)]
        imbalances, loads = zip(*spreads, strict=True)
        return logits_BTV, Spread(torch.stack(imbalances).mean(), torch.stack(loads))

    def _logits_and_routings(self, tokens_BT: Tensor, cache: Cache | None) -> tuple[Tensor, list[Routing]]:
        """Logits, and where the tokens went in each layer with experts."""
        start = cache.length if cache is not None else 0
        end = start + tokens_BT.shape[1]
        if end > self.config.context:
            raise ConfigError(f"{end} tokens do not fit the model's context of {self.config.context}: cut the input")
        x_BTD, routings = self._through_blocks(tokens_BT, self._embedded(tokens_BT, start, end, cache), cache)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        if self.project_out is not None:
            x_BTD = self.project_out(x_BTD)
        logits_BTV: Tensor = self.head(x_BTD)
        if self.config.logit_multiplier != 1.0:
            logits_BTV = logits_BTV * self.config.logit_multiplier
        if self.config.logit_softcap:
            logits_BTV = soft_capped(logits_BTV.float(), self.config.logit_softcap)
        return logits_BTV, routings

    def tensors(self) -> dict[str, Tensor]:
        """What a file of this model holds, by name: parameters, a tied one once, and selection biases of routers."""
        tensors: dict[str, Tensor] = self.state_dict(keep_vars=True)
        if self.config.tied_head:
            del tensors["head.weight"]
        return tensors

    def n_parameters(self) -> int:
        """Elements of all parameters, a tied tensor once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def shift_router_biases(self, load_LX: Tensor, speed: float) -> None:
        """`Router.shift_bias` of every layer with experts, in order, by the load of a whole training step."""
        routers = [module for module in self.modules() if isinstance(module, Router)]
        for router, load_X in zip(routers, load_LX, strict=True):
            router.shift_bias(load_X, speed)

    def _through_blocks(self, tokens_BT: Tensor, x_BTD: Tensor, cache: Cache | None) -> tuple[Tensor, list[Routing]]:
        """The stream after the last block, and where the tokens went in each layer with experts."""
        first_BTD = middle_BTD = x_BTD
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            if self.residual_scales is not None:
                x_BTD = self.residual_scales(x_BTD, first_BTD, layer)
            more_values_BTX = self.value_embeddings[str(layer)](tokens_BT) if block.takes_more_values else None
            x_BTD, routing = block(x_BTD, cache.layers[layer] if cache is not None else None, more_values_BTX)
            if routing is not None:
                routings.append(routing)
            if layer == self.config.n_layers // 2:
                middle_BTD = x_BTD
        if self.backout_scale is not None:
            x_BTD = x_BTD - (self.backout_scale * middle_BTD).to(x_BTD.dtype)
        return x_BTD, routings

    def _embedded(self, tokens_BT: Tensor, start: int, end: int, cache: Cache | None) -> Tensor:
        x_BTD: Tensor = self.embedding(tokens_BT)
        if self.project_in is not None:
            x_BTD = self.project_in(x_BTD)
        if self.config.embedding_multiplier != 1.0:
            x_BTD = x_BTD * self.config.embedding_multiplier
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[start:end]
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        if self.smear is not None:
            before_B1D = cache.last_embedding if cache is not None else None
            if cache is not None:
                cache.last_embedding = x_BTD[:, -1:]
            x_BTD = self.smear(x_BTD, before_B1D)
        dropped_BTD: Tensor = self.dropout(x_BTD)
        return dropped_BTD

    @torch.no_grad()
    def _draw_weights(self) -> None:
        config = self.config
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                self._draw_normal(module.weight, self._table_std(module))
            elif isinstance(module, nn.Linear) and not (module is self.head and config.tied_head):
                if module is self.head and config.head_init_std:
                    self._draw_normal(module.weight, config.head_init_std)
                else:
                    self._draw(module.weight, self._std(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in self.value_embeddings.parameters():
            self._draw(table, self._std(config.d_model))
        for block in self.blocks:
            assert isinstance(block, Block)
            self._draw_block(block)
        if config.gate_init_max and self.smear is not None:
            nn.init.uniform_(self.smear.amount.weight, 0.0, config.gate_init_max)

    def _draw_block(self, block: Block) -> None:
        """What in a block starts unlike other linear layers, or is none."""
        config, attention, feedforward = self.config, block.attention, block.feedforward
        self._draw(attention.out.weight, self._residual_std(attention.out.in_features))
        if isinstance(feedforward, Experts):
            self._draw(feedforward.expert_up, config.up_init_scale * self._std(config.d_model))
            self._draw(feedforward.expert_down, self._residual_std(config.d_ff))
        dense = feedforward.shared if isinstance(feedforward, Experts) else feedforward
        if isinstance(dense, FeedForward):
            dense.up.weight.mul_(config.up_init_scale)
            self._draw(dense.down.weight, self._residual_std(dense.down.in_features))
        gate = getattr(attention, "value_gate", None)
        if config.gate_init_max and gate is not None:
            nn.init.uniform_(gate.weight, 0.0, config.gate_init_max)

    def _draw(self, weight: Tensor, std: float) -> None:
        if self.config.init == "fan_in_uniform":
            nn.init.uniform_(weight, -math.sqrt(3) * std, math.sqrt(3) * std)
        else:
            self._draw_normal(weight, std)

    def _draw_normal(self, weight: Tensor, std: float) -> None:
        if self.config.init == "truncated" and std > 0.0:
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
        else:
            nn.init.normal_(weight, std=std)

    def _table_std(self, table: nn.Embedding) -> float:
        of_positions = self.config.position_init_std if table is self.positions else 0.0
        return of_positions or self.config.embedding_init_std or self._std()

    def _std(self, inputs: int | None = None) -> float:
        """Of a matrix with so many inputs; a table has none."""
        match self.config.init:
            case "small":
                return math.sqrt(2 / (5 * self.config.d_model))
            case "fan_in" | "fan_in_uniform" if inputs:
                return 1 / math.sqrt(inputs)
            case _:
                return self.config.init_std

    def _residual_std(self, inputs: int) -> float:
        """Of a matrix that writes to the residual stream."""
        config = self.config
        match config.residual_init:
            case "zero":
                return 0.0
            case "wang":
                return 2 / (config.n_layers * math.sqrt(config.d_model))
            case "scaled":
                return self._std(inputs) * (1 / math.sqrt(2 * config.n_layers))
            case _:
                return self._std(inputs)


def _dense_width(config: ModelConfig, layer: int) -> int:
    return config.d_ff_dense or config.d_ff if config.n_experts and layer < config.n_dense_layers else config.d_ff
