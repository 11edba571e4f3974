"""What a probe saw of each tensor, group and optimizer: values, and no judgement."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from weightdecay.errors import did_you_mean

Order = Literal["before", "after", "beside"]
SeenOn = Literal["step", "whole step", "twin"]
"""A step of the real tensor alone, of all real tensors together, or of a small twin of the optimizer."""
Target = Literal["zero", "one", "initial"]
"""What a decay pulls towards; `initial` is what the optimizer remembers of the weights' beginning."""


@dataclass(frozen=True)
class ProbedTensor:
    """The decay that a step gives one tensor.

    A decay is the fraction of the weights that a step takes away along themselves, ⟨w, d⟩ / ‖w‖², where d is what
    the step removes with its λ and does not remove without.

    Attributes:
        name: as in `named_parameters()` of the bare model; a tied tensor has its first; "" if no module owns it.
        optimizer, group: where it stands, counted from 0.
        elements: how many numbers it has (of all shards together).
        requested: what the numbers of its group ask for in the optimizer's own form; None if that has no number.
        from_weight_decay: what the group's `weight_decay` really removes in a step; None if it could not be seen.
        from_elsewhere: what the step removes at a `weight_decay` of 0: by a hook, a wrapper, a setting of its own.
        uncertainty: the standard error of both, from rounding.
        reads_weight_decay: whether a λ large enough to survive any rounding changes the step.
        coupled: λ goes through the gradient into the optimizer's moments.
        beside: and something else, which reads the same λ, decays beside the step.
        order: where a decoupled decay acts, seen from the update; None where that cannot be told.
        weight_norm: ‖w‖; at 0 nothing can be said of its decay.
        has_gradient: it had a gradient of its own in the probe, and it was finite.
        idle_rows: rows of a table whose gradient is all 0, and which decay nevertheless.
        seen_on: what was stepped.
        opaque: why nothing could be seen; "" if something was.
        share: the part of ‖w‖² in elements that λ decays; below 1 where a mask spares some. `requested` is of these.
        target: what the decay pulls towards; the fractions and `weight_norm` are of w less that.
    """

    name: str
    optimizer: int
    group: int
    shape: tuple[int, ...]
    dtype: str
    elements: int
    requested: float | None
    from_weight_decay: float | None
    from_elsewhere: float | None = 0.0
    uncertainty: float = 0.0
    reads_weight_decay: bool = True
    coupled: bool = False
    beside: bool = False
    order: Order | None = None
    weight_norm: float = 1.0
    has_gradient: bool = True
    idle_rows: int = 0
    seen_on: SeenOn = "step"
    opaque: str = ""
    share: float = 1.0
    target: Target = "zero"

    @property
    def realised(self) -> float | None:
        """All that a step removes, by whatever does it."""
        if self.from_weight_decay is None or self.from_elsewhere is None:
            return None
        return self.from_weight_decay + self.from_elsewhere


@dataclass(frozen=True)
class ProbedGroup:
    """How the decay of one group follows its numbers: a = factor · lr^lr_power · weight_decay.

    Attributes:
        lr, weight_decay: as they stand in the group; None if it has no such key.
        peak_lr: the largest lr that the group itself knows of (`peak_lr`, `initial_lr`, `max_lr` …), and the key.
        factor, lr_power: of its form; None if coupled, opaque, or λ is not read.
        reads_lr: whether the group's `lr` is read at all.
        unread_keys: keys of the group that the optimizer never reads.
    """

    optimizer: int
    group: int
    title: str
    lr: float | None
    weight_decay: float | None
    peak_lr: float | None = None
    peak_key: str = ""
    factor: float | None = None
    lr_power: float | None = None
    reads_weight_decay: bool = True
    reads_lr: bool = True
    coupled: bool = False
    unread_keys: tuple[str, ...] = ()
    opaque: str = ""


@dataclass(frozen=True)
class ProbedOptimizer:
    """One optimizer, and how it was probed.

    Attributes:
        kind: its class, with its module.
        bases: the names of its classes, the most special first.
        seen_on: what was stepped for most of its tensors.
        why: why it could not be stepped on the real tensors one by one, if it was not.
        steps: how many steps were compared.
        copied_bytes: the most that was held beside the model at one time.
        elapsed_s: how long it took.
        hooks: what else runs beside its step, by name.
        normalises: it sets weights to a norm after each step, or keeps their norm: no decay by construction.
    """

    kind: str
    bases: tuple[str, ...]
    seen_on: SeenOn
    why: str = ""
    steps: int = 1
    copied_bytes: int = 0
    elapsed_s: float = 0.0
    hooks: tuple[str, ...] = ()
    normalises: bool = False
    opaque: str = ""


@dataclass(frozen=True)
class Probe:
    """What a probe saw.

    Attributes:
        tensors: one for each place of a tensor in an optimizer: a tensor in two groups is here twice.
    """

    tensors: tuple[ProbedTensor, ...]
    groups: tuple[ProbedGroup, ...]
    optimizers: tuple[ProbedOptimizer, ...]
    elapsed_s: float = 0.0

    def __str__(self) -> str:
        """A table: tensors whose decay is alike in one line."""
        from weightdecay.auditing.probe_table import probe_text

        return probe_text(self)

    def to_json(self) -> str:
        """All values, by their names here."""
        return json.dumps({"schema_version": 1, **_plain(asdict(self))}, indent=1, allow_nan=False, ensure_ascii=False)

    def __iter__(self) -> Iterator[ProbedTensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> ProbedTensor:
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(f"no probed tensor is named '{name}': {did_you_mean(name, (t.name for t in self.tensors))}")


def _plain(value: Any) -> Any:
    """A value as strict JSON has it: what is not finite is null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
