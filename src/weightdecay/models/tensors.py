"""How our tensors lie in the files of transformers: under other names, transposed, split or interleaved.

A family names its modules beside ours in a table of `Piece`, each with one of the functions here that say how the
numbers lie. They all rearrange, so going there and back is the identity bit for bit.

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


How = Callable[[str, str, ModelConfig], list[Link]]
_PARTS = ("weight", "bias")


def plain(ours: str, theirs: str, config: ModelConfig) -> list[Link]:  # noqa: ARG001  # one signature for all
    """The same under another name."""
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in _PARTS]


@dataclass(frozen=True)
class Piece:
    """A module of ours, its counterpart, and how the tensors of one lie in the other.

    Args:
        ours, theirs: names within a block, or within the model.
        how: both names in full to the links of all tensors that the module may have.
    """

    ours: str
    theirs: str
    how: How = plain


def conv1d(ours: str, theirs: str, config: ModelConfig) -> list[Link]:  # noqa: ARG001  # one signature for all
    """A linear layer whose matrix is stored as [inputs, outputs], as GPT-2's Conv1D does."""
    weight = Link(f"{ours}.weight", (f"{theirs}.weight",), lambda parts: parts[0].T, lambda whole: [whole.T])
    return [weight, same(f"{ours}.bias", f"{theirs}.bias")]


def qkv(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
    """Query, key and value one below the other; theirs are three layers, `{}` standing for q, k and v."""
    heads = (config.attention.n_heads, config.attention.n_kv_heads, config.attention.n_kv_heads)
    return [_stacked(f"{ours}.{part}", [f"{theirs.format(kind)}.{part}" for kind in "qkv"], heads) for part in _PARTS]


def qkv_by_head(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
    """Theirs holds query, key and value head by head, [H, 3, E, …]; ours all queries, all keys, all values."""
    n_heads = config.attention.n_heads

    def pack(parts: Sequence[Tensor]) -> Tensor:
        heads = parts[0].view(n_heads, 3, -1, *parts[0].shape[1:])
        return heads.transpose(0, 1).reshape(parts[0].shape)

    def unpack(whole: Tensor) -> Sequence[Tensor]:
        kinds = whole.view(3, n_heads, -1, *whole.shape[1:])
        return [kinds.transpose(0, 1).reshape(whole.shape)]

    return [Link(f"{ours}.{part}", (f"{theirs}.{part}",), pack, unpack) for part in _PARTS]


def gate_and_up(ours: str, theirs: str, config: ModelConfig) -> list[Link]:  # noqa: ARG001  # one signature for all
    """Gate above up; theirs are two layers, `{}` standing for gate and up."""
    return [_stacked(f"{ours}.weight", [f"{theirs.format(kind)}.weight" for kind in ("gate", "up")], (1, 1))]


def after_two_rows(ours: str, theirs: str, config: ModelConfig) -> list[Link]:  # noqa: ARG001  # one signature for all
    """Theirs begins with two rows that no token reaches; they are left out here and written as zeros."""

    def unpack(whole: Tensor) -> Sequence[Tensor]:
        return [torch.cat((whole.new_zeros(2, *whole.shape[1:]), whole))]

    return [Link(f"{ours}.weight", (f"{theirs}.weight",), lambda parts: parts[0][2:], unpack)]


def each_expert(*names: str) -> How:
    """Ours is one stack [X, rows, columns]; theirs a matrix an expert and name, an expert's one below the other.

    Args:
        names: of an expert's layers; the counterpart has `{}` where the expert's number stands.
    """

    def how(ours: str, theirs: str, config: ModelConfig) -> list[Link]:
        n_experts = config.experts.n_experts if config.experts else 0
        every = [f"{theirs.format(expert)}.{name}.weight" for expert in range(n_experts) for name in names]

        def pack(parts: Sequence[Tensor]) -> Tensor:
            firsts = range(0, len(parts), len(names))
            return torch.stack([torch.cat(tuple(parts[first : first + len(names)])) for first in firsts])

        def unpack(whole: Tensor) -> Sequence[Tensor]:
            return [part for expert in whole for part in expert.chunk(len(names))]

        return [Link(ours, tuple(every), pack, unpack)]

    return how


def same(ours: str, theirs: str) -> Link:
    """The same tensor under another name."""
    return Link(ours, (theirs,), lambda parts: parts[0], lambda whole: [whole])


def _stacked(ours: str, theirs: Sequence[str], shares: Sequence[int]) -> Link:
    """Ours is theirs one below the other, whose rows are to each other as `shares`."""

    def unpack(whole: Tensor) -> Sequence[Tensor]:
        return torch.split(whole, [len(whole) * share // sum(shares) for share in shares])

    return Link(ours, tuple(theirs), lambda parts: torch.cat(tuple(parts)), unpack)
