"""The decoder: embedding, blocks, final norm, head.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weightdecay.errors import ConfigError
from weightdecay.kernels.library import usable
from weightdecay.kernels.lookup import tied
from weightdecay.models.block import make_block
from weightdecay.models.cache import Cache
from weightdecay.models.config import ModelConfig
from weightdecay.models.experts import Experts
from weightdecay.models.initialisation import Undrawn, draw_weights
from weightdecay.models.layers import Linear, make_norm, soft_capped
from weightdecay.models.mixing import MixedStream
from weightdecay.models.routing import Router, Routing, Spread
from weightdecay.models.stream import Stream


class GPT(nn.Module):
    """A causal language model: tokens [B, T] to logits [B, T, V].

        from weightdecay import GPT, ModelConfig

        model = GPT(ModelConfig(vocab_size=50257, context=1024, n_layers=12, d_model=768, n_heads=12))

    The weights are drawn from torch's global generator, see `models.initialisation`. A tied head is one tensor under
    two names.

    Attributes:
        arithmetic: how it computes in a lower precision than its parameters', see `models.arithmetic`.
        stream_dtype: of what goes from block to block, where it is not the parameters' (`arithmetic.weights_in`).
        recomputes: whether a block keeps its input alone and is computed anew on the way back (activation
            checkpointing): the same numbers for less memory, and about a third more time.
    """

    arithmetic: Literal["working", "autocast"] = "working"
    stream_dtype: torch.dtype | None = None
    recomputes: bool = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ConfigError(
                f"config is a {type(config).__name__}: give a ModelConfig, as weightdecay.recipe('gpt3:nano').model"
            )
        self.config = config
        width, narrow = config.embedding_width, config.embedding_width != config.d_model
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.project_in = Linear(width, config.d_model, bias=False) if narrow else None
        self.positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.embedding_norm = make_norm(config) if config.norms.embedding else None
        self.dropout = nn.Dropout(config.training.dropout if config.training.embedding_dropout else 0.0)
        self.stream = MixedStream(config.mixing) if config.mixing else Stream()
        self.stream.add_to(self)
        attentions = [self.stream.attention(config, layer) for layer in range(config.n_layers)]
        self.blocks = nn.ModuleList(make_block(config, layer, attention) for layer, attention in enumerate(attentions))
        self.norm = make_norm(config) if config.norms.after != "sum" else None
        self.project_out = Linear(config.d_model, width, bias=False) if narrow else None
        self.head = Linear(width, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        draw_weights(self)

    @classmethod
    def blueprint(cls, config: ModelConfig) -> GPT:
        """A model whose tensors have names, shapes and dtypes, and no values: it takes neither memory nor time."""
        with torch.device("meta"), Undrawn():
            return cls(config)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] for the token that follows each position.

        Args:
            cache: of the tokens before these, which it then takes in.

        Raises:
            ConfigError: the sequence is longer than the model's context.
        """
        return self.logits(self._head_input_and_routings(tokens_BT, self.embedding(tokens_BT), cache)[0])

    def logits(self, x_BTD: Tensor) -> Tensor:
        """What the head makes of its input."""
        logits_BTV: Tensor = self.head(x_BTD)
        if self.config.logit_multiplier != 1.0:
            logits_BTV = logits_BTV * self.config.logit_multiplier
        if self.config.logit_softcap:
            logits_BTV = soft_capped(logits_BTV.float(), self.config.logit_softcap)
        return logits_BTV

    def head_input(self, tokens_BT: Tensor) -> Tensor:
        """What `logits` makes `forward` of; a caller that needs no more than some logits at once asks for this."""
        return self._head_input_and_routings(tokens_BT, self.embedding(tokens_BT), None)[0]

    def looked_up(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens' rows of the table, and the weight through which the head's gradient goes."""
        if self.config.tied_head and self.stream_dtype is not None and usable(tokens_BT, self.stream_dtype):
            return tied(self.embedding.weight, tokens_BT)
        return self.embedding(tokens_BT), self.head.weight

    def head_input_and_spread(self, tokens_BT: Tensor, rows_BTD: Tensor | None = None) -> tuple[Tensor, Spread | None]:
        """`head_input`, and how the tokens fell on the experts: their layers' mean imbalance, each layer's load.

        Args:
            rows_BTD: the table's, where `looked_up` has given them already.
        """
        rows_BTD = self.embedding(tokens_BT) if rows_BTD is None else rows_BTD
        x_BTD, routings = self._head_input_and_routings(tokens_BT, rows_BTD, None)
        with_experts = [block.feedforward for block in self.blocks if isinstance(block.feedforward, Experts)]
        if not with_experts:
            return x_BTD, None
        spreads = [e.spread(routing, len(tokens_BT)) for e, routing in zip(with_experts, routings, strict=True)]
        imbalances, loads = zip(*spreads, strict=True)
        return x_BTD, Spread(torch.stack(imbalances).mean(), torch.stack(loads))

    def _head_input_and_routings(
        self, tokens_BT: Tensor, rows_BTD: Tensor, cache: Cache | None
    ) -> tuple[Tensor, list[Routing]]:
        """The head's input, and where the tokens went in each layer with experts."""
        start = cache.length if cache is not None else 0
        end = start + tokens_BT.shape[1]
        if end > self.config.context:
            raise ConfigError(f"{end} tokens do not fit the model's context of {self.config.context}: cut the input")
        embedded_BTD = self._embedded(rows_BTD, start, end, cache)
        x_BTD, routings = self.stream.through(self, tokens_BT, embedded_BTD, cache)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        if self.project_out is not None:
            x_BTD = self.project_out(x_BTD)
        return x_BTD, routings

    def run_block(self, layer: int, x_BTD: Tensor, cache: Cache | None, *more: Tensor) -> tuple[Tensor, Routing | None]:
        """One block, for the stream that goes through all of them."""
        block, kept = self.blocks[layer], cache.layers[layer] if cache is not None else None
        if self.recomputes and kept is None and torch.is_grad_enabled():
            # Dropout draws the same again: the generators' states are kept with the input.
            recomputed: tuple[Tensor, Routing | None] = checkpoint(block, x_BTD, None, *more, use_reentrant=False)
            return recomputed
        output: tuple[Tensor, Routing | None] = block(x_BTD, kept, *more)
        return output

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

    def tables(self) -> list[nn.Embedding]:
        """Every embedding: of tokens, of positions, and of values where a stream adds them."""
        return [module for module in self.modules() if isinstance(module, nn.Embedding)]

    def _embedded(self, x_BTD: Tensor, start: int, end: int, cache: Cache | None) -> Tensor:
        if self.project_in is not None:
            x_BTD = self.project_in(x_BTD)
        if self.config.embedding_multiplier != 1.0:
            x_BTD = x_BTD * self.config.embedding_multiplier
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[start:end]
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        if self.stream_dtype is not None:
            x_BTD = x_BTD.to(self.stream_dtype)
        dropped_BTD: Tensor = self.dropout(self.stream.entered(self, x_BTD, cache))
        return dropped_BTD
