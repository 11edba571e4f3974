"""What a training run can be told: every setting once, with its type, its range, its choices and its words.

A recipe supplies most of the values, a file, flags and `--set` the rest; `TrainConfig.from_values` reads them, and
finds all that is wrong with them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Lt

from weightdecay.declared.fields import (
    CLOSED,
    Consistent,
    Contradiction,
    Count,
    Declared,
    Flag,
    Number,
    Path,
    Paths,
    Rows,
    Seed,
    Switch,
    Text,
    leaves,
)
from weightdecay.declared.reading import Fault, ReadError, attempt
from weightdecay.declared.values import nested, pairs
from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.models.config import ModelConfig
from weightdecay.recipes.moved import as_spelt_now
from weightdecay.recipes.rows import (
    AtLeast0,
    Beta,
    Factor,
    GradClipChange,
    RampPoint,
    RoleOf,
    RuleOf,
    Share,
    Stack,
    Stage,
)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What to train on."""

    __pydantic_config__ = CLOSED

    sources: Annotated[Paths, Flag("PATH", name="data")] = ()
    """Files, folders, globs, hf:NAME, or one directory of `data prepare`; none is the standard library's sources."""
    tokenizer: Annotated[Path, Flag("NAME")] = "bpe:4096"
    """byte, bpe:N, tiktoken:NAME, or a tokenizer.json."""
    text_key: Annotated[Text, Flag("NAME")] = "text"
    """The field that holds the text, in JSON lines and tables; a.b looks into objects."""
    missing_text: Annotated[Literal["refuse", "skip"], Flag()] = "refuse"
    """refuse stops at a row without text, skip counts it and goes on."""
    separator: Annotated[Text, Flag("TEXT")] = ""
    """What ends a document within a text, like <|endoftext|>; without it a file is one document."""
    encoding_errors: Annotated[Literal["strict", "replace"], Flag()] = "strict"
    """strict stops at a byte that is not UTF-8, replace counts and goes on."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How a step updates and decays."""

    __pydantic_config__ = CLOSED

    name: Literal["adafactor", "adam_l2", "adamw", "lion", "muon", "sgdw"]
    """Which optimizer."""
    lr: Annotated[AtLeast0, Flag("X")]
    """Peak learning rate η."""
    weight_decay: Annotated[AtLeast0 | Literal["auto"], Flag("X")]
    """λ under the rule, or auto: a law's where one holds, else what the nearest published runs used."""
    weight_decay_source: Text = ""
    """Why auto took this λ; written by the program."""
    parametrization: Literal["standard", "mup"] = "standard"
    """mup says that lr, its multipliers and the initialisation given follow the width by µP: auto needs to know."""
    beta1: Share
    """β₁; of `muon`, of the AdamW beside it."""
    beta2: Share
    """β₂; of `muon`, of the AdamW beside it."""
    eps: AtLeast0
    """ε, added to the root of the mean square."""
    rule: Annotated[Text, Flag("NAME")] = "decoupled"
    """What λ means in one step: decoupled, independent, fixed, l2, lr_squared, corrected, cautious …"""
    policy: Annotated[Path, Flag("NAME")] = "default"
    """Which tensors decay: default, all, none, matrices, no-embeddings, olmo2, qwen3-next, another framework's
    (nanogpt, timm …), or a TOML file; see `weightdecay plan`."""
    grad_clip: AtLeast0 = 0.0
    """Largest norm of the whole gradient; 0 does not clip."""
    momentum: Share = 0.95
    """Of `muon` and `sgdw`."""
    muon_scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Of Muon's update."""
    muon_orthogonalisation: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    """How Muon makes a matrix orthogonal."""
    muon_equal_rows: Switch = False
    """Whether rows are brought to one norm before it."""
    muon_beta2: Share = 0.0
    """β₂ of the mean squares by which neurons are brought to one size after it; 0 leaves them."""
    muon_stacked: Rows[Stack] = ()
    """Tensors whose matrices are each made orthogonal for themselves."""
    adamw_rule: Text = ""
    """Rule of the tensors that AdamW updates beside Muon; empty is `rule`."""
    beta1_overrides: Rows[Beta] = ()
    """β₁ of some of these tensors."""
    beta2_overrides: Rows[Beta] = ()
    """β₂ of some of these tensors."""
    beta2_decay: Annotated[Number, Lt(0)] = -0.8
    """c in Adafactor's β₂ = 1 − t^c."""
    factored: Switch = True
    """Whether Adafactor keeps row and column means of g² instead of g² itself."""
    lr_multipliers: Rows[Factor] = ()
    """Factors of η."""
    weight_decay_multipliers: Rows[Factor] = ()
    """Factors of λ, in place of the policy's."""
    role_overrides: Rows[RoleOf] = ()
    """What some tensors are taken for, by the policy and by Muon, which takes what is a `linear weight`."""
    rule_overrides: Rows[RuleOf] = ()
    """Rules of some tensors, in place of `rule`: `towards_one` for gains, say; not of `muon`."""

    @property
    def peak_weight_decay(self) -> float:
        """λ as a number.

        Raises:
            ConfigError: it is `auto`, which a run's length decides.
        """
        if self.weight_decay == "auto":
            raise ConfigError("optimizer.weight_decay is auto, which only a run of known length makes a number")
        return self.weight_decay


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings(Consistent):
    """How the learning rate, λ, clipping and momentum move over the run."""

    __pydantic_config__ = CLOSED

    shape: Literal["constant", "cosine", "inverse_sqrt", "linear", "stages", "warmup_stable_decay"]
    """Of the learning rate after the warm-up."""
    final_fraction: AtLeast0 = 0.0
    """Of the peak, where the descent ends."""
    warmup_steps: Annotated[Count, Ge(0)] = 0
    """Length of the linear rise in steps; it is given in one of three ways at most."""
    warmup_tokens: AtLeast0 = 0.0
    """Length of the linear rise in tokens."""
    warmup_fraction: Share = 0.0
    """Length of the linear rise as a part of the run."""
    decay_tokens: AtLeast0 = 0.0
    """Where the descent ends, counted from the start; 0 is the end of the run."""
    decay_fraction: Annotated[Number, Interval(ge=0, le=1)] = 0.2
    """Part of the run that `warmup_stable_decay` comes down in, along a straight line."""
    hold_steps: Annotated[Count, Ge(0)] = 0
    """How long `inverse_sqrt` stays at the peak; it then falls as √(hold/t)."""
    hold_fraction: Share = 0.0
    """The same as a part of the run."""
    stages: Rows[Stage] = ()
    """The pieces of `stages`, one after the other."""
    grad_clip_changes: Rows[GradClipChange] = ()
    """Other largest norms of the gradient; until the first, it is `optimizer.grad_clip`."""
    weight_decay_shape: Literal["constant", "cosine", "linear", "one_over_t"] = "constant"
    """How λ moves; `one_over_t` is λ·h/(t + h) at step t, h being `weight_decay_half_steps`."""
    weight_decay_half_steps: Annotated[Count, Ge(1)] = 1
    """After how many steps `one_over_t` has come to half of λ."""
    weight_decay_final_fraction: AtLeast0 = 0.0
    """Of λ, where it ends."""
    weight_decay_moves: Literal["all", "muon"] = "all"
    """Whose λ moves: of all tensors, or of those alone that Muon updates."""
    momentum_start: Share = 0.0
    """From where Muon's momentum rises to `optimizer.momentum`."""
    momentum_rise_steps: Annotated[Count, Ge(0)] = 0
    """How long that takes."""
    momentum_final: Share = 0.0
    """Where it ends, along a straight line over the last `decay_fraction` or what is left of it after the rise; 0 is
    that it stays."""

    def contradictions(self) -> Iterator[Contradiction]:
        warmups = [name for name in ("warmup_steps", "warmup_tokens", "warmup_fraction") if getattr(self, name)]
        if len(warmups) > 1:
            keys = tuple(f"schedule.{name}" for name in warmups)
            yield Contradiction(keys, f"one warm-up length, not {' and '.join(keys)}")
        if self.shape == "stages" and not self.stages:
            yield Contradiction(("schedule.shape", "schedule.stages"), "schedule.shape 'stages' needs schedule.stages")
        key = "schedule.grad_clip_changes"
        yield from _rising(key, [change.tokens for change in self.grad_clip_changes])
        if self.grad_clip_changes and self.grad_clip_changes[0].tokens == 0:
            yield Contradiction((key,), f"{key} must come after the start, whose norm is optimizer.grad_clip")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Consistent):
    """How long, how fast, and what is written."""

    __pydantic_config__ = CLOSED

    steps: Annotated[Count, Ge(0), Flag("N")] = 0
    """Length of the run in optimizer steps."""
    tokens: Annotated[AtLeast0, Flag("N")] = 0.0
    """Length of the run in tokens, instead of steps."""
    batch_tokens: Annotated[Count, Ge(1), Flag("N")]
    """Tokens in one optimizer step, rounded to whole sequences."""
    batch_ramp: Rows[RampPoint] = ()
    """How the batch grows, from 0 tokens on; it ends at `batch_tokens`."""
    batch_ramp_shape: Literal["linear", "steps"] = "steps"
    """From row to row in steps, or along a straight line between them."""
    batch_ramp_increment: Annotated[Count, Ge(0)] = 0
    """A linear ramp goes up by so many tokens at a time; 0 is sequence by sequence."""
    micro_batch_tokens: Annotated[Count, Ge(0)] = 0
    """Tokens in one forward pass; 0 lets the trainer choose."""
    dtype: Annotated[Literal["auto", "bfloat16", "float32"], Flag()] = "auto"
    """Of the matrix products; parameters, optimizer and checkpoints are float32. auto: bfloat16 where it is faster."""
    arithmetic: Literal["working", "autocast"] = "working"
    """In bfloat16: parameters rounded once a step and a stream of bfloat16, or torch's autocast and one of float32."""
    activation_checkpointing: Switch = False
    """Keep each block's input alone and compute the block anew on the way back: less memory, a third more time."""
    on_nonfinite: Literal["skip", "stop"] = "stop"
    """At a gradient that is not finite: stop before the update, or skip the step and count."""
    compile: Annotated[Switch, Flag()] = False
    """torch.compile each block."""
    seed: Annotated[Seed, Flag("N")] = 0
    """Decides weights, data order and dropout."""
    out: Annotated[Path, Flag("DIR")] = ""
    """Run directory; by default a new one under runs/."""
    log_every: Annotated[Count, Ge(0)] = 0
    """In steps; 0 lets the trainer choose."""
    eval_every: Annotated[Count, Ge(0)] = 0
    """In steps; 0 lets the trainer choose."""
    eval_tokens: Annotated[Count, Ge(1)] = 1_048_576
    """Held-out tokens in one evaluation at most."""
    checkpoint_every: Annotated[Count, Ge(0), Flag("N")] = 0
    """In steps; the last step is always saved; 0 lets the trainer choose."""
    keep: Annotated[Count, Ge(1), Flag("N")] = 2
    """Newest checkpoints kept, beside the best."""
    monitor: Annotated[Switch, Flag()] = True
    """Whether norms, rotation and realised decay are measured and put beside what theory predicts."""
    monitor_every: Annotated[Count, Ge(1)] = 20
    """In steps, of which each looks at as many tensors as monitor_bytes holds."""
    monitor_bytes: Annotated[Count, Ge(0)] = 0
    """Bytes of weights that the monitor holds from before a step to after it; 0 is an eighth of them, 4 to 64 MiB."""
    init_from: Annotated[Path, Flag("DIR")] = ""
    """A run, a checkpoint or a Hugging Face directory whose weights to start from."""
    nproc: Annotated[Count, Ge(1), Flag("N")] = 1
    """Processes on this machine."""

    def contradictions(self) -> Iterator[Contradiction]:
        length = ("run.steps", "run.tokens")
        if self.steps and self.tokens:
            yield Contradiction(length, "the run's length twice: give either --steps or --tokens")
        if not self.steps and not self.tokens:
            yield Contradiction(length, "the run's length is missing: give --steps or --tokens, at least 1")
        key = "run.batch_ramp"
        yield from _rising(key, [point.tokens for point in self.batch_ramp])
        if self.batch_ramp and self.batch_ramp[0].tokens != 0:
            yield Contradiction((key,), f"{key} must begin at 0 tokens, not at {self.batch_ramp[0].tokens:g}")


def _rising(key: str, tokens: list[float]) -> Iterator[Contradiction]:
    if any(later <= earlier for earlier, later in pairwise(tokens)):
        yield Contradiction((key,), f"{key} must go on at rising numbers of tokens")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run.

        from weightdecay import TrainConfig, recipe

        values = recipe("gpt3:nano").config().values()
        config = TrainConfig.from_values(values | {"model.n_layers": 4, "optimizer.lr": "6e-3"})

    Each value has a key, `section.name`.
    """

    __pydantic_config__ = CLOSED

    model: ModelConfig
    data: DataSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    run: RunSettings
    recipe: Text = ""
    """Where the values came from, for people; nothing is read from it again."""
    scaling: Text = ""
    """How a scaled-down size was scaled; said before training."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, recipe: str = "", scaling: str = "") -> TrainConfig:
        """Read `section.key` pairs; values may be text, as flags have it, and older spellings of them.

        Raises:
            ReadError: every unknown or missing key, wrong type, value out of range, and contradiction, at once.
        """
        empty: dict[str, Any] = {section: {} for section in SECTIONS}
        return _read(nested(as_spelt_now(values), empty) | {"recipe": recipe, "scaling": scaling})

    def values(self) -> dict[str, Any]:
        """The same as `section.key` pairs, as TOML and JSON have them: what `from_values` reads."""
        return {key: value for key, value in pairs(self).items() if "." in key}

    def resolved(self, **changes: Any) -> TrainConfig:
        """The same with some `section__key` values that the program itself has worked out: nothing is read anew."""
        sections: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            section, _, name = key.partition("__")
            sections.setdefault(section, {})[name] = value
        return replace(self, **{name: replace(getattr(self, name), **given) for name, given in sections.items()})

    def replace(self, **changes: Any) -> TrainConfig:
        """The same with some `section__key` values changed; only the sections that change are read anew."""
        given = as_spelt_now({key.replace("__", ".", 1): value for key, value in changes.items()})
        changed = {key.partition(".")[0] for key in given}
        kept = {key: value for key, value in self.values().items() if key.partition(".")[0] in changed}
        sections = {name: getattr(self, name) for name in SECTIONS if name not in changed}
        return _read(nested(kept | given, sections) | {"recipe": self.recipe, "scaling": self.scaling})


SECTIONS = ("model", "data", "optimizer", "schedule", "run")


def known_keys() -> Mapping[str, Declared]:
    """Every `section.key` that a run has."""
    return {key: found for key, found in leaves(TrainConfig).items() if "." in key}


def faults_of(values: Mapping[str, Any]) -> list[Fault]:
    """What keeps `section.key` pairs from being a run, each with its place."""
    return _attempt(nested(as_spelt_now(values), {section: {} for section in SECTIONS}))[1]


def faults_of_some(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with some values of a run by themselves, before it is known what completes them."""
    own = as_spelt_now(values)
    return [fault.words for fault in faults_of(own) if fault.kind in ("unknown", "wrong") or fault.about & own.keys()]


def as_keywords(call: str, given: Mapping[str, Any]) -> list[str]:
    """A fault for each setting that was given by keyword to a call that takes none, with how it is given.

    Args:
        call: as its caller knows it, `recipe()`.
    """
    faults = []
    for name, value in given.items():
        keys = [key for key in known_keys() if name.replace("__", ".", 1) in (key, key.rpartition(".")[2])]
        how = (
            f"give it by .config({{'{keys[0]}': {value!r}}})"
            if len(keys) == 1
            else f"and there is no setting '{name}': {did_you_mean(name, keys or known_keys())}"
        )
        faults.append(f"{call} takes no '{name}', {how}")
    return faults


def _read(tables: Mapping[str, Any]) -> TrainConfig:
    config, faults = _attempt(tables)
    if config is None:
        raise ReadError(faults)
    return config


def _attempt(tables: Mapping[str, Any]) -> tuple[TrainConfig | None, list[Fault]]:
    config, faults = attempt(TrainConfig, tables)
    return config, [
        replace(fault, words=f"{fault.words}: a recipe or --set {fault.key}=… must give it")
        if fault.kind == "missing"
        else fault
        for fault in faults
    ]
