"""What a training run can be told, as frozen values; read from `section.key = value` pairs, all faults at once.

A recipe supplies most of the pairs, the user's flags and `--set` the rest. Values may come as text.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.models.config import ModelConfig
from weightdecay.recipes.limits import out_of_range


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What to train on.

    Args:
        sources: files, folders, globs, `hf:NAME`, or one prepared directory; empty means the standard library.
        tokenizer: `byte`, `bpe:N`, `tiktoken:NAME` or a tokenizer.json.
        text_key: the field of a JSON line or table row that holds the text.
        encoding_errors: `strict` stops at the first byte that is not UTF-8, `replace` counts and replaces.
    """

    sources: tuple[str, ...] = ()
    tokenizer: str = "bpe:4096"
    text_key: str = "text"
    encoding_errors: str = "strict"


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How a step updates and decays.

    Args:
        name: one of `limits.OPTIMIZERS`.
        lr: peak learning rate η.
        weight_decay: λ; NaN stands for `auto` until the run's length is known.
        rule: what λ means in one step.
        policy: which tensors decay.
        grad_clip: largest norm of the whole gradient; 0 does not clip.
        momentum: of `muon` and `sgdw`; `beta1` and `beta2` are then AdamW's beside Muon.
        muon_scale: of Muon's update: `match_rms_adamw` or `original`.
        muon_orthogonalisation: `newton_schulz` or `polar_express`.
        muon_equal_rows: whether rows are brought to one norm before it.
        muon_beta2: β₂ of the mean squares by which neurons are brought to one size after it; 0 leaves them.
        muon_stacked: `PATTERN=N` for tensors of N matrices, one above the other, that are each made orthogonal.
        adamw_rule: of the tensors that AdamW updates beside Muon; empty means `rule`.
        beta1_overrides, beta2_overrides: `PATTERN=BETA` for some of these tensors.
        beta2_decay: c in Adafactor's β2 = 1 − t^c.
        factored: whether Adafactor keeps row and column means of g² instead of g² itself.
        lr_multipliers, weight_decay_multipliers: `PATTERN=FACTOR` for the tensors whose name the pattern is found in.
        role_overrides: `PATTERN=ROLE`: what such tensors are taken for, by the policy and by Muon, which takes what is
            a `linear weight`.
    """

    name: str
    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    rule: str = "decoupled"
    policy: str = "default"
    grad_clip: float = 0.0
    momentum: float = 0.95
    muon_scale: str = "match_rms_adamw"
    muon_orthogonalisation: str = "newton_schulz"
    muon_equal_rows: bool = False
    muon_beta2: float = 0.0
    muon_stacked: tuple[str, ...] = ()
    adamw_rule: str = ""
    beta1_overrides: tuple[str, ...] = ()
    beta2_overrides: tuple[str, ...] = ()
    beta2_decay: float = -0.8
    factored: bool = True
    lr_multipliers: tuple[str, ...] = ()
    weight_decay_multipliers: tuple[str, ...] = ()
    role_overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """How the learning rate moves over the run.

    Args:
        shape: after the warm-up: `constant`, `cosine`, `linear`, `inverse_sqrt`, `stages` or `warmup_stable_decay`.
        final_fraction: of the peak, where the descent ends.
        warmup_steps, warmup_tokens, warmup_fraction: length of the linear rise; at most one of them is set.
        decay_tokens: where the descent ends, counted from the start; 0 means at the end of the run.
        decay_fraction: part of the run that `warmup_stable_decay` comes down in, along a straight line.
        hold_steps, hold_fraction: how long `inverse_sqrt` stays at the peak; it then falls as √(hold/t).
        grad_clip_changes: `TOKENS:NORM`: the largest norm of the gradient once so many tokens were seen; until the
            first, it is `optimizer.grad_clip`.
        stages: `SHAPE to FRACTION over TOKENS`, one after the other: constant, cosine or linear, to a fraction of the
            peak.
        weight_decay_shape: how λ moves: `constant`, `cosine` or `linear`.
        weight_decay_final_fraction: of λ, where it ends.
        weight_decay_moves: whose λ moves: of `all` tensors, or of those alone that `muon` updates.
        momentum_start, momentum_rise_steps: from where and how long Muon's momentum rises to `optimizer.momentum`.
        momentum_final: where it ends, along a straight line over the last `decay_fraction` or what is left of it after
            the rise; 0 means that it stays.
    """

    shape: str
    final_fraction: float = 0.0
    warmup_steps: int = 0
    warmup_tokens: float = 0.0
    warmup_fraction: float = 0.0
    decay_tokens: float = 0.0
    decay_fraction: float = 0.2
    hold_steps: int = 0
    hold_fraction: float = 0.0
    stages: tuple[str, ...] = ()
    grad_clip_changes: tuple[str, ...] = ()
    weight_decay_shape: str = "constant"
    weight_decay_final_fraction: float = 0.0
    weight_decay_moves: str = "all"
    momentum_start: float = 0.0
    momentum_rise_steps: int = 0
    momentum_final: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long, how fast, and what is written.

    Args:
        steps, tokens: length of the run; exactly one is set.
        batch_tokens: tokens in one optimizer step, rounded to whole sequences.
        batch_ramp: `TOKENS:BATCH_TOKENS`: how large the batch is once so many tokens were seen; ends at `batch_tokens`.
        batch_ramp_shape: `steps` from entry to entry, or `linear` between them.
        batch_ramp_increment: a linear ramp goes up by so many tokens at a time; 0 means sequence by sequence.
        micro_batch_tokens: tokens in one forward pass; 0 lets the trainer choose.
        dtype: `float32`, or `bfloat16` for autocast over float32 weights.
        on_nonfinite: at a gradient that is not finite: `stop` the run before the update, or `skip` the step and count.
        compile: torch.compile each block.
        out: run directory; empty picks a new one under runs/.
        log_every, eval_every, checkpoint_every: in steps; 0 lets the trainer choose.
        eval_tokens: held-out tokens in one evaluation at most.
        keep: newest checkpoints kept, beside the best.
        init_from: a run, a checkpoint or a Hugging Face directory whose weights to start from.
        nproc: processes on this machine.
    """

    steps: int = 0
    tokens: float = 0.0
    batch_tokens: int
    batch_ramp: tuple[str, ...] = ()
    batch_ramp_shape: str = "steps"
    batch_ramp_increment: int = 0
    micro_batch_tokens: int = 0
    dtype: str = "bfloat16"
    on_nonfinite: str = "stop"
    compile: bool = False
    seed: int = 0
    out: str = ""
    log_every: int = 0
    eval_every: int = 0
    eval_tokens: int = 1_048_576
    checkpoint_every: int = 0
    keep: int = 2
    init_from: str = ""
    nproc: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run.

        from weightdecay import TrainConfig, recipe

        values = recipe("gpt3:nano").config().values()
        config = TrainConfig.from_values(values | {"model.n_layers": 4, "optimizer.lr": "6e-3"})

    `recipe` names where the values came from, for people; nothing is read from it again.
    """

    model: ModelConfig
    data: DataSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    run: RunSettings
    recipe: str = ""
    scaling: str = field(default="", metadata={"why": "how a scaled-down size was scaled; said before training"})

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, recipe: str = "", scaling: str = "") -> TrainConfig:
        """Read `section.key` pairs.

        Raises:
            ConfigError: every unknown or missing key, wrong type and value out of range, at once.
        """
        read, faults = read_values(values)
        built: dict[str, Any] = {}
        for section, kind in SECTIONS.items():
            asked = {key.partition(".")[2] for key in values if key.startswith(section + ".")}
            given = {name: read[f"{section}.{name}"] for name in asked if f"{section}.{name}" in read}
            missing = sorted(_required(kind) - asked)
            faults += [
                f"{section}.{name} is missing: a recipe or --set {section}.{name}=… must give it" for name in missing
            ]
            if _required(kind) - given.keys():
                continue  # said above; the others of this section are still checked one by one
            try:
                built[section] = kind(**given)
            except ConfigError as error:
                faults += error.faults
        faults += out_of_range(read)
        if not any(read.get(key, 1) for key in ("run.steps", "run.tokens") if key in values):
            faults.append("the run's length is missing: give --steps or --tokens, at least 1")
        if faults:
            raise ConfigError(faults)
        return cls(**built, recipe=recipe, scaling=scaling)

    def values(self) -> dict[str, Any]:
        """The same as `section.key` pairs: what `from_values` reads."""
        return {
            f"{section}.{item.name}": getattr(getattr(self, section), item.name)
            for section, kind in SECTIONS.items()
            for item in dataclasses.fields(kind)
        }

    def replace(self, **changes: Any) -> TrainConfig:
        """The same with some `section__key` values changed, checked anew."""
        merged = self.values() | {key.replace("__", ".", 1): value for key, value in changes.items()}
        return type(self).from_values(merged, recipe=self.recipe, scaling=self.scaling)


SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "data": DataSettings,
    "optimizer": OptimizerSettings,
    "schedule": ScheduleSettings,
    "run": RunSettings,
}


@cache
def known_keys() -> dict[str, Any]:
    """Every `section.key` with its type."""
    return {
        f"{section}.{name}": hint
        for section, kind in SECTIONS.items()
        for name, hint in typing.get_type_hints(kind).items()
    }


def read_values(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Each value as its key's type, and a fault for each that cannot be."""
    read, faults = {}, []
    for key, value in values.items():
        if key not in known_keys():
            faults.append(f"unknown key '{key}': {did_you_mean(key, known_keys())}")
            continue
        try:
            read[key] = _as_type(value, known_keys()[key])
        except ValueError as error:
            faults.append(f"{key} = {value!r}: {error}")
    return read, faults


def _required(kind: type[Any]) -> set[str]:
    return {
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }


def _as_type(value: Any, kind: Any) -> Any:
    if isinstance(kind, types.GenericAlias):  # tuple[str, ...]
        return _texts(value)
    if kind is str:
        return _text(value) if isinstance(value, str | Path) else _refuse("text")
    if kind is bool:
        if isinstance(value, bool):
            return value
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        return known[str(value).lower()] if str(value).lower() in known else _refuse("true or false")
    if isinstance(value, bool):
        return _refuse("a number")
    if kind is float and value == "auto":
        return math.nan
    try:
        number = float(str(value).replace("_", ""))
    except ValueError:
        return _refuse("a number")
    if kind is float:
        # λ that is still open is NaN, and only `auto` says so.
        return _refuse("a number") if isinstance(value, str) and math.isnan(number) else number
    return int(number) if math.isfinite(number) and number == int(number) else _refuse("a whole number")


def _texts(value: Any) -> tuple[str, ...]:
    """Of a list, of one text, or of a text that is a TOML array, as `--set` gives several."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            return _refuse('an array of texts, like ["one", "two"]')
    return (_text(value),) if isinstance(value, str) else tuple(_text(item) for item in value)


def _text(value: Any) -> str:
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a path that are not UTF-8: no TOML can hold them
        _refuse("UTF-8 text")
    return text


def _refuse(wanted: str) -> typing.NoReturn:
    raise ValueError(f"must be {wanted}")
