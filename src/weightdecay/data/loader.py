"""Tokens to batches: a pure function of seed, step, rank and world size.

Training takes the tokens in windows of `context` + 1 that begin every `context` tokens, so each token is predicted
once an epoch, and visits the windows of an epoch in a shuffled order that is computed, never stored. There is no
state to save: a resumed run asks for the step it is at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weightdecay.data.batches import BatchSizes
from weightdecay.errors import ConfigError, DataError

IGNORE_INDEX = -100

_ROUNDS = 6


@dataclass(frozen=True)
class Loader:
    """Batches of windows of a token array.

    Args:
        tokens: [count], of any unsigned type; usually mapped from a shard.
        context: tokens a sequence.
        sequences_per_step: of all ranks together.
        seed: of the order.
        ramp: sequences of the first steps, before `sequences_per_step` holds.

    Raises:
        DataError: fewer tokens than one window of context + 1.
        ConfigError: a size is not positive.
    """

    tokens: npt.NDArray[Any]
    context: int
    sequences_per_step: int
    seed: int = 0
    ramp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least 1, got {value}"
            for name, value in (("context", self.context), ("sequences per step", self.sequences_per_step))
            if value < 1
        ]
        if faults:
            raise ConfigError(faults)
        if self.windows < 1:
            raise DataError(
                f"the training part has {len(self.tokens)} tokens, fewer than one window of {self.context + 1}: "
                "give more text, or a shorter --context"
            )

    @property
    def windows(self) -> int:
        """Of an epoch."""
        return (len(self.tokens) - 1) // self.context

    def epoch_of(self, step: int) -> float:
        """How many times the windows were gone through before `step`, a fraction within an epoch."""
        return self._sizes.sequences_before(step) / self.windows

    @cached_property
    def _sizes(self) -> BatchSizes:
        return BatchSizes(self.context, self.sequences_per_step, self.ramp)

    def window_indices(self, step: int, rank: int = 0, world_size: int = 1) -> npt.NDArray[np.int64]:
        """Which windows a rank gets at a step; the ranks' shares in order are the whole step's, whatever their number,
        and differ by one at most in length. A step may end one epoch and begin the next.

        Raises:
            ConfigError: there are fewer sequences than ranks, or there is no such rank.
        """
        sequences = self._sizes.sequences_at(step)
        if sequences < world_size:
            raise ConfigError(f"{sequences} sequences a step cannot be shared by {world_size} processes")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes")
        before = self._sizes.sequences_before(step)
        first, last = (before + sequences * edge // world_size for edge in (rank, rank + 1))
        epochs, positions = np.divmod(np.arange(first, last, dtype=np.int64), self.windows)
        indices = np.empty(last - first, np.int64)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            indices[of_epoch] = permute(positions[of_epoch], self.windows, self.seed, int(epoch))
        return indices

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and the tokens that follow them, both int64 [the rank's sequences, context].

        Raises:
            ConfigError: see `window_indices`.
        """
        starts = self.window_indices(step, rank, world_size) * self.context
        windows = self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int64)
        return torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:].copy())


def permute(positions: npt.NDArray[np.int64], length: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Where a shuffle of 0 … length − 1 puts these positions: a bijection, a new one each epoch, computed in place.

    A Feistel network permutes the numbers of as many bits as `length` − 1 has; one that lands past the end goes
    through again until it lands within (cycle walking), less than twice on average.

    Reference: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", §2.
    """
    low_bits = (length - 1).bit_length() // 2
    high_bits = (length - 1).bit_length() - low_bits
    keys = _round_keys(seed, epoch)
    result = _feistel(positions.astype(np.uint64), low_bits, high_bits, keys)
    while (outside := np.flatnonzero(result >= length)).size:
        result[outside] = _feistel(result[outside], low_bits, high_bits, keys)
    return result.astype(np.int64)


def _feistel(
    numbers: npt.NDArray[np.uint64], low_bits: int, high_bits: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Each half in turn is changed by a hash of the other, which can be undone: so it is a bijection."""
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    low, high = numbers & low_mask, numbers >> np.uint64(low_bits)
    for key in keys.reshape(-1, 2):
        high = high ^ (_mixed(low, key[0]) & high_mask)
        low = low ^ (_mixed(high, key[1]) & low_mask)
    return (high << np.uint64(low_bits)) | low


def _mixed(numbers: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014) of each number, told apart by the key."""
    mixed = numbers + key  # wraps, as it should
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    digest = hashlib.shake_256(f"weightdecay order {seed} {epoch}".encode()).digest(8 * 2 * _ROUNDS)
    return np.frombuffer(digest, "<u8")


def evaluation_batches(
    tokens: npt.NDArray[Any],
    context: int,
    batch_size: int,
    max_tokens: int | None = None,
    *,
    end_of_text_id: int | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The tokens in order, in windows of `context` without overlap; each is predicted exactly once.

    Args:
        tokens: [count].
        max_tokens: predict only the first so many.
        end_of_text_id: stands before the first token, so that this one is predicted too; without it the first is not.

    Yields:
        Inputs and targets, int64 [up to batch_size, context]. The last window is filled up with targets of
        IGNORE_INDEX, which `cross_entropy` leaves out.

    Raises:
        DataError: there is nothing to predict.
    """
    count = len(tokens) if max_tokens is None else min(len(tokens), max_tokens)
    skipped = 0 if end_of_text_id is not None else 1
    predicted = count - skipped
    if predicted < 1:
        raise DataError(f"the held-out part has {len(tokens)} tokens, too few to evaluate on: give more text")
    for first in range(0, predicted, context * batch_size):
        last = min(first + context * batch_size, predicted)
        targets = np.asarray(tokens[first + skipped : last + skipped], np.int64)
        before = tokens[first + skipped - 1] if first + skipped else end_of_text_id
        inputs = np.concatenate([np.asarray([before], np.int64), targets[:-1]])
        rows = -(-len(targets) // context)
        padding = rows * context - len(targets)
        x = np.pad(inputs, (0, padding)).reshape(rows, context)
        y = np.pad(targets, (0, padding), constant_values=IGNORE_INDEX).reshape(rows, context)
        yield torch.from_numpy(x), torch.from_numpy(y)
