"""How our tensors lie in the files of transformers: under other names, transposed, split or interleaved.

Every correspondence is a rearrangement, so going there and back is the identity bit for bit.

Shapes: D d_model, F d_ff, H heads, E head_dim, X experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightdecay.models.config import ModelConfig


@dataclass(frozen=True)
class Link:
    """One tensor of ours and those of theirs that hold the same numbers.

    Args:
        ours: our name.
        theirs: their names.
        pack: theirs, in that order, to ours.
        unpack: ours to theirs.
    """

    ours: str
    theirs: tuple[str, ...]
    pack: Callable[[Sequence[Tensor]], Tensor]
    unpack: Callable[[Tensor], Sequence[Tensor]]


def same(ours: str, theirs: str) -> Link:
    """The same tensor under another name."""
    return Link(ours, (theirs,), lambda parts: parts[0], lambda whole: [whole])


def transposed(ours: str, theirs: str) -> Link:
    """A matrix stored as [inputs, outputs], as GPT-2's Conv1D does."""
    return Link(ours, (theirs,), lambda parts: parts[0].T, lambda whole: [whole.T])


def stacked(ours: str, theirs: Sequence[str], rows: Sequence[int]) -> Link:
    """Ours is theirs one below the other: query, key and value, or gate and up."""
    return Link(
        ours, tuple(theirs), lambda parts: torch.cat(tuple(parts)), lambda whole: torch.split(whole, list(rows))
    )


def interleaved_by_head(ours: str, theirs: str, n_heads: int) -> Link:
    """Theirs holds query, key and value head by head, [H, 3, E, …]; ours all queries, all keys, all values."""

    def pack(parts: Sequence[Tensor]) -> Tensor:
        heads = parts[0].view(n_heads, 3, -1, *parts[0].shape[1:])
        return heads.transpose(0, 1).reshape(parts[0].shape)

    def unpack(whole: Tensor) -> Sequence[Tensor]:
        kinds = whole.view(3, n_heads, -1, *whole.shape[1:])
        return [kinds.transpose(0, 1).reshape(whole.shape)]

    return Link(ours, (theirs,), pack, unpack)


def below_unused_rows(ours: str, theirs: str, unused: int) -> Link:
    """Theirs begins with rows that no token reaches; they are left out here and written as zeros."""

    def unpack(whole: Tensor) -> Sequence[Tensor]:
        return [torch.cat((whole.new_zeros(unused, *whole.shape[1:]), whole))]

    return Link(ours, (theirs,), lambda parts: parts[0][unused:], unpack)


def one_matrix_an_expert(ours: str, theirs: Sequence[str], n_experts: int, parts_each: int = 1) -> Link:
    """Ours is a stack [X, rows, columns]; theirs a matrix an expert, or `parts_each` that lie one below the other.

    Args:
        theirs: every part of the first expert, then of the second, and so on.
    """

    def pack(parts: Sequence[Tensor]) -> Tensor:
        firsts = range(0, len(parts), parts_each)
        return torch.stack([torch.cat(tuple(parts[first : first + parts_each])) for first in firsts])

    def unpack(whole: Tensor) -> Sequence[Tensor]:
        return [part for expert in range(n_experts) for part in whole[expert].chunk(parts_each)]

    return Link(ours, tuple(theirs), pack, unpack)


def norm_links(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
    """Gain and, where there are biases, bias of a norm."""
    parts = ("weight", "bias") if config.bias else ("weight",)
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in parts]


def head_links(config: ModelConfig, theirs: str) -> list[Link]:
    """The output head, unless it is the embedding."""
    return [] if config.tied_head else [same("head.weight", theirs)]
