"""What counting alone achieves on the default corpus: the bits per byte that a trained model has to beat.

    .venv/bin/python benchmarks/ngram_baselines.py

Both models are counted on the training part of the standard library, in tokens of bpe:4096, and judged on every token
of the held-out part, document ends included, like a model is.

    unigram    P(w)     = (c(w) + 1) / (N + V)
    bigram     P(w | v) = max(c(v w) − D, 0) / c(v) + D · t(v) / c(v) · P(w)

with t(v) the number of different tokens seen after v. The discount D is the best of a grid on the last twentieth of
the training part, counted on the rest; the held-out part has no say in it.

Reference: Ney, Essen & Kneser 1994, "On structuring probabilistic dependences in stochastic language modelling"
(absolute discounting, interpolated).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from weightdecay.data.prepare import Prepared, prepared_for

DISCOUNTS = tuple(d / 20 for d in range(2, 20))
TUNING_SHARE = 0.05

Tokens = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


def unigram_bits_per_byte(prepared: Prepared) -> float:
    """Held-out bits per byte of a model that knows how often each token occurs."""
    training, held_out = _parts(prepared)
    return _bits_per_byte(unigram(training, prepared.tokenizer.vocab_size)[held_out], prepared)


def bigram_bits_per_byte(prepared: Prepared) -> float:
    """Held-out bits per byte of a model that knows how often each token follows each other."""
    training, held_out = _parts(prepared)
    vocab_size = prepared.tokenizer.vocab_size
    text = np.concatenate([[prepared.tokenizer.end_of_text_id], held_out])
    probabilities = Bigrams(training, vocab_size).probabilities(text, best_discount(training, vocab_size))
    return _bits_per_byte(probabilities, prepared)


def unigram(training: Tokens, vocab_size: int) -> Probabilities:
    """P(w) of every token, [vocab_size], by add-one smoothing."""
    counts = np.bincount(training, minlength=vocab_size)
    return np.asarray((counts + 1) / (len(training) + vocab_size))


def best_discount(training: Tokens, vocab_size: int) -> float:
    """The discount under which the last twentieth of the training part is likeliest, the rest counted."""
    split = len(training) - round(TUNING_SHARE * len(training))
    bigrams = Bigrams(training[:split], vocab_size)
    return min(DISCOUNTS, key=lambda d: -np.log(bigrams.probabilities(training[split - 1 :], d)).sum())


class Bigrams:
    """Counts of pairs, as sorted codes v · V + w."""

    def __init__(self, training: Tokens, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._unigram = unigram(training, vocab_size)
        self._pairs, self._counts = np.unique(training[:-1] * vocab_size + training[1:], return_counts=True)
        firsts = self._pairs // vocab_size
        self._followed = np.bincount(firsts, weights=self._counts, minlength=vocab_size)
        self._followers = np.bincount(firsts, minlength=vocab_size)

    def probabilities(self, text: Tokens, discount: float) -> Probabilities:
        """P of each token of `text` but the first given the one before it, [len(text) − 1]."""
        v, w = text[:-1], text[1:]
        code = v * self._vocab_size + w
        place = np.minimum(np.searchsorted(self._pairs, code), len(self._pairs) - 1)
        seen = np.where(self._pairs[place] == code, self._counts[place] - discount, 0.0)
        total = np.maximum(self._followed[v], 1)
        # What the discount takes from the pairs that were seen; all, where v was never followed by anything.
        left = np.where(self._followed[v] > 0, discount * self._followers[v] / total, 1.0)
        return np.asarray(seen / total + left * self._unigram[w])


def _parts(prepared: Prepared) -> tuple[Tokens, Tokens]:
    return prepared.training.tokens.astype(np.int64), prepared.held_out.tokens.astype(np.int64)


def _bits_per_byte(probabilities: npt.NDArray[Any], prepared: Prepared) -> float:
    return float(-np.log2(probabilities).sum() / prepared.held_out_bytes())


def main() -> None:
    prepared = prepared_for((), "bpe:4096")
    training, held_out = prepared.training.header, prepared.held_out.header
    print(f"{prepared.name}, bpe:4096, SHA-256 {prepared.corpus_sha256[:12]}…")
    print(f"training {training.n_tokens:,} tokens, held out {held_out.n_tokens:,} ({held_out.n_bytes:,} bytes)")
    bits_per_token = held_out.n_bytes / held_out.n_tokens
    discount = best_discount(_parts(prepared)[0], prepared.tokenizer.vocab_size)
    print(f"{'model':<32}{'bits per byte':>14}{'loss (nats per token)':>24}")
    for name, bits in (
        ("uniform over the vocabulary", math.log2(prepared.tokenizer.vocab_size) / bits_per_token),
        ("unigram", unigram_bits_per_byte(prepared)),
        (f"interpolated bigram, D = {discount:.2f}", bigram_bits_per_byte(prepared)),
    ):
        print(f"{name:<32}{bits:>14.3f}{bits * bits_per_token * math.log(2):>24.3f}")


if __name__ == "__main__":
    main()
