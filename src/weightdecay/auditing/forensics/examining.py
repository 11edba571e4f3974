"""`forensics`: what a finished checkpoint says of the decay that it had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightdecay.auditing.forensics.answers import Answer, Asked, Forensics, Table, Untold
from weightdecay.auditing.forensics.balance import balanced
from weightdecay.auditing.forensics.idle_rows import (
    Found,
    by_counts,
    by_start,
    by_tokenizer,
    by_weights,
    tokenizer_size,
)
from weightdecay.auditing.forensics.initialisation import InitStd, init_std_of
from weightdecay.auditing.forensics.losing import Untouched, judged_loss
from weightdecay.auditing.forensics.parts import Parts, parts_of
from weightdecay.auditing.forensics.shrinking import against_spread, against_start
from weightdecay.auditing.forensics.stored import FLOATS, Source, Stored, open_stored
from weightdecay.auditing.forensics.tokens import count_tokens
from weightdecay.auditing.forensics.vectors import Vector, judged_biases, judged_gains
from weightdecay.errors import ConfigError, DamagedError
from weightdecay.planning.patterns import some

# Numbers of an embedding that are held as float64; of a larger one, as float32.
_AS_FLOAT64 = 1 << 27
_COARSEST_FIRST = ("bfloat16", "float16", "float32", "float64")


def forensics(
    checkpoint: Source,
    *,
    against: Source | None = None,
    init_std: float | tuple[float, float] | None = None,
    tokens: Sequence[str | Path] = (),
    tokenizer: str | Path | None = None,
    embedding: str | None = None,
    untied: bool = False,
    asked: Asked | None = None,
) -> Forensics:
    """What a checkpoint says of the decay that it had: each answer with its interval, or why it cannot be told.

        row of a token that never came:  w_T = w_0·Π(1 − a_t),  so  −Σ ln(1 − a_t) = ln(‖w_0‖/‖w_T‖)

    Args:
        checkpoint: a Hugging Face directory, a run directory or one of its checkpoints, a .safetensors file, a file
            that torch.save wrote, a state dict or a module.
        against: the same at the start of the training, in any of these forms; then Σηλ is told to within rounding.
        init_std: without it, the standard deviation of the embedding's numbers at the start, or the lowest and highest
            that it may have been; else what the configuration says.
        tokens: what the training has read (prepared data, shards, .npy or .bin of ids, text), so that rows that never
            came are known; else they are found from the weights alone.
        tokenizer: tokenizer.json for text, if none lies beside the checkpoint.
        embedding: the embedding's name, where it is not found by itself.
        untied: the training had a head of its own, though the checkpoint holds none.
        asked: what the training was asked for, to be compared; else what a run's run.toml says.

    Raises:
        ConfigError: nothing there that is read here, no embedding, quantised, complex or absent numbers, pickled code,
            a start that is not this model's; all faults together where there are several.
        DamagedError: a truncated file, or numbers that are not finite.

    Reference: docs/forensics.md.
    """
    stored = open_stored(checkpoint)
    parts = parts_of(stored, embedding, untied=untied)
    start = None if against is None else open_stored(against)
    init = init_std_of(stored, init_std)
    if start is not None:
        _raise_unless_matching(stored, start, parts)
    _raise_unless_finite(stored, start, parts)

    table = _Rows.read(stored, start, parts)
    found = _idle(table, stored, parts, tokens, tokenizer)
    decay_sum = _decay_sum(table, found, init)
    asked = asked or _asked_of(stored)
    loss = judged_loss(decay_sum, table.untouched(found), asked, table.dtype, kept_in_bf16=table.kept_in_bf16)
    gains = [_vector(stored, start, name, parts.gain_start) for name in parts.gains]
    biases = [_vector(stored, start, name, 0.0) for name in parts.biases]
    return Forensics(
        checkpoint=stored.where,
        start=start.where if start else None,
        table=Table(
            parts.embedding,
            rows=len(table.now),
            width=table.now.shape[1],
            dtype=stored.dtypes[parts.embedding],
            tied=parts.tied,
            idle=found.idle if isinstance(found, Found) else found,
            kept_in_bf16=table.kept_in_bf16,
        ),
        decay_sum=decay_sum,
        loss=loss,
        lr_over_weight_decay=balanced([_rms(stored.read(name)) for name in parts.matrices], decay_sum),
        vectors=(*judged_gains(gains, decay_sum), *judged_biases(biases)),
        asked=asked,
        remarks=tuple(_remarks(table, parts, found)),
    )


class _Rows:
    """The embedding's rows now and at the start, in a precision to calculate with."""

    def __init__(self, now: Tensor, start: Tensor | None, dtype: str, *, kept_in_bf16: bool) -> None:
        self.now, self.start, self.dtype, self.kept_in_bf16 = now, start, dtype, kept_in_bf16

    @classmethod
    def read(cls, stored: Stored, start: Stored | None, parts: Parts) -> _Rows:
        name = parts.embedding
        as_stored = stored.read(name)
        wide = torch.float64 if as_stored.numel() <= _AS_FLOAT64 else torch.float32
        before = None if start is None else start.read(name).to(wide)
        dtypes = {stored.dtypes[name]} | ({start.dtypes[name]} if start else set())
        coarsest = next(dtype for dtype in _COARSEST_FIRST if dtype in dtypes)
        return cls(as_stored.to(wide), before, coarsest, kept_in_bf16=_fits_bf16(as_stored))

    def untouched(self, found: Found | Untold) -> Untouched | None:
        """What the start says of the idle rows; None where it is not known, or there are none."""
        if self.start is None or isinstance(found, Untold):
            return None
        index = torch.tensor(found.idle.rows)
        same = self.now[index] == self.start[index]
        return Untouched(bool(same.all()), float(same.double().mean()), len(index))


def _idle(
    table: _Rows, stored: Stored, parts: Parts, tokens: Sequence[str | Path], tokenizer: str | Path | None
) -> Found | Untold:
    """The rows that nothing but decay has touched, by the surest evidence there is."""
    if parts.tied:
        return Untold(
            f"head and embedding are one tensor ({parts.tied}): the head's gradient moves every row at every step, "
            "also those of tokens that never come"
        )
    beside = stored.folder / "tokenizer.json" if stored.folder else None
    file = Path(tokenizer) if tokenizer else beside if beside and beside.is_file() else None
    counts = count_tokens(tokens, len(table.now), file) if tokens else None
    if table.start is not None:
        return by_start(table.now, table.start, "bfloat16" if table.kept_in_bf16 else table.dtype)
    if counts is not None:
        return by_counts(table.now, counts)
    size = tokenizer_size(file.parent if file else None)
    if size is not None and isinstance(beyond := by_tokenizer(table.now, size), Found):
        return beyond
    return by_weights(table.now)


def _decay_sum(table: _Rows, found: Found | Untold, init: InitStd | None) -> Answer:
    if isinstance(found, Untold):
        return found
    if table.start is None:
        return against_spread(table.now, found, init)
    told = against_start(table.now, table.start, found, table.dtype)
    if told.high < 0:
        raise ConfigError(
            f"rows that never came have grown by {math.expm1(-told.value):.2%} since the start: are the checkpoint and "
            "its start swapped?"
        )
    return told


def _asked_of(stored: Stored) -> Asked:
    """What a run of ours was asked for."""
    if stored.training is None:
        return Asked()
    optimizer = stored.training.optimizer
    λ = None if optimizer.weight_decay == "auto" else optimizer.peak_weight_decay
    return Asked(λ, optimizer.lr, None, "run.toml")


def _raise_unless_matching(stored: Stored, start: Stored, parts: Parts) -> None:
    """A start has the same tensors; a head that is another name for the embedding may be left out."""
    ours, theirs = (
        {name: one.shapes[name] for name in one.shapes if one.dtypes[name] in FLOATS} for one in (stored, start)
    )
    heads = {parts.head}
    faults = []
    if lacking := sorted(ours.keys() - theirs.keys() - heads):
        faults.append(f"it lacks {some(lacking)}")
    if strange := sorted(theirs.keys() - ours.keys()):
        heads_of_start = [name for name in strange if theirs[name] == ours[parts.embedding]]
        if strange := [name for name in strange if name not in heads_of_start]:
            faults.append(f"it has {some(strange)}, which the checkpoint has not")
    other = [
        f"{name} ({list(theirs[name])}, not {list(ours[name])})"
        for name in ours
        if theirs.get(name, ours[name]) != ours[name]
    ]
    if other:
        faults.append(f"it has other shapes: {some(other)}")
    if not faults and torch.equal(stored.read(parts.embedding), start.read(parts.embedding)):
        faults.append("its embedding is the checkpoint's, number by number: nothing was trained in between")
    if faults:
        raise ConfigError([f"{start.where} is not where {stored.where} started: {fault}" for fault in faults])


def _raise_unless_finite(stored: Stored, start: Stored | None, parts: Parts) -> None:
    """Every tensor that is looked at, in both."""
    bad = []
    looked_at = [parts.embedding, *parts.gains, *parts.biases, *parts.matrices]
    for one, names in ((stored, looked_at), (start, [parts.embedding, *parts.gains, *parts.biases])):
        for name in names if one else ():
            assert one is not None
            wrong = int((~torch.isfinite(one.read(name))).sum()) if name in one.shapes else 0
            if wrong:
                bad.append(f"{one.where}: '{name}' holds {wrong} numbers that are not finite")
    if bad:
        raise DamagedError(
            [*bad, "such weights say nothing of their decay: give a checkpoint from before they diverged"]
        )


def _vector(stored: Stored, start: Stored | None, name: str, usual: float) -> Vector:
    numbers = stored.read(name).double()
    began = float(start.read(name).double().mean()) if start is not None and name in start.shapes else usual
    return Vector(name, float(numbers.mean()), float(numbers.std(correction=0)), began)


def _rms(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) / math.sqrt(max(matrix.numel(), 1))


def _fits_bf16(numbers: Tensor) -> bool:
    """Whether bfloat16 can hold every number as it is."""
    if numbers.dtype is torch.bfloat16:
        return True
    return numbers.dtype is torch.float32 and torch.equal(numbers.bfloat16().float(), numbers)


def _remarks(table: _Rows, parts: Parts, found: Found | Untold) -> list[str]:
    said = []
    zero = int((table.now.norm(dim=1) == 0).sum())
    if zero:
        said.append(f"{zero} rows of '{parts.embedding}' are zero, as padding is, and are left out")
    if isinstance(found, Found) and not found.idle.certain:
        said.append("rows that never came were found from the weights alone; --tokens or --against makes them certain")
    if table.kept_in_bf16 and table.dtype == "float32":
        said.append("every number of the embedding is one of bfloat16, though the file is float32")
    return said
