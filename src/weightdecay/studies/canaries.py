"""Canaries: texts made at random and planted in the training text, to measure what a model has memorised word by word.

A canary is a comment line of random words of the corpus, drawn uniformly, so that nothing but having seen it can make
it likely. Half of the canaries that are made are never planted: the *references*, among which a planted one is ranked.

    exposure = log₂ N − log₂ rank,    N = references + 1,    rank = 1 + references with a lower loss     (Carlini 2019)

A canary that was never planted is as likely on each rank, so its expected exposure is

    log₂ N − (1/N)·Σ_r log₂ r     →     1/ln 2 = 1.443 bits     with a standard deviation of 1/ln 2 each

and not 0, which is often taken for it. A canary counts as *extracted* at k if, given its first k tokens, the likeliest
token is the true one for each of the next `CONTINUATION` tokens: what greedy sampling would have continued with.

Reference: Carlini et al. 2019, The Secret Sharer, arXiv:1802.08232; prefixes: Carlini et al. 2022, arXiv:2202.07646.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.data.tokenizer import Tokenizer
from weightdecay.errors import DataError

NULL_EXPOSURE = 1 / math.log(2)
"""Of a canary that was never planted, for many references."""

PREFIXES = (8, 16, 32)
CONTINUATION = 8

_WORDS = 44  # tokens of a canary's random part: the longest prefix, its continuation, and a few to spare
_SEED = 20_240  # canaries are the same for all seeds of a study: what differs between runs is the training
_BATCH = 64


@dataclass(frozen=True)
class CanaryPlan:
    """How many canaries are planted how often.

    Attributes:
        repeats: how many copies of a canary lie in the training text, a cell each; 0 is a control.
        per_cell: canaries with that many copies.
        references: never planted, to rank the others among.
    """

    repeats: tuple[int, ...] = (0, 1, 4, 16)
    per_cell: int = 50
    references: int = 1023

    @property
    def planted(self) -> int:
        """Copies in the text, of all canaries together."""
        return self.per_cell * sum(self.repeats)


@dataclass(frozen=True)
class Canaries:
    """Canaries as tokens of one length, [canaries, tokens].

    Attributes:
        cells: by the number of copies.
        references: that were never planted.
    """

    cells: Mapping[int, npt.NDArray[np.int64]]
    references: npt.NDArray[np.int64]

    def copies(self) -> list[npt.NDArray[np.int64]]:
        """Every copy that is planted, as a document without its end."""
        return [row for repeats, rows in self.cells.items() for row in rows for _ in range(repeats)]


@dataclass(frozen=True)
class Memorised:
    """What a model has kept of the canaries of one cell."""

    exposure: float
    extracted: Mapping[int, float]


def make_canaries(plan: CanaryPlan, tokenizer: Tokenizer) -> Canaries:
    """The plan's canaries in a tokenizer's tokens; the same each time.

    Raises:
        DataError: the tokenizer has fewer than 32 whole words (a tokenizer of bytes has none).
    """
    words = _words(tokenizer)
    if len(words) < 32:
        raise DataError(f"canaries are made of whole words, of which this tokenizer has {len(words)}, at least 32 are "
                        "needed: give --tokenizer bpe:1024 or more")  # fmt: skip
    head = np.asarray(tokenizer.encode("\n#"), np.int64)
    generator = np.random.default_rng(_SEED)

    def drawn(count: int) -> npt.NDArray[np.int64]:
        body = generator.choice(np.asarray(words, np.int64), (count, _WORDS))
        return np.concatenate([np.broadcast_to(head, (count, len(head))), body], axis=1)

    cells = {repeats: drawn(plan.per_cell) for repeats in plan.repeats}
    return Canaries(cells, drawn(plan.references))


def memorised(model: nn.Module, canaries: Canaries, end_of_text_id: int) -> dict[int, Memorised]:
    """Exposure and extraction of each cell's canaries, means over the cell."""
    references, _ = _judged(model, canaries.references, end_of_text_id)
    found = {}
    for repeats, rows in canaries.cells.items():
        losses, likeliest = _judged(model, rows, end_of_text_id)
        found[repeats] = Memorised(
            float(np.mean(exposures(losses, references))), {k: _extracted(likeliest, k) for k in PREFIXES}
        )
    return found


def exposures(losses: npt.NDArray[np.float64], references: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log₂ N − log₂ rank of each loss among the references."""
    ranks = 1 + np.searchsorted(np.sort(references), losses, side="left")
    exposed: npt.NDArray[np.float64] = np.log2(len(references) + 1) - np.log2(ranks)
    return exposed


def null_exposure(references: int) -> float:
    """What a canary that was never planted has on average, among so many references: exact, and nearly 1/ln 2."""
    n = references + 1
    return math.log2(n) - math.lgamma(n + 1) / math.log(2) / n


@torch.inference_mode()
def _judged(
    model: nn.Module, rows: npt.NDArray[np.int64], end_of_text_id: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Each row's loss in nats, [rows], and whether each of its tokens was the likeliest one, [rows, tokens]."""
    device = next(model.parameters()).device
    model.eval()
    losses: list[Tensor] = []
    likeliest: list[Tensor] = []
    for batch in np.array_split(rows, max(1, math.ceil(len(rows) / _BATCH))):
        targets_BT = torch.from_numpy(np.ascontiguousarray(batch)).to(device)
        start_B1 = torch.full((len(batch), 1), end_of_text_id, device=device)
        logits_BTV = model(torch.cat([start_B1, targets_BT[:, :-1]], dim=1)).float()
        nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
        losses.append(nats_BT.double().sum(1).cpu())
        likeliest.append((logits_BTV.argmax(-1) == targets_BT).cpu())
    return torch.cat(losses).numpy(), torch.cat(likeliest).numpy()


def _extracted(likeliest: npt.NDArray[np.bool_], k: int) -> float:
    """The share of rows whose tokens k … k + CONTINUATION − 1 were each the likeliest after the true ones before."""
    return float(likeliest[:, k : k + CONTINUATION].all(1).mean())


def _words(tokenizer: Tokenizer) -> Sequence[int]:
    """The tokens that are a whole word with the space before it, and that such a text is encoded to."""
    words = []
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token])
        if re.fullmatch(r" [A-Za-z]{2,}", text) and tokenizer.encode(text) == [token]:
            words.append(token)
    return words
