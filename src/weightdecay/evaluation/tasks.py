"""Three tasks that a text poses by itself: no data set, no network, nothing but its held-out documents.

    bracket       which of ) ] } closes what is open here
    name          which of four names, each defined above in the window, stands here
    continuation  which of four passages is the true continuation, the others from elsewhere

Every item is a choice: a context, and candidates of which the first is the true one. A model chooses the candidate to
which it gives the highest probability after the context. Of continuations all candidates have the same number of
tokens. Chance is what the best blind answer solves: a quarter, and of brackets the share of the most frequent one,
which is held down by drawing equal numbers of each as far as the text has them. Which items are drawn is decided by
the text alone, so that all models of one text and tokenizer get the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from weightdecay.data.loader import IGNORE_INDEX
from weightdecay.data.tokenizer import Tokenizer
from weightdecay.errors import DataError
from weightdecay.evaluation.loss import Text
from weightdecay.evaluation.trained import Trained

ITEMS = 400
"""Of each task at most."""

_SEED = 41
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# What defines a name in most languages that look like Python, C or JavaScript; a word of a text defines nothing.
_NAME = re.compile(r"[A-Za-z_]\w{2,}")
_DEFINED = re.compile(
    r"\b(?:def|class|function|fn|func|let|var|const|import|as|for)\s+([A-Za-z_]\w{2,})"
    r"|([A-Za-z_]\w{2,})\s*(?::[^=\n]{1,40})?=(?!=)"
)
_CONTINUATION_TOKENS = 16
_CHOICES = 4


@dataclass(frozen=True)
class Item:
    """A context and what may follow it, the truth first."""

    context: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TaskResult:
    """How many items of a task a model solved.

    Attributes:
        chance: the share that guessing solves.
        interval: of the share, at 95 % (Wilson's).
    """

    name: str
    right: int
    items: int
    chance: float
    interval: tuple[float, float] | None

    @property
    def share(self) -> float | None:
        """None where the text poses no such item."""
        return self.right / self.items if self.items else None


def solve(trained: Trained, text: Text, *, items: int = ITEMS) -> list[TaskResult]:
    """What a model makes of a text's tasks.

    Args:
        text: whose documents pose them; for an honest result, held-out ones.
        items: of each task at most.

    Raises:
        DataError: the text poses no item at all.
    """
    posed = tasks_of(text, trained.tokenizer, trained.model.config.context, items)
    if not any(posed.values()):
        raise DataError(f"{text.name}: poses no task: it has no brackets, no names that come again, and fewer than "
                        f"{_CHOICES} passages")  # fmt: skip
    results = []
    for name, found in posed.items():
        right = sum(_solved(trained, item) for item in found)
        interval = wilson(right, len(found)) if found else None
        results.append(TaskResult(name, right, len(found), _chance(name, found, trained.tokenizer), interval))
    return results


def tasks_of(text: Text, tokenizer: Tokenizer, context: int, items: int = ITEMS) -> dict[str, list[Item]]:
    """The items that a text poses to models of this context, drawn from all that there are."""
    tokens = np.asarray(text.tokens, np.int64)
    ends = np.flatnonzero(tokens == tokenizer.end_of_text_id)
    documents = [part for part in np.split(tokens, ends + 1) if part.size > 1]
    texts = [tokenizer.decode([int(t) for t in part if t != tokenizer.end_of_text_id]) for part in documents]
    generator = np.random.default_rng(_SEED)

    places = {"bracket": _brackets, "name": _names}
    posed = {}
    for name, find in places.items():
        found = [(index, place) for index, words in enumerate(texts) for place in find(words)]
        made: list[Item] = []
        # Of names every true one is another; of brackets one sign would fill the task.
        most = items if name == "name" else -(-items // len(_CLOSING))
        drawn: Counter[str] = Counter()
        for chosen in generator.permutation(len(found)):
            if len(made) == items:
                break
            index, (start, candidates) = found[chosen]
            if drawn[candidates[0]] == most:
                continue
            if item := _item(texts[index][:start], candidates, tokenizer, context, generator, name):
                made.append(item)
                drawn[candidates[0]] += 1
        posed[name] = made
    posed["continuation"] = _continuations(documents, context, items, generator)
    return posed


def _chance(task: str, items: Sequence[Item], tokenizer: Tokenizer) -> float:
    """What the best answer without looking solves."""
    if task != "bracket" or not items:
        return 1 / _CHOICES
    true = Counter(tokenizer.decode(item.candidates[0])[-1:] for item in items)
    return max(true.values()) / len(items)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share that was seen `right` times in n.

        (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    Reference: Wilson 1927, J. Am. Stat. Assoc. 22.
    """
    if n < 1:
        raise ValueError("a share of no trials")
    z = 1.959963984540054  # of the normal distribution at 97.5 %
    share, scale = right / n, 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    centre = (share + z * z / (2 * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def _brackets(text: str) -> Iterator[tuple[int, list[str]]]:
    """Where a bracket closes the one that was opened last, and the three that it might be, the true one first."""
    open_ones: list[str] = []
    for place, sign in enumerate(text):
        if sign in _CLOSING:
            open_ones.append(_CLOSING[sign])
        elif sign in _CLOSING.values() and open_ones:
            true = open_ones.pop()
            if sign == true:
                yield place, [true, *(other for other in _CLOSING.values() if other != true)]
            else:  # a bracket in a string or a comment: nothing is certain any longer
                open_ones.clear()


def _names(text: str) -> Iterator[tuple[int, list[str]]]:
    """Where a name stands again that was defined above, with all names defined above it, the true one first."""
    definitions = {match.start(match.lastindex or 0): match[match.lastindex or 0] for match in _DEFINED.finditer(text)}
    defined: dict[str, None] = {}
    for match in _NAME.finditer(text):
        name = match.group()
        if match.start() in definitions:
            defined.pop(name, None)  # in the order in which they were last defined
            defined[name] = None
        elif name in defined and len(defined) >= _CHOICES:
            yield match.start(), [name, *(other for other in reversed(defined) if other != name)]


def _item(
    before: str,
    candidates: Sequence[str],
    tokenizer: Tokenizer,
    context: int,
    generator: np.random.Generator,
    task: str,
) -> Item | None:
    """The choice in tokens; None where the window does not show what the choice is about."""
    # What a window may hold: more characters than its tokens stand for are cut off after encoding.
    window = before[-8 * context :]
    if task == "name":
        shown = [name for name in candidates if re.search(rf"\b{re.escape(name)}\b", window[-2 * context :])]
        if candidates[0] not in shown or len(shown) < _CHOICES:
            return None
        others = generator.choice(len(shown) - 1, _CHOICES - 1, replace=False) + 1
        candidates = [shown[0], *(shown[int(other)] for other in others)]

    encoded = tokenizer.encode_batch([window + candidate for candidate in candidates])
    # Tokens may span the place between context and candidate: what all have in common is the context.
    shortest = min(len(ids) for ids in encoded)
    common = next((i for i in range(shortest) if len({ids[i] for ids in encoded}) > 1), shortest)
    if common == shortest:
        return None  # one is the beginning of another, which it could only beat
    ends = [tuple(ids[common:]) for ids in encoded]
    room = context - max(len(ids) for ids in ends)
    return Item(tuple(encoded[0][max(0, common - room) : common]), tuple(ends)) if common and room > 0 else None


def _continuations(
    documents: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]], context: int, items: int,
    generator: np.random.Generator,
) -> list[Item]:  # fmt: skip
    """Passages in the middle of documents, each beside three from other places."""
    length = min(_CONTINUATION_TOKENS, context // 2)
    before = context - length
    places = [
        (index, start)
        for index, document in enumerate(documents)
        for start in range(min(before, len(document) // 2), len(document) - length, length)
    ]
    if len(places) < _CHOICES:
        return []

    made = []
    for chosen in generator.permutation(len(places))[:items]:
        index, start = places[chosen]
        others = generator.choice(np.delete(np.arange(len(places)), chosen), _CHOICES - 1, replace=False)
        passages = [places[chosen], *(places[int(other)] for other in others)]
        candidates = [tuple(int(t) for t in documents[i][s : s + length]) for i, s in passages]
        if len(set(candidates)) == _CHOICES and start:
            shown = documents[index][max(0, start - before) : start]
            made.append(Item(tuple(int(t) for t in shown), tuple(candidates)))
    return made


@torch.inference_mode()
def _solved(trained: Trained, item: Item) -> bool:
    """Whether the true candidate has the highest probability after the context; of equal ones none was chosen."""
    device = next(trained.model.parameters()).device
    rows = [[*item.context, *candidate] for candidate in item.candidates]
    longest, n_context = max(len(row) for row in rows), len(item.context)
    tokens_BT = torch.zeros((len(rows), longest - 1), dtype=torch.int64)
    targets_BT = torch.full((len(rows), longest - 1), IGNORE_INDEX)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row) - 1] = torch.tensor(row[:-1])
        targets_BT[index, n_context - 1 : len(row) - 1] = torch.tensor(row[n_context:])
    logits_BTV: Tensor = trained.model(tokens_BT.to(device)).float()
    nats_BT = F.cross_entropy(
        logits_BTV.transpose(1, 2), targets_BT.to(device), reduction="none", ignore_index=IGNORE_INDEX
    )
    true, *others = nats_BT.double().sum(1).tolist()
    return all(true < other for other in others)
