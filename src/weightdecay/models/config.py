"""What a decoder is made of: one frozen value from which it is built and which a checkpoint carries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from weightdecay.declared.fields import CLOSED, Consistent, Contradiction, Count, Flag, Number, Switch, leaves
from weightdecay.declared.reading import read
from weightdecay.declared.values import flat, nested, plain
from weightdecay.models.flat import FLAT, PLACEMENT, PLACEMENTS, in_parts
from weightdecay.models.parts import (
    AtLeast0,
    AttentionConfig,
    Experts,
    ExpertsConfig,
    InitConfig,
    Latent,
    LatentConfig,
    Mixing,
    MixingConfig,
    NormsConfig,
    TrainingConfig,
    Width,
)


@dataclass(frozen=True, kw_only=True, init=False)
class ModelConfig(Consistent):
    """The shape of one decoder.

        from weightdecay import ModelConfig
        from weightdecay.models.parts import AttentionConfig, TrainingConfig

        ModelConfig(
            vocab_size=50257, context=1024, n_layers=12, d_model=768,
            attention=AttentionConfig(n_heads=12), training=TrainingConfig(dropout=0.1),
        )
        ModelConfig(vocab_size=50257, context=1024, n_layers=12, d_model=768, n_heads=12, dropout=0.1)  # the same

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
    d_embedding: Width = 0
    """Width of the embedding; a narrower one than D is projected in, and out before the head (OPT 350M); 0 is D."""
    d_ff: Width = 0
    """Width inside the feed-forward part, F; 0 is 4·D."""
    feedforward: Literal["gelu", "gelu_tanh", "relu", "relu_squared", "swiglu", "geglu", "geglu_tanh"] = "gelu_tanh"
    """gelu, gelu_tanh (GPT-2's approximation), relu, relu_squared, or gated: swiglu, geglu, geglu_tanh."""
    branches: Literal["sequential", "parallel", "parallel_one_norm"] = "sequential"
    """sequential, feed-forward after attention; parallel, both of the block's input; or parallel_one_norm, with one
    norm for both."""
    positions: Literal["learned", "rotary", "alibi", "relative"] = "learned"
    """learned, a table of `context` rows; rotary; alibi, a slope of scores over distance; or relative, projected sines
    and cosines of the distance (Transformer-XL)."""
    bias: Switch = True
    """Whether linear layers and layer norms have biases."""
    tied_head: Switch = True
    """Whether the output head is the embedding matrix."""
    embedding_multiplier: Number = 1.0
    """Factor of the embedding's output."""
    logit_multiplier: Annotated[Number, Gt(0)] = 1.0
    """Factor of the logits."""
    logit_softcap: AtLeast0 = 0.0
    """c in c·tanh(logit/c); 0 does not cap."""

    attention: AttentionConfig
    latent: Latent = None
    experts: Experts = None
    norms: NormsConfig = field(default_factory=NormsConfig)
    mixing: Mixing = None
    initialisation: InitConfig = field(default_factory=InitConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __init__(self, **values: Any) -> None:
        """By fields, parts as their dataclasses or as tables; or by the names of `models.flat`."""
        vars(self).update(vars(read(ModelConfig, nested(in_parts(flat(plain(values)))), "model")))

    def __post_init__(self) -> None:
        attention = self.attention
        derived = replace(
            attention,
            n_kv_heads=attention.n_kv_heads or attention.n_heads,
            head_dim=attention.head_dim or self.d_model // attention.n_heads,
        )
        vars(self).update(attention=derived, d_ff=self.d_ff or 4 * self.d_model)
        super().__post_init__()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What an old name stood for."""
            if name == PLACEMENT:
                here = {path: getattr(self.norms, path.partition(".")[2]) for path in PLACEMENTS["pre"]}
                return next((word for word, placed in PLACEMENTS.items() if placed == here), None)
            if name not in FLAT:
                raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
            return self.at(FLAT[name])

    def at(self, path: str) -> Any:
        """The value at a path; in a part that is not there, the path's default."""
        part, _, name = path.rpartition(".")
        inside = getattr(self, part) if part else self
        return leaves(ModelConfig)[path].default if inside is None else getattr(inside, name)

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
        pattern = self.attention.window_pattern
        return self.attention.window if pattern[layer % len(pattern)] == "S" else 0

    def replace(self, **changes: Any) -> ModelConfig:
        """The same configuration with some values changed."""
        gone = {name for name, value in changes.items() if value is None}
        kept = {path: value for path, value in flat(plain(self)).items() if path.partition(".")[0] not in gone}
        return type(self)(**kept | in_parts(flat(plain(changes))))

    def as_function(self) -> ModelConfig:
        """The same function from tokens to logits: what only training sees, and what has no effect, at its default."""
        attention, plain_attention = self.attention, AttentionConfig(n_heads=1)
        unused = ["window_pattern"] if not attention.window else []
        unused += ["rotary_base"] if self.positions != "rotary" else []
        unused += ["rotary_fraction"] if self.positions != "rotary" or self.latent else []
        return replace(
            self,
            d_embedding=0 if self.d_embedding == self.d_model else self.d_embedding,
            attention=replace(attention, **{name: getattr(plain_attention, name) for name in unused}),
            latent=self.latent and self._latent_as_function(self.latent),
            experts=self.experts and self._experts_as_function(self.experts),
            mixing=self.mixing and self._mixing_as_function(self.mixing),
            initialisation=InitConfig(),
            training=TrainingConfig(),
        )

    def _latent_as_function(self, latent: LatentConfig) -> LatentConfig:
        return replace(
            latent,
            value_head_dim=latent.value_head_dim or self.attention.head_dim,
            norm_eps=latent.norm_eps or self.norms.eps,
        )

    def _experts_as_function(self, experts: ExpertsConfig) -> ExpertsConfig:
        return replace(
            experts,
            d_ff_dense=(experts.d_ff_dense or self.d_ff) if experts.n_dense_layers else 0,
            groups_per_token=1 if experts.n_groups == 1 else experts.groups_per_token,
        )

    def _mixing_as_function(self, mixing: MixingConfig) -> MixingConfig:
        return replace(
            mixing, gate_init_max=0.0, value_gate_max=mixing.value_gate_max if mixing.value_gate_inputs else 1.0
        )

    def contradictions(self) -> Iterator[Contradiction]:
        if self.attention.head_dim < 1:
            words = f"model.d_model = {self.d_model} has no room for model.attention.n_heads = {self.attention.n_heads}"
            yield _of("d_model attention.n_heads", words)
            return
        yield from self._attention_faults()
        if self.latent:
            yield from self._latent_faults(self.latent)
        if self.experts:
            yield from self._experts_faults(self.experts)
        if self.mixing:
            yield from self._mixing_faults(self.mixing)
        if self.branches != "sequential" and (not self.norms.before or self.norms.after != "none"):
            yield _of(
                "branches norms.before norms.after",
                f"parallel branches have their norms before them: model.branches = '{self.branches}' needs "
                "model.norms.before = true and model.norms.after = 'none'",
            )

    def _attention_faults(self) -> Iterator[Contradiction]:
        heads, kv_heads = self.attention.n_heads, self.attention.n_kv_heads
        if heads % kv_heads:
            yield _of(
                "attention.n_heads attention.n_kv_heads",
                f"model.attention.n_heads = {heads} is not a multiple of model.attention.n_kv_heads = {kv_heads}",
            )
        fraction, width = self.attention.rotary_fraction, self.attention.head_dim
        if self.positions == "rotary" and not self.latent and int(width * fraction) % 2:
            yield _of(
                "attention.rotary_fraction attention.head_dim d_model attention.n_heads",
                f"rotary positions turn pairs: model.attention.rotary_fraction = {fraction:g} of "
                f"model.attention.head_dim = {width} must be even",
            )
        pattern = self.attention.window_pattern
        if not pattern or set(pattern) - {"S", "L"}:
            yield _of(
                "attention.window_pattern",
                f"model.attention.window_pattern = '{pattern}': must be made of S (window) and L (all)",
            )

    def _latent_faults(self, latent: LatentConfig) -> Iterator[Contradiction]:
        if not latent.kv_rank:
            others = {name: getattr(latent, name) for name in ("q_rank", "rotary_head_dim", "value_head_dim")}
            asked = ", ".join(f"model.latent.{name} = {value}" for name, value in others.items() if value)
            yield _of(
                " ".join(f"latent.{name}" for name in ("kv_rank", *others)),
                f"{asked}: of latent attention alone, which model.latent.kv_rank asks for",
            )
            return
        if not latent.rotary_head_dim or latent.rotary_head_dim % 2:
            yield _of(
                "latent.rotary_head_dim",
                f"latent attention turns pairs: model.latent.rotary_head_dim = {latent.rotary_head_dim} must be even, "
                "and at least 2",
            )
        found = {
            "positions": (self.positions, "rotary"),
            "attention.qk_norm": (self.attention.qk_norm, "none"),
            "bias": (self.bias, False),
            "attention.n_kv_heads": (self.attention.n_kv_heads, self.attention.n_heads),
            "mixing.value_gate_inputs": (self.mixing.value_gate_inputs if self.mixing else 0, 0),
        }
        for name, (value, wanted) in found.items():
            if value != wanted:
                yield _of(
                    f"{name} latent.kv_rank",
                    f"latent attention (model.latent.kv_rank = {latent.kv_rank}) needs model.{name} = {wanted!r}, "
                    f"got {value!r}",
                )

    def _experts_faults(self, experts: ExpertsConfig) -> Iterator[Contradiction]:
        each, groups, chosen = experts.n_experts, experts.n_groups, experts.groups_per_token
        if experts.per_token > each:
            yield _of(
                "experts.per_token experts.n_experts",
                f"model.experts.per_token must lie between 1 and model.experts.n_experts = {each}, "
                f"got {experts.per_token}",
            )
        if self.bias:
            yield _of("bias experts.n_experts", "experts have no biases here: set model.bias = false")
        if experts.router != "sigmoid" and (groups > 1 or self.training.router_bias_speed):
            yield _of(
                "experts.router experts.n_groups training.router_bias_speed",
                "groups of experts and a bias that moves belong to model.experts.router = 'sigmoid', got "
                f"'{experts.router}'",
            )
        size, rest = divmod(each, groups)
        if rest or (groups > 1 and size < 2):
            yield _of(
                "experts.n_experts experts.n_groups",
                f"model.experts.n_experts = {each} are not model.experts.n_groups = {groups} of two or more",
            )
        elif groups > 1 and not (chosen <= groups and chosen * size >= experts.per_token):
            yield _of(
                "experts.groups_per_token experts.n_groups experts.per_token",
                f"model.experts.groups_per_token = {chosen} of {groups} groups of {size} cannot give "
                f"model.experts.per_token = {experts.per_token}",
            )

    def _mixing_faults(self, mixing: MixingConfig) -> Iterator[Contradiction]:
        for name in ("value_gate_inputs", "smear_inputs"):
            if (value := getattr(mixing, name)) > self.d_model:
                yield _of(
                    f"mixing.{name} d_model",
                    f"model.mixing.{name} = {value} is more than model.d_model = {self.d_model}",
                )
        if not mixing.residual_scale_first and (
            mixing.residual_scale_last or mixing.input_scale_first or mixing.input_scale_last
        ):
            yield _of(
                "mixing.residual_scale_first mixing.residual_scale_last mixing.input_scale_first "
                "mixing.input_scale_last",
                "scales of the stream begin with model.mixing.residual_scale_first: give it, 1 changes nothing",
            )


def _of(names: str, words: str) -> Contradiction:
    return Contradiction(tuple(f"model.{name}" for name in names.split()), words)
