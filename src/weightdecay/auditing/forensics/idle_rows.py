"""Rows that nothing but decay has touched: by the start, by counts of tokens, by the tokenizer, or by the weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightdecay.auditing.forensics.answers import IdleRows, Untold
from weightdecay.auditing.forensics.apart import Group, kurtosis_of, untouched_group

# Relative to a row's norm: how far from a multiple of its start rounding alone may take it. Each step of training in
# bfloat16 rounds anew, and one that came moved by several percent.
_ROUNDING = {"float64": 1e-6, "float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
_IMPLAUSIBLE = 5.0  # standard deviations


@dataclass(frozen=True)
class Found:
    """The rows, and where the weights alone told them, the group's fit."""

    idle: IdleRows
    group: Group | None = None


def by_start(rows: Tensor, start: Tensor, dtype: str) -> Found | Untold:
    """Rows that are a multiple of what they were at the start, all of them the same.

    Args:
        rows, start: [n, d], float64.
        dtype: the coarser one of both.
    """
    length, was = rows.norm(dim=1), start.norm(dim=1)
    usable = (length > 0) & (was > 0)
    ratio = torch.where(usable, (rows * start).sum(1) / was.square().clamp_min(1e-300), 0.0)
    off = (rows - ratio[:, None] * start).norm(dim=1) / length.clamp_min(1e-300)
    alike = usable & (off < _ROUNDING[dtype]) & (ratio > 0)
    if not alike.any():
        return Untold(
            "every row has moved otherwise than by decay: each token came at least once, or the head's gradient went "
            "through the embedding"
        )
    middle = ratio[alike].log().median()
    alike &= (ratio.clamp_min(1e-300).log() - middle).abs() < 5 * _ROUNDING[dtype]
    found = tuple(alike.nonzero()[:, 0].tolist())
    return Found(IdleRows(found, "rows that are a multiple of their start, number by number", certain=True))


def by_counts(rows: Tensor, counts: npt.NDArray[np.int64]) -> Found | Untold:
    """Rows of ids that the training's tokens do not hold."""
    never = torch.from_numpy(counts == 0) & (rows.norm(dim=1) > 0)
    if not never.any():
        return Untold("each of the embedding's ids comes in these tokens")
    return _plausible(rows, never, "ids that the given tokens do not hold")


def by_tokenizer(rows: Tensor, size: int) -> Found | Untold:
    """Rows beyond the tokenizer's last id, which no text can name."""
    beyond = (torch.arange(len(rows)) >= size) & (rows.norm(dim=1) > 0)
    if not beyond.any():
        return Untold("the embedding has no rows beyond the tokenizer's ids that are not zero")
    return _plausible(rows, beyond, f"rows beyond the tokenizer's {size} ids")


def by_weights(rows: Tensor) -> Found | Untold:
    """The lowest group of rows that still look like draws of one distribution."""
    present = (rows.norm(dim=1) > 0).nonzero()[:, 0]
    if len(present) < 2:
        return Untold("the embedding's rows are zero")
    group = untouched_group(rows[present])
    if isinstance(group, str):
        return Untold(group)
    chosen = tuple(present[group.rows].tolist())
    n = min(round(group.size), len(chosen))
    return Found(
        IdleRows(chosen, f"rows that still look like random draws, about {n} of which never came", certain=False), group
    )


def _plausible(rows: Tensor, mask: Tensor, basis: str) -> Found | Untold:
    """The rows, unless they are no draws of one distribution: set to a mean when a vocabulary grew, or trained after
    all.

    For draws, row means of squares vary by (κ − 1)/d, and the sum of n rows is as long as √n of them.
    """
    chosen = rows[mask]
    n, d = chosen.shape
    square = chosen.square().mean(1)
    kurtosis = kurtosis_of(chosen / square.mean().sqrt())
    if n > 2:
        expected = (kurtosis - 1) / d
        excess = float((square / square.mean()).var()) / expected
        common = float(chosen.sum(0).square().sum() / chosen.square().sum())
        if excess > 1 + _IMPLAUSIBLE * math.sqrt(2 / (n - 1)) or common > 1 + _IMPLAUSIBLE * math.sqrt(2 / d):
            return Untold(
                f"{basis} are there, {n} of them, but they are no draws of one distribution (their norms vary "
                f"{excess:.2g} times as much as those of draws do, and their sum is {math.sqrt(common):.2g} times as "
                "long): they were set or trained after all"
            )
    return Found(IdleRows(tuple(mask.nonzero()[:, 0].tolist()), basis, certain=True))


def tokenizer_size(folder: Path | None) -> int | None:
    """How many ids the tokenizer beside a checkpoint has; None where there is none that says so."""
    file = folder / "tokenizer.json" if folder else None
    if file is None or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("format") == "weightdecay-byte":
            return 257
        vocabulary = content["model"]["vocab"]
        ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else [*range(len(vocabulary))]
        ids += [token["id"] for token in content.get("added_tokens", ())]
        return int(max(ids)) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # another kind of tokenizer: what it would have told is not known
