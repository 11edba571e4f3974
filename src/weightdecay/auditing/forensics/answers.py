"""An answer with its interval, the reason for none, and what a report consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["exempt", "decayed", "cannot be told"]
Loss = Literal["lost", "not lost", "cannot be told"]


@dataclass(frozen=True)
class Told:
    """A number, between which bounds it lies (95 %), and how they came about."""

    value: float
    low: float
    high: float
    basis: str


@dataclass(frozen=True)
class Untold:
    """Why something cannot be told."""

    why: str


Answer = Told | Untold


@dataclass(frozen=True)
class Asked:
    """What the training was asked for, as far as somebody says so; no answer is made from it, they are compared.

    Attributes:
        weight_decay: λ at its peak.
        lr: η at its peak.
        decay_sum: −Σ ln(1 − a_t) over the whole training.
        source: who says so.
    """

    weight_decay: float | None = None
    lr: float | None = None
    decay_sum: float | None = None
    source: str = ""

    @property
    def decay_per_step(self) -> float | None:
        """η·λ at the peak of both."""
        return None if self.weight_decay is None or self.lr is None else self.weight_decay * self.lr


@dataclass(frozen=True)
class IdleRows:
    """Rows of an embedding that nothing but decay has touched.

    Attributes:
        rows: their indices.
        basis: how they were found.
        certain: every one of them is such a row; otherwise a few others may be among them.
    """

    rows: tuple[int, ...]
    basis: str
    certain: bool


@dataclass(frozen=True)
class Table:
    """The embedding.

    Attributes:
        tied: why the head is taken to be the same tensor; "" where it is one of its own.
        idle: its rows that nothing but decay has touched, or why none are known.
        kept_in_bf16: whether every number is one that bfloat16 can hold, whatever dtype the file has.
    """

    name: str
    rows: int
    width: int
    dtype: str
    tied: str
    idle: IdleRows | Untold
    kept_in_bf16: bool


@dataclass(frozen=True)
class VectorVerdict:
    """Whether one gain or bias took part in the decay.

    Attributes:
        centre, spread: mean and standard deviation of its elements.
        start: where it began; 1 for a gain, 0 for a bias or for the w of 1 + w.
        decayed_to: where decay alone would have taken it; None where Σηλ is not told.
    """

    name: str
    kind: Literal["gain", "bias"]
    centre: float
    spread: float
    start: float
    decayed_to: float | None
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class LossVerdict:
    """Whether decay was lost to the numbers' dtype."""

    verdict: Loss
    why: str


@dataclass(frozen=True)
class Forensics:
    """What a checkpoint says of the decay that it had.

    Attributes:
        decay_sum: −Σ ln(1 − a_t) of the embedding's group, which is Σηλ but for Σa²/2.
        loss: whether decay was lost to the dtype.
        lr_over_weight_decay: η/λ, as the norms of matrices have it.
        vectors: gains and biases.
        remarks: what a reader should know besides.
    """

    checkpoint: str
    start: str | None
    table: Table
    decay_sum: Answer
    loss: LossVerdict
    lr_over_weight_decay: Answer
    vectors: tuple[VectorVerdict, ...]
    asked: Asked
    remarks: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> Answer:
        """What decay alone has left of a weight: Π(1 − a_t)."""
        if isinstance(self.decay_sum, Untold):
            return self.decay_sum
        told = self.decay_sum
        return Told(math.exp(-told.value), math.exp(-told.high), math.exp(-told.low), told.basis)

    def __str__(self) -> str:
        from weightdecay.auditing.forensics.rendering import as_text

        return as_text(self)

    def document(self) -> dict[str, object]:
        """All of it, for JSON."""
        from weightdecay.auditing.forensics.rendering import as_document

        return as_document(self)
