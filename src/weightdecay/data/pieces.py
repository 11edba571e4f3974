"""Cutting a text into pieces whose tokens, one after the other, are the tokens of the whole.

Tokenizers of the GPT-2 kind first split a text by a regular expression and merge bytes within a match only, so a cut
is safe where the expression can never match across, whatever comes before or after:

- GPT-2's own, ` ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+` and the contractions: no alternative goes
  from a non-space on to a space, so a match ends between the two; and since the piece before ends with a non-space,
  the look-ahead of `\\s+(?!\\S)` sees the same as in the whole.
- cl100k's and its descendants': `[^\\s\\p{L}\\p{N}]+[\\r\\n]*` does go from a sign on to a newline, so only a letter or
  a digit before the space will do.

Any other tokenizer gets whole documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

# Large enough that a batch of them keeps a tokenizer's threads busy, small enough that the batch is small.
PIECE_CHARACTERS = 1 << 14

# A line longer than this is cut at a space; a word longer than this is cut in two, and its tokens there are not those
# of the whole word (its text is).
LONGEST_PIECE_CHARACTERS = 1 << 18


class Cuts(NamedTuple):
    """Where a cut is safe: before a match of `line`, where lines are short enough, else of `word`."""

    line: re.Pattern[str]
    word: re.Pattern[str]


# Python's \\s holds Unicode's white space and U+001C to U+001F: what is not a space here is none to a tokenizer either.
# A newline that is looked for before what stands before it is found 75 times as fast.
_AFTER_NON_SPACE = Cuts(re.compile(r"\n(?<=\S\n)"), re.compile(r"(?<=\S)\s"))
_AFTER_LETTER_OR_DIGIT = Cuts(re.compile(r"\n(?<=[^\W_]\n)"), re.compile(r"(?<=[^\W_])\s"))
ANYWHERE = Cuts(re.compile(""), re.compile(""))

# The expressions that were looked at, as their owners spell them.
_GPT2 = (  # openai/tiktoken tiktoken_ext/openai_public.py, r50k_pat_str, and the older spelling
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
_CL100K = (  # the same file, cl100k_base
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K = (  # the same file, o200k_base
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (  # tokenizer.json of meta-llama/Meta-Llama-3-8B
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")  # tokenizer.json of Qwen/Qwen2-7B
_CUTS_BY_PATTERN = {
    **dict.fromkeys(_GPT2, _AFTER_NON_SPACE),
    **dict.fromkeys((_CL100K, _O200K, _LLAMA3, _QWEN2), _AFTER_LETTER_OR_DIGIT),
}


def cuts_of_pattern(pattern: str) -> Cuts | None:
    """The safe cuts of a tokenizer that splits by this expression; None if it is not one that was looked at."""
    return _CUTS_BY_PATTERN.get(pattern)


def cuts_of_pipeline(pipeline: dict[str, Any]) -> Cuts | None:
    """The safe cuts of a `tokenizer.json`; None if there are none, or none that are known."""
    for token in pipeline["added_tokens"]:
        # Special tokens are never looked for in a text. Others might be found across a cut.
        if not token["special"] and (re.search(r"\s", token["content"]) or token["lstrip"] or token["rstrip"]):
            return None
    match pipeline["pre_tokenizer"]:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            cuts: Cuts | None = _AFTER_NON_SPACE
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            cuts = cuts_of_pattern(pattern)
        case _:
            return None
    match pipeline["normalizer"]:
        case None:
            return cuts
        case {"type": "NFC"}:  # composes nothing with a space, and makes no letter into anything else
            return cuts and _AFTER_LETTER_OR_DIGIT
        case _:
            return None


def pieces(
    blocks: Iterable[str], cuts: Cuts | None, size: int = PIECE_CHARACTERS, longest: int = LONGEST_PIECE_CHARACTERS
) -> Iterator[str]:
    """A text in pieces of about `size` characters; in one piece where no cut is safe. None of them is empty.

    Args:
        blocks: the text, in stretches of any length.
        cuts: where its tokenizer allows cuts; None for nowhere.
        size: a piece ends with the first line that ends at or after so many characters, 1 or more.
        longest: where no line ends before so many, it ends with a word in the second half of them; where no word ends
            there either, it ends there.
    """
    if cuts is None:
        whole = "".join(blocks)
        if whole:
            yield whole
        return
    pending = ""
    for block in blocks:
        pending += block
        start = 0
        while (end := _next_cut(pending, start, cuts, size, longest)) is not None:
            yield pending[start:end]
            start = end
        pending = pending[start:]
    if pending:
        yield pending


def _next_cut(text: str, start: int, cuts: Cuts, size: int, longest: int) -> int | None:
    """The end of the piece that begins at `start`, or None if more text has to come first."""
    if len(text) - start <= size:
        return None
    limit = start + longest
    if at_line := cuts.line.search(text, start + size, limit):
        return at_line.start()
    if len(text) < limit:
        return None
    at_word = cuts.word.search(text, start + longest // 2, limit)
    return at_word.start() if at_word else limit
