"""What a decoder is made of: one frozen value from which it is built and which a checkpoint carries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from weightdecay.errors import ConfigError, did_you_mean

CHOICES = {
    "norm": ("layernorm", "rmsnorm", "rmsnorm_unit_offset", "rmsnorm_without_gain"),
    "norm_placement": ("pre", "post", "sandwich", "output"),
    "qk_norm": ("none", "head", "all_heads"),
    "positions": ("learned", "rotary", "alibi", "relative"),
    "feedforward": ("gelu", "gelu_tanh", "relu", "relu_squared", "swiglu", "geglu", "geglu_tanh"),
    "branches": ("sequential", "parallel", "parallel_one_norm"),
    "router": ("softmax_of_chosen", "softmax_of_all", "sigmoid"),
    "router_bias_update": ("sign", "centred_sign"),
    "balance_over": ("batch", "sequence"),
    "init": ("normal", "truncated", "fan_in", "fan_in_uniform", "small"),
    "residual_init": ("plain", "scaled", "zero", "wang"),
}
# Values that training sees and the function from tokens to logits does not.
TRAINING_ONLY = (
    "dropout", "embedding_dropout", "stochastic_depth", "load_balancing", "balance_over", "router_bias_speed",
    "router_bias_update", "router_bias_tokens", "z_loss", "init", "init_std", "embedding_init_std",
    "position_init_std", "head_init_std", "residual_init", "up_init_scale", "gate_init_max",
)  # fmt: skip
# Values without effect in a dense decoder.
_OF_EXPERTS = (
    "experts_per_token", "n_shared_experts", "n_dense_layers", "d_ff_dense", "router", "router_scale",
    "n_expert_groups", "expert_groups_per_token",
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
        positions: `learned`, a table of `context` rows; `rotary`; `alibi`, a slope of scores over distance; or
            `relative`, projected sines and cosines of the distance (Transformer-XL).
        rotary_base: θ of the rotary frequencies.
        rotary_fraction: part of each head that turns.
        kv_rank: width of the latent that keys and values are made of (multi-head latent attention); 0 means that they
            have projections of their own. `head_dim` is then the part of a head that does not turn.
        q_rank: width of the latent that queries are made of; 0 means that they come from the stream itself.
        rotary_head_dim: width of the part of a latent head that turns; its key is shared by all heads.
        value_head_dim: width of a latent head's values; 0 means `head_dim`.
        latent_norm_eps: of the norms of the latents; 0 means `norm_eps`.
        window: positions that a windowed layer sees, itself included; 0 means all.
        window_pattern: a letter a layer, repeated: S sees `window` positions, L all. GPT-3's is `LS`.
        attention_scale: of the scores; 0 means one over the root of a query's width.
        attention_softcap, logit_softcap: c in c·tanh(x/c), on scores and on logits; 0 does not cap.
        embedding_multiplier, logit_multiplier: factors of the embedding's output and of the logits.
        feedforward: `gelu`, `gelu_tanh` (GPT-2's approximation), `relu`, `relu_squared`, or gated: `swiglu`, `geglu`,
            `geglu_tanh`.
        value_gate_inputs: features of its input by which a layer gates a table of its own that is added to its values,
            every second layer counted from the last (ResFormer); 0 means no such tables.
        value_gate_max: what that gate, a sigmoid, is multiplied by.
        smear_inputs: features of a token's embedding that gate how much of the one before is added to it; 0 means none.
        residual_scale_first, residual_scale_last: of the learned factors of the stream before each block, at the
            start, from the first block to the last; 0 means that there are none.
        input_scale_first, input_scale_last: likewise of the embeddings that are then added again.
        backout_scale: at the start, of a learned factor by which the stream of the middle is taken off the last; 0
            means that there is none.
        branches: `sequential`, feed-forward after attention; `parallel`, both of the block's input; or
            `parallel_one_norm`, with one norm for both.
        n_experts: 0 is a dense feed-forward part.
        experts_per_token: k, the experts that each token is sent to.
        n_shared_experts: experts of every token, beside the chosen ones.
        n_dense_layers: first blocks without experts.
        d_ff_dense: width of their feed-forward part; 0 means `d_ff`.
        router: how chosen experts are weighted: `softmax_of_chosen` (Mixtral), `softmax_of_all` (Grok-1) or `sigmoid`
            over its sum (DeepSeek-V3), which has a bias that decides who is chosen.
        router_scale: factor of those weights.
        router_bias_speed: how far a training step moves that bias; 0 leaves it.
        router_bias_update: by the `sign` of each expert's lack of tokens, or by the `centred_sign`, less its mean
            (Moonlight).
        router_bias_tokens: seen in training after which the bias stays; 0 means never.
        n_expert_groups: of equal size; a token is sent to experts of the best `expert_groups_per_token` of them.
        load_balancing: factor of the loss that spreads tokens over the experts.
        balance_over: what that loss spreads evenly: the tokens of a `batch`, or of each `sequence`.
        bias: whether linear layers and layer norms have biases.
        tied_head: whether the output head is the embedding matrix.
        dropout: on attention weights and on each branch's output.
        embedding_dropout: whether it also acts on the embedding's output.
        stochastic_depth: probability of skipping the last block's branches; earlier blocks less, linearly.
        z_loss: factor of mean (log Σ exp logits)², added to the loss.
        init: `normal`, N(0, init_std²); `truncated`, the same without what lies beyond three deviations; `fan_in`,
            N(0, 1/inputs), for weight matrices; `fan_in_uniform`, of the same deviation between ±√(3/inputs); or
            `small`, N(0, 2/(5·d_model)) (Nguyen & Salazar 2019, arXiv:1910.05895).
        init_std: standard deviation of every weight matrix at the start, under `normal` and `truncated`.
        embedding_init_std: of the embedding's; 0 means `init_std`, or what `small` gives.
        position_init_std: of the learned positions'; 0 means the embedding's.
        head_init_std: of an untied head's; 0 means that of the other matrices.
        residual_init: `scaled` divides it by √(2·n_layers) in the layers that write to the residual stream, `zero`
            starts them at 0, `wang` at a deviation of 2/(n_layers·√d_model) (GPT-NeoX).
        up_init_scale: factor of the feed-forward part's first matrix at the start.
        gate_init_max: gates of values and of the token before start between 0 and this; 0 means as other matrices.

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
    kv_rank: int = 0
    q_rank: int = 0
    rotary_head_dim: int = 0
    value_head_dim: int = 0
    latent_norm_eps: float = 0.0
    window: int = 0
    window_pattern: str = "S"
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    feedforward: str = "gelu_tanh"
    value_gate_inputs: int = 0
    value_gate_max: float = 1.0
    smear_inputs: int = 0
    residual_scale_first: float = 0.0
    residual_scale_last: float = 0.0
    input_scale_first: float = 0.0
    input_scale_last: float = 0.0
    backout_scale: float = 0.0
    branches: str = "sequential"
    n_experts: int = 0
    experts_per_token: int = 2
    n_shared_experts: int = 0
    n_dense_layers: int = 0
    d_ff_dense: int = 0
    router: str = "softmax_of_chosen"
    router_scale: float = 1.0
    router_bias_speed: float = 0.0
    router_bias_update: str = "sign"
    router_bias_tokens: float = 0.0
    n_expert_groups: int = 1
    expert_groups_per_token: int = 1
    load_balancing: float = 0.0
    balance_over: str = "batch"
    bias: bool = True
    tied_head: bool = True
    dropout: float = 0.0
    embedding_dropout: bool = True
    stochastic_depth: float = 0.0
    z_loss: float = 0.0
    init: str = "normal"
    init_std: float = 0.02
    embedding_init_std: float = 0.0
    position_init_std: float = 0.0
    head_init_std: float = 0.0
    residual_init: str = "scaled"
    up_init_scale: float = 1.0
    gate_init_max: float = 0.0

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
    def value_width(self) -> int:
        """Width of a latent head's values."""
        return self.value_head_dim or self.head_dim

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

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a table is added to a layer's values."""
        return self.value_gate_inputs > 0 and (self.n_layers - 1 - layer) % 2 == 0

    def replace(self, **changes: object) -> ModelConfig:
        """The same configuration with some values changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # checked in __post_init__

    def as_function(self) -> ModelConfig:
        """The same function from tokens to logits: what only training sees, and what has no effect, at its default."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        unused = [*TRAINING_ONLY]
        unused += ["window_pattern"] if not self.window else []
        unused += ["rotary_base"] if self.positions != "rotary" else []
        unused += ["rotary_fraction"] if self.positions != "rotary" or self.kv_rank else []
        unused += ["d_embedding"] if self.d_embedding == self.d_model else []
        unused += _OF_EXPERTS if not self.n_experts else []
        unused += ["value_gate_max"] if not self.value_gate_inputs else []
        unused += ["expert_groups_per_token"] if self.n_expert_groups == 1 else []
        same = {name: defaults[name] for name in unused}
        if self.kv_rank:
            same |= {"value_head_dim": self.value_width, "latent_norm_eps": self.latent_norm_eps or self.norm_eps}
        if self.n_experts:
            same |= {"d_ff_dense": (self.d_ff_dense or self.d_ff) if self.n_dense_layers else 0}
        return self.replace(**same)

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
            for name in (
                "norm_eps",
                "rotary_base",
                "init_std",
                "router_scale",
                "logit_multiplier",
                "n_expert_groups",
                "expert_groups_per_token",
            )
            if not getattr(self, name) > 0
        ]
        faults += [
            f"model.{name} must be at least 0, got {getattr(self, name)}"
            for name in (
                "window", "attention_scale", "attention_softcap", "logit_softcap", "n_experts", "n_shared_experts",
                "n_dense_layers", "d_ff_dense", "d_embedding", "load_balancing", "z_loss", "embedding_init_std",
                "kv_rank", "q_rank", "rotary_head_dim", "value_head_dim", "latent_norm_eps", "router_bias_speed",
                "router_bias_tokens", "value_gate_inputs", "value_gate_max", "smear_inputs", "head_init_std",
                "up_init_scale", "gate_init_max", "position_init_std",
            )
            if not getattr(self, name) >= 0
        ]  # fmt: skip
        return faults or self._contradictions()

    def _contradictions(self) -> list[str]:
        """What is wrong between values that are each in range."""
        faults = [*self._attention_faults(), *self._expert_faults()]
        faults += [
            f"model.{name} = {value} is more than model.d_model = {self.d_model}"
            for name in ("value_gate_inputs", "smear_inputs")
            if (value := getattr(self, name)) > self.d_model
        ]
        if self.branches != "sequential" and self.norm_placement != "pre":
            faults.append(
                f"parallel branches have their norms before them: model.norm_placement = '{self.norm_placement}' "
                "must be 'pre'"
            )
        if not self.residual_scale_first and (
            self.residual_scale_last or self.input_scale_first or self.input_scale_last
        ):
            faults.append("scales of the stream begin with model.residual_scale_first: give it, 1 changes nothing")
        return faults

    def _attention_faults(self) -> list[str]:
        faults = []
        if self.n_heads % self.n_kv_heads:
            faults.append(f"model.n_heads = {self.n_heads} is not a multiple of model.n_kv_heads = {self.n_kv_heads}")
        if not 0 < self.rotary_fraction <= 1:
            faults.append(f"model.rotary_fraction must lie in (0, 1], got {self.rotary_fraction}")
        elif self.positions == "rotary" and not self.kv_rank and int(self.head_dim * self.rotary_fraction) % 2:
            faults.append(
                f"rotary positions turn pairs: model.rotary_fraction = {self.rotary_fraction:g} of model.head_dim = "
                f"{self.head_dim} must be even"
            )
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            faults.append(f"model.window_pattern = '{self.window_pattern}': must be made of S (window) and L (all)")
        latent = {name: getattr(self, name) for name in ("q_rank", "rotary_head_dim", "value_head_dim")}
        if not self.kv_rank:
            asked = ", ".join(f"model.{name} = {value}" for name, value in latent.items() if value)
            return [*faults, f"{asked}: of latent attention alone, which model.kv_rank asks for"] if asked else faults
        wanted: dict[str, Any] = {
            "positions": "rotary", "qk_norm": "none", "bias": False, "n_kv_heads": self.n_heads, "value_gate_inputs": 0,
        }  # fmt: skip
        faults += [
            f"latent attention (model.kv_rank = {self.kv_rank}) needs model.{name} = {value!r}, "
            f"got {getattr(self, name)!r}"
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]
        if self.rotary_head_dim < 2 or self.rotary_head_dim % 2:
            faults.append(f"latent attention turns pairs: model.rotary_head_dim = {self.rotary_head_dim} must be even")
        return faults

    def _expert_faults(self) -> list[str]:
        if not self.n_experts:
            return []
        faults = []
        groups, chosen = self.n_expert_groups, self.expert_groups_per_token
        if not 1 <= self.experts_per_token <= self.n_experts:
            faults.append(
                f"model.experts_per_token must lie between 1 and model.n_experts = {self.n_experts}, "
                f"got {self.experts_per_token}"
            )
        if self.bias:
            faults.append("experts have no biases here: set model.bias = false")
        if self.router != "sigmoid" and (groups > 1 or self.router_bias_speed):
            faults.append(
                f"groups of experts and a bias that moves belong to model.router = 'sigmoid', got '{self.router}'"
            )
        size, rest = divmod(self.n_experts, groups)
        if rest or (groups > 1 and size < 2):
            faults.append(f"model.n_experts = {self.n_experts} are not model.n_expert_groups = {groups} of two or more")
        elif groups > 1 and not (chosen <= groups and chosen * size >= self.experts_per_token):
            faults.append(
                f"model.expert_groups_per_token = {chosen} of {groups} groups of {size} cannot give "
                f"model.experts_per_token = {self.experts_per_token}"
            )
        return faults
