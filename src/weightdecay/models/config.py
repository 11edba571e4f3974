"""What a decoder is made of: one frozen value from which it is built and which a checkpoint carries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from weightdecay.errors import ConfigError, did_you_mean

NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "rotary")
FEEDFORWARDS = ("gelu", "gelu_tanh", "swiglu")
RESIDUAL_INITS = ("plain", "scaled")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of one pre-norm decoder.

    Args:
        vocab_size: rows of the embedding, V.
        context: the longest sequence, in tokens, T.
        n_layers: blocks.
        d_model: width of the residual stream, D.
        n_heads: query heads, H.
        n_kv_heads: key and value heads; `n_heads` is multi-head, fewer is grouped-query, 1 multi-query attention.
        head_dim: width of a head; 0 means `d_model // n_heads`.
        d_ff: width inside the feed-forward part; 0 means `4 * d_model`.
        norm: `layernorm` (a gain, and a bias if `bias`) or `rmsnorm` (a gain).
        norm_eps: added to the variance or mean square.
        positions: `learned`, a table of `context` rows, or `rotary`.
        rotary_base: θ of the rotary frequencies.
        feedforward: `gelu`, `gelu_tanh` (GPT-2's approximation) or `swiglu` (gated, no approximation).
        bias: whether linear layers and layer norms have biases.
        tied_head: whether the output head is the embedding matrix.
        dropout: after the embedding, on attention weights and on each block's outputs.
        stochastic_depth: probability of skipping the last block's branches; earlier blocks less, linearly.
        init_std: standard deviation of every weight matrix at the start.
        residual_init: `scaled` divides it by √(2·n_layers) in the layers that write to the residual stream.

    Raises:
        ConfigError: every value out of range, at once.
    """

    vocab_size: int
    context: int
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int = 0
    head_dim: int = 0
    d_ff: int = 0
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    positions: str = "learned"
    rotary_base: float = 10_000.0
    feedforward: str = "gelu_tanh"
    bias: bool = True
    tied_head: bool = True
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    init_std: float = 0.02
    residual_init: str = "scaled"

    def __post_init__(self) -> None:
        for name, derived in (
            ("n_kv_heads", self.n_heads),
            ("head_dim", self.d_model // max(self.n_heads, 1)),
            ("d_ff", 4 * self.d_model),
        ):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, derived)
        faults = [*self._faults()]
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        faults = [
            f"model.{name} must be at least 1, got {getattr(self, name)}"
            for name in ("vocab_size", "context", "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
            if getattr(self, name) < 1
        ]
        faults += [
            f"model.{name} = '{value}': {did_you_mean(value, known)}"
            for name, known in (
                ("norm", NORMS),
                ("positions", POSITIONS),
                ("feedforward", FEEDFORWARDS),
                ("residual_init", RESIDUAL_INITS),
            )
            if (value := getattr(self, name)) not in known
        ]
        faults += [
            f"model.{name} must lie in [0, 1), got {getattr(self, name)}"
            for name in ("dropout", "stochastic_depth")
            if not 0 <= getattr(self, name) < 1
        ]
        faults += [
            f"model.{name} must be positive, got {getattr(self, name)}"
            for name in ("norm_eps", "rotary_base", "init_std")
            if not getattr(self, name) > 0
        ]
        if faults:
            return faults
        if self.n_heads % self.n_kv_heads:
            faults.append(f"model.n_heads = {self.n_heads} is not a multiple of model.n_kv_heads = {self.n_kv_heads}")
        if self.positions == "rotary" and self.head_dim % 2:
            faults.append(f"rotary positions turn pairs: model.head_dim = {self.head_dim} must be even")
        return faults

    def replace(self, **changes: object) -> ModelConfig:
        """The same configuration with some values changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # checked in __post_init__
