"""The parts that a decoder's configuration is made of; what each field means stands below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from weightdecay.declared.fields import CLOSED, Count, Number, Switch, Text, Then

AtLeast0 = Annotated[Number, Ge(0)]
Width = Annotated[Count, Ge(0)]
Probability = Annotated[Number, Interval(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The heads of every block, and what their scores look like."""

    __pydantic_config__ = CLOSED

    n_heads: Annotated[Count, Ge(1)]
    """Query heads, H."""
    n_kv_heads: Width = 0
    """Key and value heads, K: as many as query heads is multi-head, fewer is grouped-query, 1 multi-query attention; 0
    is as many."""
    head_dim: Width = 0
    """Width of a head, E; 0 is d_model/n_heads."""
    qk_norm: Literal["none", "head", "all_heads"] = "none"
    """Norm of queries and keys: none, of each head, or of all heads together."""
    rotary_base: Annotated[Number, Gt(0)] = 10_000.0
    """θ of the rotary frequencies."""
    rotary_fraction: Annotated[Number, Interval(gt=0, le=1)] = 1.0
    """Part of each head that turns."""
    window: Width = 0
    """Positions that a windowed layer sees, itself included; 0 is all."""
    window_pattern: Text = "S"
    """A letter a layer, repeated: S sees `window` positions, L all. GPT-3's is `LS`."""
    scale: AtLeast0 = 0.0
    """Of the scores; 0 is one over the root of a query's width."""
    softcap: AtLeast0 = 0.0
    """c in c·tanh(score/c); 0 does not cap."""


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention: keys and values, and queries if asked for, are made of narrow latents.

    `attention.head_dim` is then the part of a head that does not turn.
    """

    __pydantic_config__ = CLOSED

    kv_rank: Width = 0
    """Width of the latent that keys and values are made of; 0 is that they have projections of their own."""
    rotary_head_dim: Width = 0
    """Width of the part of a head that turns; its key is shared by all heads."""
    q_rank: Width = 0
    """Width of the latent that queries are made of; 0 is that they come from the stream itself."""
    value_head_dim: Width = 0
    """Width of a head's values; 0 is `attention.head_dim`."""
    norm_eps: AtLeast0 = 0.0
    """ε of the latents' norms; 0 is `norms.eps`."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts in the place of a block's feed-forward part; `d_ff` is then each expert's width."""

    __pydantic_config__ = CLOSED

    n_experts: Width = 0
    """Experts that a token can be sent to, X; 0 is a dense feed-forward part."""
    per_token: Annotated[Count, Ge(1)] = 2
    """Those that each token is sent to, C."""
    n_shared: Width = 0
    """Experts of every token, beside the chosen ones."""
    n_dense_layers: Width = 0
    """First blocks without experts."""
    d_ff_dense: Width = 0
    """Width of their feed-forward part; 0 is `d_ff`."""
    router: Literal["softmax_of_chosen", "softmax_of_all", "sigmoid"] = "softmax_of_chosen"
    """How chosen experts are weighted: softmax_of_chosen (Mixtral), softmax_of_all (Grok-1) or sigmoid over its sum
    (DeepSeek-V3), which has a bias that decides who is chosen."""
    router_scale: Annotated[Number, Gt(0)] = 1.0
    """Factor of those weights."""
    n_groups: Annotated[Count, Ge(1)] = 1
    """Groups of equal size that the experts stand in."""
    groups_per_token: Annotated[Count, Ge(1)] = 1
    """A token is sent to experts of so many of them, the best."""


@dataclass(frozen=True, kw_only=True)
class NormsConfig:
    """Which norms a decoder has, and where a block has them.

    before and after: none → pre-norm; no, sum → post-norm (then the decoder has no last norm); before and after:
    branch → sandwich; after: branch alone → OLMo 2.
    """

    __pydantic_config__ = CLOSED

    kind: Literal["layernorm", "rmsnorm", "rmsnorm_unit_offset", "rmsnorm_without_gain"] = "layernorm"
    """layernorm (a gain, and a bias if `bias`), rmsnorm (a gain), rmsnorm_unit_offset (1 + w, w from 0) or
    rmsnorm_without_gain."""
    eps: Annotated[Number, Gt(0)] = 1e-5
    """Added to the variance or mean square."""
    before: Switch = True
    """Whether each branch's input is normed."""
    after: Literal["none", "branch", "sum"] = "none"
    """What is normed behind a branch: nothing, its output, or the sum of its output and the stream."""
    embedding: Switch = False
    """Whether a norm follows the embedding."""


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Learned mixtures of the residual stream with the embeddings, as nanochat has them."""

    __pydantic_config__ = CLOSED

    value_gate_inputs: Width = 0
    """Features of its input by which a layer gates a table of its own that is added to its values, every second layer
    counted from the last (ResFormer); 0 is no such tables."""
    value_gate_max: AtLeast0 = 1.0
    """What that gate, a sigmoid, is multiplied by."""
    smear_inputs: Width = 0
    """Features of a token's embedding that gate how much of the one before is added to it; 0 is none."""
    residual_scale_first: Number = 0.0
    """Of the learned factors of the stream before each block, the first block's at the start; 0 is that there are
    none."""
    residual_scale_last: Number = 0.0
    """The last block's at the start."""
    input_scale_first: Number = 0.0
    """Of the learned factors of the embeddings that are then added again, the first block's at the start."""
    input_scale_last: Number = 0.0
    """The last block's at the start."""
    backout_scale: Number = 0.0
    """At the start, of a learned factor by which the stream of the middle is taken off the last; 0 is that there is
    none."""
    gate_init_max: AtLeast0 = 0.0
    """Gates of values and of the token before start between 0 and this; 0 is as other matrices."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """From where the weights start."""

    __pydantic_config__ = CLOSED

    kind: Literal["normal", "truncated", "fan_in", "fan_in_uniform", "small"] = "normal"
    """normal, N(0, std²); truncated, the same without what lies beyond three deviations; fan_in, N(0, 1/inputs), for
    weight matrices; fan_in_uniform, of the same deviation between ±√(3/inputs); or small, N(0, 2/(5·d_model)) (Nguyen &
    Salazar 2019, arXiv:1910.05895)."""
    std: Annotated[Number, Gt(0)] = 0.02
    """Standard deviation of every weight matrix, under normal and truncated."""
    embedding_std: AtLeast0 = 0.0
    """Of the embedding's; 0 is `std`, or what small gives."""
    position_std: AtLeast0 = 0.0
    """Of the learned positions'; 0 is the embedding's."""
    head_std: AtLeast0 = 0.0
    """Of an untied head's; 0 is that of the other matrices."""
    residual: Literal["plain", "scaled", "zero", "wang"] = "scaled"
    """In the layers that write to the residual stream: scaled divides by √(2·n_layers), zero starts at 0, wang at a
    deviation of 2/(n_layers·√d_model) (GPT-NeoX)."""
    up_scale: AtLeast0 = 1.0
    """Factor of the feed-forward part's first matrix."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What training sees and the function from tokens to logits does not."""

    __pydantic_config__ = CLOSED

    dropout: Probability = 0.0
    """On attention weights and on each branch's output."""
    embedding_dropout: Switch = True
    """Whether it also acts on the embedding's output."""
    stochastic_depth: Probability = 0.0
    """Probability of skipping the last block's branches; earlier blocks less, linearly."""
    z_loss: AtLeast0 = 0.0
    """Factor of mean (log Σ exp logits)², added to the loss."""
    load_balancing: AtLeast0 = 0.0
    """Factor of the loss that spreads tokens over the experts."""
    balance_over: Literal["batch", "sequence"] = "batch"
    """What that loss spreads evenly: the tokens of a batch, or of each sequence."""
    router_bias_speed: AtLeast0 = 0.0
    """How far a step moves the bias of a sigmoid router; 0 leaves it."""
    router_bias_update: Literal["sign", "centred_sign"] = "sign"
    """By the sign of each expert's lack of tokens, or by the centred sign, less its mean (Moonlight)."""
    router_bias_tokens: AtLeast0 = 0.0
    """Seen in training after which the bias stays; 0 is never."""


def _absent_without(*names: str) -> Then:
    """A part in which all of these are 0 is not there."""
    return Then(lambda part: part if part is not None and any(getattr(part, name) for name in names) else None)


Latent = Annotated[LatentConfig | None, _absent_without("kv_rank", "q_rank", "rotary_head_dim", "value_head_dim")]
Experts = Annotated[ExpertsConfig | None, _absent_without("n_experts")]
Mixing = Annotated[
    MixingConfig | None,
    _absent_without(
        "value_gate_inputs", "smear_inputs", "residual_scale_first", "residual_scale_last", "input_scale_first",
        "input_scale_last", "backout_scale",
    ),
]  # fmt: skip
