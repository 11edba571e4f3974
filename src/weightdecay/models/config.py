"""What a decoder is made of: one frozen value from which it is built and which a checkpoint carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from weightdecay.declared.fields import CLOSED, Consistent, Contradiction, Count, Flag, Number, Switch, Text
from weightdecay.declared.reading import read

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


@dataclass(frozen=True, kw_only=True, init=False)
class ModelConfig(Consistent):
    """The shape of one decoder.

    Raises:
        ConfigError: every name that is no field, every value out of range, and what does not go together, at once.
    """

    __pydantic_config__ = CLOSED

    vocab_size: Annotated[Count, Ge(1)]
    """Rows of the embedding, V."""
    context: Annotated[Count, Ge(1), Flag("N")]
    """The longest sequence, in tokens, T."""
    n_layers: Annotated[Count, Ge(1)]
    """Blocks."""
    d_model: Annotated[Count, Ge(1)]
    """Width of the residual stream, D."""
    n_heads: Annotated[Count, Ge(1)]
    """Query heads, H."""
    n_kv_heads: Annotated[Count, Ge(0)] = 0
    """Key and value heads; `n_heads` is multi-head, fewer is grouped-query, 1 multi-query attention."""
    head_dim: Annotated[Count, Ge(0)] = 0
    """Width of a head; 0 means `d_model // n_heads`."""
    d_embedding: Annotated[Count, Ge(0)] = 0
    """Width of the embedding; a narrower one than D is projected in, and out before the head (OPT 350M); 0 means
    `d_model`."""
    d_ff: Annotated[Count, Ge(0)] = 0
    """Width inside the feed-forward part, of each expert where there are experts; 0 means `4 * d_model`."""
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_unit_offset", "rmsnorm_without_gain"] = "layernorm"
    """`layernorm` (a gain, and a bias if `bias`), `rmsnorm` (a gain), `rmsnorm_unit_offset` (1 + w, w from 0) or
    `rmsnorm_without_gain`."""
    norm_eps: Annotated[Number, Gt(0)] = 1e-5
    """Added to the variance or mean square."""
    norm_placement: Literal["pre", "post", "sandwich", "output"] = "pre"
    """Of a block's norms: `pre` (of each branch's input), `post` (of the sum after it; then the decoder has no last
    norm), `sandwich` (of its input and its output) or `output` (of its output alone)."""
    embedding_norm: Switch = False
    """Whether a norm follows the embedding."""
    qk_norm: Literal["none", "head", "all_heads"] = "none"
    """Norm of queries and keys: `none`, of each `head`, or of `all_heads` together."""
    positions: Literal["learned", "rotary", "alibi", "relative"] = "learned"
    """`learned`, a table of `context` rows; `rotary`; `alibi`, a slope of scores over distance; or `relative`,
    projected sines and cosines of the distance (Transformer-XL)."""
    rotary_base: Annotated[Number, Gt(0)] = 10_000.0
    """θ of the rotary frequencies."""
    rotary_fraction: Annotated[Number, Interval(gt=0, le=1)] = 1.0
    """Part of each head that turns."""
    kv_rank: Annotated[Count, Ge(0)] = 0
    """Width of the latent that keys and values are made of (multi-head latent attention); 0 means that they have
    projections of their own. `head_dim` is then the part of a head that does not turn."""
    q_rank: Annotated[Count, Ge(0)] = 0
    """Width of the latent that queries are made of; 0 means that they come from the stream itself."""
    rotary_head_dim: Annotated[Count, Ge(0)] = 0
    """Width of the part of a latent head that turns; its key is shared by all heads."""
    value_head_dim: Annotated[Count, Ge(0)] = 0
    """Width of a latent head's values; 0 means `head_dim`."""
    latent_norm_eps: Annotated[Number, Ge(0)] = 0.0
    """Of the norms of the latents; 0 means `norm_eps`."""
    window: Annotated[Count, Ge(0)] = 0
    """Positions that a windowed layer sees, itself included; 0 means all."""
    window_pattern: Text = "S"
    """A letter a layer, repeated: S sees `window` positions, L all. GPT-3's is `LS`."""
    attention_scale: Annotated[Number, Ge(0)] = 0.0
    """Of the scores; 0 means one over the root of a query's width."""
    attention_softcap: Annotated[Number, Ge(0)] = 0.0
    """c in c·tanh(x/c), on scores and on logits; 0 does not cap."""
    logit_softcap: Annotated[Number, Ge(0)] = 0.0
    """c in c·tanh(x/c), on scores and on logits; 0 does not cap."""
    embedding_multiplier: Number = 1.0
    """Factors of the embedding's output and of the logits."""
    logit_multiplier: Annotated[Number, Gt(0)] = 1.0
    """Factors of the embedding's output and of the logits."""
    feedforward: Literal["gelu", "gelu_tanh", "relu", "relu_squared", "swiglu", "geglu", "geglu_tanh"] = "gelu_tanh"
    """`gelu`, `gelu_tanh` (GPT-2's approximation), `relu`, `relu_squared`, or gated: `swiglu`, `geglu`,
    `geglu_tanh`."""
    value_gate_inputs: Annotated[Count, Ge(0)] = 0
    """Features of its input by which a layer gates a table of its own that is added to its values, every second
    layer counted from the last (ResFormer); 0 means no such tables."""
    value_gate_max: Annotated[Number, Ge(0)] = 1.0
    """What that gate, a sigmoid, is multiplied by."""
    smear_inputs: Annotated[Count, Ge(0)] = 0
    """Features of a token's embedding that gate how much of the one before is added to it; 0 means none."""
    residual_scale_first: Number = 0.0
    """Of the learned factors of the stream before each block, at the start, from the first block to the last; 0
    means that there are none."""
    residual_scale_last: Number = 0.0
    """Of the learned factors of the stream before each block, at the start, from the first block to the last; 0
    means that there are none."""
    input_scale_first: Number = 0.0
    """Likewise of the embeddings that are then added again."""
    input_scale_last: Number = 0.0
    """Likewise of the embeddings that are then added again."""
    backout_scale: Number = 0.0
    """At the start, of a learned factor by which the stream of the middle is taken off the last; 0 means that there
    is none."""
    branches: Literal["sequential", "parallel", "parallel_one_norm"] = "sequential"
    """`sequential`, feed-forward after attention; `parallel`, both of the block's input; or `parallel_one_norm`,
    with one norm for both."""
    n_experts: Annotated[Count, Ge(0)] = 0
    """0 is a dense feed-forward part."""
    experts_per_token: Annotated[Count, Ge(0)] = 2
    """k, the experts that each token is sent to."""
    n_shared_experts: Annotated[Count, Ge(0)] = 0
    """Experts of every token, beside the chosen ones."""
    n_dense_layers: Annotated[Count, Ge(0)] = 0
    """First blocks without experts."""
    d_ff_dense: Annotated[Count, Ge(0)] = 0
    """Width of their feed-forward part; 0 means `d_ff`."""
    router: Literal["softmax_of_chosen", "softmax_of_all", "sigmoid"] = "softmax_of_chosen"
    """How chosen experts are weighted: `softmax_of_chosen` (Mixtral), `softmax_of_all` (Grok-1) or `sigmoid` over
    its sum (DeepSeek-V3), which has a bias that decides who is chosen."""
    router_scale: Annotated[Number, Gt(0)] = 1.0
    """Factor of those weights."""
    router_bias_speed: Annotated[Number, Ge(0)] = 0.0
    """How far a training step moves that bias; 0 leaves it."""
    router_bias_update: Literal["sign", "centred_sign"] = "sign"
    """By the `sign` of each expert's lack of tokens, or by the `centred_sign`, less its mean (Moonlight)."""
    router_bias_tokens: Annotated[Number, Ge(0)] = 0.0
    """Seen in training after which the bias stays; 0 means never."""
    n_expert_groups: Annotated[Count, Ge(1)] = 1
    """Of equal size; a token is sent to experts of the best `expert_groups_per_token` of them."""
    expert_groups_per_token: Annotated[Count, Ge(1)] = 1
    """How many of them that is."""
    load_balancing: Annotated[Number, Ge(0)] = 0.0
    """Factor of the loss that spreads tokens over the experts."""
    balance_over: Literal["batch", "sequence"] = "batch"
    """What that loss spreads evenly: the tokens of a `batch`, or of each `sequence`."""
    bias: Switch = True
    """Whether linear layers and layer norms have biases."""
    tied_head: Switch = True
    """Whether the output head is the embedding matrix."""
    dropout: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """On attention weights and on each branch's output."""
    embedding_dropout: Switch = True
    """Whether it also acts on the embedding's output."""
    stochastic_depth: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Probability of skipping the last block's branches; earlier blocks less, linearly."""
    z_loss: Annotated[Number, Ge(0)] = 0.0
    """Factor of mean (log Σ exp logits)², added to the loss."""
    init: Literal["normal", "truncated", "fan_in", "fan_in_uniform", "small"] = "normal"
    """`normal`, N(0, init_std²); `truncated`, the same without what lies beyond three deviations; `fan_in`, N(0,
    1/inputs), for weight matrices; `fan_in_uniform`, of the same deviation between ±√(3/inputs); or `small`, N(0,
    2/(5·d_model)) (Nguyen & Salazar 2019, arXiv:1910.05895)."""
    init_std: Annotated[Number, Gt(0)] = 0.02
    """Standard deviation of every weight matrix at the start, under `normal` and `truncated`."""
    embedding_init_std: Annotated[Number, Ge(0)] = 0.0
    """Of the embedding's; 0 means `init_std`, or what `small` gives."""
    position_init_std: Annotated[Number, Ge(0)] = 0.0
    """Of the learned positions'; 0 means the embedding's."""
    head_init_std: Annotated[Number, Ge(0)] = 0.0
    """Of an untied head's; 0 means that of the other matrices."""
    residual_init: Literal["plain", "scaled", "zero", "wang"] = "scaled"
    """`scaled` divides it by √(2·n_layers) in the layers that write to the residual stream, `zero` starts them at
    0, `wang` at a deviation of 2/(n_layers·√d_model) (GPT-NeoX)."""
    up_init_scale: Annotated[Number, Ge(0)] = 1.0
    """Factor of the feed-forward part's first matrix at the start."""
    gate_init_max: Annotated[Number, Ge(0)] = 0.0
    """Gates of values and of the token before start between 0 and this; 0 means as other matrices."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(vars(read(ModelConfig, values, "model")))

    def __post_init__(self) -> None:
        for name, derived in (
            ("n_kv_heads", self.n_heads),
            ("head_dim", self.d_model // self.n_heads),
            ("d_ff", 4 * self.d_model),
        ):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, derived)
        super().__post_init__()

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

    def replace(self, **changes: Any) -> ModelConfig:
        """The same configuration with some values changed."""
        return type(self)(**vars(self) | changes)

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

    def contradictions(self) -> Iterator[Contradiction]:
        if self.head_dim < 1:
            yield _of(
                "d_model n_heads", f"model.d_model = {self.d_model} has no room for model.n_heads = {self.n_heads}"
            )
            return
        yield from self._attention_faults()
        yield from self._expert_faults()
        for name in ("value_gate_inputs", "smear_inputs"):
            if (value := getattr(self, name)) > self.d_model:
                yield _of(f"{name} d_model", f"model.{name} = {value} is more than model.d_model = {self.d_model}")
        if self.branches != "sequential" and self.norm_placement != "pre":
            yield _of(
                "branches norm_placement",
                f"parallel branches have their norms before them: model.norm_placement = '{self.norm_placement}' "
                "must be 'pre'",
            )
        if not self.residual_scale_first and (
            self.residual_scale_last or self.input_scale_first or self.input_scale_last
        ):
            yield _of(
                "residual_scale_first residual_scale_last input_scale_first input_scale_last",
                "scales of the stream begin with model.residual_scale_first: give it, 1 changes nothing",
            )

    def _attention_faults(self) -> Iterator[Contradiction]:
        if self.n_heads % self.n_kv_heads:
            yield _of(
                "n_heads n_kv_heads",
                f"model.n_heads = {self.n_heads} is not a multiple of model.n_kv_heads = {self.n_kv_heads}",
            )
        if self.positions == "rotary" and not self.kv_rank and int(self.head_dim * self.rotary_fraction) % 2:
            yield _of(
                "rotary_fraction head_dim d_model n_heads",
                f"rotary positions turn pairs: model.rotary_fraction = {self.rotary_fraction:g} of model.head_dim = "
                f"{self.head_dim} must be even",
            )
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            yield _of(
                "window_pattern",
                f"model.window_pattern = '{self.window_pattern}': must be made of S (window) and L (all)",
            )
        latent = {name: getattr(self, name) for name in ("q_rank", "rotary_head_dim", "value_head_dim")}
        if self.kv_rank:
            yield from self._latent_faults()
        elif asked := ", ".join(f"model.{name} = {value}" for name, value in latent.items() if value):
            yield _of(" ".join(latent), f"{asked}: of latent attention alone, which model.kv_rank asks for")

    def _latent_faults(self) -> Iterator[Contradiction]:
        wanted: dict[str, Any] = {
            "positions": "rotary", "qk_norm": "none", "bias": False, "n_kv_heads": self.n_heads, "value_gate_inputs": 0,
        }  # fmt: skip
        for name, value in wanted.items():
            if getattr(self, name) != value:
                yield _of(
                    f"{name} kv_rank",
                    f"latent attention (model.kv_rank = {self.kv_rank}) needs model.{name} = {value!r}, "
                    f"got {getattr(self, name)!r}",
                )
        if self.rotary_head_dim < 2 or self.rotary_head_dim % 2:
            yield _of(
                "rotary_head_dim",
                f"latent attention turns pairs: model.rotary_head_dim = {self.rotary_head_dim} must be even",
            )

    def _expert_faults(self) -> Iterator[Contradiction]:
        if not self.n_experts:
            return
        groups, chosen = self.n_expert_groups, self.expert_groups_per_token
        if not 1 <= self.experts_per_token <= self.n_experts:
            yield _of(
                "experts_per_token n_experts",
                f"model.experts_per_token must lie between 1 and model.n_experts = {self.n_experts}, "
                f"got {self.experts_per_token}",
            )
        if self.bias:
            yield _of("bias n_experts", "experts have no biases here: set model.bias = false")
        if self.router != "sigmoid" and (groups > 1 or self.router_bias_speed):
            yield _of(
                "router n_expert_groups router_bias_speed",
                f"groups of experts and a bias that moves belong to model.router = 'sigmoid', got '{self.router}'",
            )
        size, rest = divmod(self.n_experts, groups)
        if rest or (groups > 1 and size < 2):
            yield _of(
                "n_experts n_expert_groups",
                f"model.n_experts = {self.n_experts} are not model.n_expert_groups = {groups} of two or more",
            )
        elif groups > 1 and not (chosen <= groups and chosen * size >= self.experts_per_token):
            yield _of(
                "expert_groups_per_token n_expert_groups experts_per_token",
                f"model.expert_groups_per_token = {chosen} of {groups} groups of {size} cannot give "
                f"model.experts_per_token = {self.experts_per_token}",
            )


def _of(names: str, words: str) -> Contradiction:
    return Contradiction(tuple(f"model.{name}" for name in names.split()), words)
