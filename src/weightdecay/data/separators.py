"""Texts that end a document elsewhere, looked for where they would be learnt as ordinary text."""

from __future__ import annotations

# What published tokenizers and data sets put between documents.
KNOWN_SEPARATORS = (
    "<|endoftext|>", "<|end_of_text|>", "<|end▁of▁sentence|>", "<|eot_id|>", "<|im_end|>", "<eos>", "</s>", "[EOS]",
)  # fmt: skip


class KnownSeparators:
    """Counts of KNOWN_SEPARATORS in documents that come in stretches."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(KNOWN_SEPARATORS, 0)
        self._tail = ""

    def look_in(self, text: str) -> None:
        """The next stretch of a document."""
        window = self._tail + text
        for name in KNOWN_SEPARATORS:
            # One that a stretch's end cuts in two is found with the next; one within the tail was counted before.
            self._counts[name] += window.count(name) - self._tail.count(name)
        self._tail = window[-_LONGEST:]

    def end_document(self) -> None:
        """What follows is another document."""
        self._tail = ""

    @property
    def counts(self) -> dict[str, int]:
        """Those that were found."""
        return {name: count for name, count in self._counts.items() if count}


_LONGEST = max(map(len, KNOWN_SEPARATORS)) - 1
