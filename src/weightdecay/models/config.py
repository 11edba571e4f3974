"""What a decoder is made of: one frozen value from which it is built and which a checkpoint carries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from weightdecay.errors import ConfigError, did_you_mean

CHOICES = {
    "norm": ("layernorm", "rmsnorm", "rmsnorm_unit_offset", "rmsnorm_without_gain"),
    "norm_placement": ("pre", "post", "sandwich", "output"),
    "qk_norm": ("none", "head", "all_heads"),
    "positions": ("learned", "rotary", "alibi"),
    "feedforward": ("gelu", "gelu_tanh", "relu", "relu_squared", "swiglu", "geglu", "geglu_tanh"),
    "branches": ("sequential", "parallel", "parallel_one_norm"),
    "router": ("softmax_of_chosen", "softmax_of_all", "sigmoid"),
    "init": ("normal", "fan_in"),
    "residual_init": ("plain", "scaled"),
}
# Values that training sees and the function from tokens to logits does not.
TRAINING_ONLY = (
    "dropout", "embedding_dropout", "stochastic_depth", "load_balancing", "z_loss", "init", "init_std",
    "embedding_init_std", "residual_init",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder.

    Args:
        vocab_size: rows of the embedding, V.
        context: the longest sequence, in tokens, T.
        n_layers: blocks.
        d_model: width of the residual stream, D.
        n_heads: query heads, H.
        n_kv_heads: key and value heads; `n_heads` is multi-head, fewer is grouped-query, 1 multi-query attention.
        head_dim: width of a head; 0 means `d_model // n_heads`.
        d_embedding: width of the embedding; a narrower one than D is projected in, and out before the head (OPT 350M);
            0 means `d_model`.
        d_ff: width inside the feed-forward part, of each expert where there are experts; 0 means `4 * d_model`.
        norm: `layernorm` (a gain, and a bias if `bias`), `rmsnorm` (a gain), `rmsnorm_unit_offset` (1 + w, w from 0)
            or `rmsnorm_without_gain`.
        norm_eps: added to the variance or mean square.
        norm_placement: of a block's norms: `pre` (of each branch's input), `post` (of the sum after it; then the
            decoder has no last norm), `sandwich` (of its input and its output) or `output` (of its output alone).
        embedding_norm: whether a norm follows the embedding.
        qk_norm: norm of queries and keys: `none`, of each `head`, or of `all_heads` together.
        positions: `learned`, a table of `context` rows; `rotary`; or `alibi`, a slope of scores over distance.
        rotary_base: θ of the rotary frequencies.
        rotary_fraction: part of each head that turns.
        window: positions that a windowed layer sees, itself included; 0 means all.
        window_pattern: a letter a layer, repeated: S sees `window` positions, L all. GPT-3's is `LS`.
        attention_scale: of the scores; 0 means 1/√head_dim.
        attention_softcap, logit_softcap: c in c·tanh(x/c), on scores and on logits; 0 does not cap.
        embedding_multiplier, logit_multiplier: factors of the embedding's output and of the logits.
        feedforward: `gelu`, `gelu_tanh` (GPT-2's approximation), `relu`, `relu_squared`, or gated: `swiglu`, `geglu`,
            `geglu_tanh`.
        branches: `sequential`, feed-forward after attention; `parallel`, both of the block's input; or
            `parallel_one_norm`, with one norm for both.
        n_experts: 0 is a dense feed-forward part.
        experts_per_token: k, the experts that each token is sent to.
        n_shared_experts: experts of every token, beside the chosen ones.
        n_dense_layers: first blocks without experts.
        d_ff_dense: width of their feed-forward part; 0 means `d_ff`.
        router: how chosen experts are weighted: `softmax_of_chosen` (Mixtral), `softmax_of_all` (Grok-1) or `sigmoid`
            over its sum (DeepSeek-V3).
        router_scale: factor of those weights.
        load_balancing: factor of the loss that spreads tokens over the experts.
        bias: whether linear layers and layer norms have biases.
        tied_head: whether the output head is the embedding matrix.
        dropout: on attention weights and on each branch's output.
        embedding_dropout: whether it also acts on the embedding's output.
        stochastic_depth: probability of skipping the last block's branches; earlier blocks less, linearly.
        z_loss: factor of mean (log Σ exp logits)², added to the loss.
        init: `normal`, N(0, init_std²), or `fan_in`, N(0, 1/inputs), for weight matrices.
        init_std: standard deviation of every weight matrix at the start, under `normal`.
        embedding_init_std: of the embedding's and the learned positions'; 0 means `init_std`.
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
    d_embedding: int = 0
    d_ff: int = 0
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    norm_placement: str = "pre"
    embedding_norm: bool = False
    qk_norm: str = "none"
    positions: str = "learned"
    rotary_base: float = 10_000.0
    rotary_fraction: float = 1.0
    window: int = 0
    window_pattern: str = "S"
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    feedforward: str = "gelu_tanh"
    branches: str = "sequential"
    n_experts: int = 0
    experts_per_token: int = 2
    n_shared_experts: int = 0
    n_dense_layers: int = 0
    d_ff_dense: int = 0
    router: str = "softmax_of_chosen"
    router_scale: float = 1.0
    load_balancing: float = 0.0
    bias: bool = True
    tied_head: bool = True
    dropout: float = 0.0
    embedding_dropout: bool = True
    stochastic_depth: float = 0.0
    z_loss: float = 0.0
    init: str = "normal"
    init_std: float = 0.02
    embedding_init_std: float = 0.0
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

    @property
    def embedding_width(self) -> int:
        """Columns of the embedding and of the head."""
        return self.d_embedding or self.d_model

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part multiplies a gate with a value."""
        return self.feedforward in ("swiglu", "geglu", "geglu_tanh")

    def window_of(self, layer: int) -> int:
        """Positions that a layer sees, itself included; 0 for all."""
        return self.window if self.window_pattern[layer % len(self.window_pattern)] == "S" else 0

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's feed-forward part is a mixture of experts."""
        return self.n_experts > 0 and layer >= self.n_dense_layers

    def replace(self, **changes: object) -> ModelConfig:
        """The same configuration with some values changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # checked in __post_init__

    def as_function(self) -> ModelConfig:
        """The same function from tokens to logits, everything that only training sees at its default."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        dense = (
            {"experts_per_token": 2, "router": defaults["router"], "router_scale": 1.0} if not self.n_experts else {}
        )
        unused = {
            **({} if self.window else {"window_pattern": "S"}),
            **({} if self.positions == "rotary" else {"rotary_base": 10_000.0, "rotary_fraction": 1.0}),
            **({"d_embedding": 0} if self.d_embedding == self.d_model else {}),
        }
        return self.replace(**{name: defaults[name] for name in TRAINING_ONLY}, **dense, **unused)

    def _faults(self) -> list[str]:
        faults = [
            f"model.{name} must be at least 1, got {getattr(self, name)}"
            for name in ("vocab_size", "context", "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
            if getattr(self, name) < 1
        ]
        faults += [
            f"model.{name} = '{value}': {did_you_mean(value, known)}"
            for name, known in CHOICES.items()
            if (value := getattr(self, name)) not in known
        ]
        faults += [
            f"model.{name} must lie in [0, 1), got {getattr(self, name)}"
            for name in ("dropout", "stochastic_depth")
            if not 0 <= getattr(self, name) < 1
        ]
        faults += [
            f"model.{name} must be positive, got {getattr(self, name)}"
            for name in ("norm_eps", "rotary_base", "init_std", "router_scale", "logit_multiplier")
            if not getattr(self, name) > 0
        ]
        faults += [
            f"model.{name} must be at least 0, got {getattr(self, name)}"
            for name in (
                "window", "attention_scale", "attention_softcap", "logit_softcap", "n_experts", "n_shared_experts",
                "n_dense_layers", "d_ff_dense", "d_embedding", "load_balancing", "z_loss", "embedding_init_std",
            )
            if not getattr(self, name) >= 0
        ]  # fmt: skip
        return faults or self._contradictions()

    def _contradictions(self) -> list[str]:
        """What is wrong between values that are each in range."""
        faults = []
        if self.n_heads % self.n_kv_heads:
            faults.append(f"model.n_heads = {self.n_heads} is not a multiple of model.n_kv_heads = {self.n_kv_heads}")
        if not 0 < self.rotary_fraction <= 1:
            faults.append(f"model.rotary_fraction must lie in (0, 1], got {self.rotary_fraction}")
        elif self.positions == "rotary" and int(self.head_dim * self.rotary_fraction) % 2:
            faults.append(
                f"rotary positions turn pairs: model.rotary_fraction = {self.rotary_fraction:g} of model.head_dim = "
                f"{self.head_dim} must be even"
            )
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            faults.append(f"model.window_pattern = '{self.window_pattern}': must be made of S (window) and L (all)")
        if self.n_experts and not 1 <= self.experts_per_token <= self.n_experts:
            faults.append(
                f"model.experts_per_token must lie between 1 and model.n_experts = {self.n_experts}, "
                f"got {self.experts_per_token}"
            )
        if self.n_experts and self.bias:
            faults.append("experts have no biases here: set model.bias = false")
        if self.branches != "sequential" and self.norm_placement != "pre":
            faults.append(
                f"parallel branches have their norms before them: model.norm_placement = '{self.norm_placement}' "
                "must be 'pre'"
            )
        return faults
