"""Tokenising as `weightdecay data prepare` does it beside `encode_batch_fast` by itself, and its memory as text grows.

    .venv/bin/python -m benchmarks.tokenise
    .venv/bin/python -m benchmarks.tokenise --text FILE… --rounds 5 --memory 20 100 400

Ours reads the text, cuts it, encodes it, samples what the tokenizer loses, hashes and writes shards, from an open
corpus to the finished directory. The other is one call of the `tokenizers` library that has all of the text in memory
already and whose tokens nobody takes out; once for documents as they are, once for the pieces that ours cuts them
into. All use the default tokenizer and the same threads, in turn, and a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch

from benchmarks.machine import described
from weightdecay.data.corpus import Corpus, open_corpus, standard_library
from weightdecay.data.pieces import pieces
from weightdecay.data.prepare import prepare
from weightdecay.data.tokenizer import Tokenizer
from weightdecay.data.tokenizer_specs import make_tokenizer

DEFAULT_TOKENIZER = "bpe:4096"

# Of a process of its own, so that nothing else is in its peak.
PREPARE = """
import re, sys
from pathlib import Path
from weightdecay.data.prepare import prepare_text
prepare_text([sys.argv[1]], Path(sys.argv[2]), sys.argv[3])
print(1024 * int(re.search("VmHWM:\\\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]))
"""


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def speeds(corpus: Corpus, tokenizer: Tokenizer, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, the first round left out."""
    documents = ["".join(document.blocks()) for document in corpus.documents()]
    cut = [piece for text in documents for piece in pieces([text], tokenizer.cuts)]
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare(corpus, tokenizer, Path(folder) / "prepared")

    contestants: dict[str, Callable[[], object]] = {
        "ours": ours,
        "encode_batch_fast of documents": lambda: library.encode_batch_fast(documents, add_special_tokens=False),
        "encode_batch_fast of pieces": lambda: library.encode_batch_fast(cut, add_special_tokens=False),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            second = seconds(work)
            if number:
                taken[name].append(second)
    return taken


def peaks(corpus: Corpus, tokenizer: Tokenizer, megabytes: list[int]) -> None:
    """The most that a process had resident that prepares so much text in one file."""
    text = "".join(block for document in corpus.documents() for block in document.blocks())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(folder / "tokenizer.json")
        for size in megabytes:
            source = folder / f"{size}.txt"
            with source.open("w", encoding="utf-8", newline="\n") as file:
                while file.tell() < size * 1_000_000:
                    file.write(text[: size * 1_000_000 - file.tell()])
            command = [
                sys.executable,
                "-c",
                PREPARE,
                str(source),
                str(folder / str(size)),
                str(folder / "tokenizer.json"),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"| {source.stat().st_size / 1e6:,.0f} MB of text | {int(done.stdout) / 1e6:,.0f} MB |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--text", nargs="+", metavar="FILE", help="instead of the standard library")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--memory", type=int, nargs="*", default=[10, 50, 200], metavar="MB")
    chosen = options.parse_args()
    corpus = open_corpus(chosen.text) if chosen.text else standard_library()
    tokenizer = make_tokenizer(DEFAULT_TOKENIZER, corpus)

    taken = speeds(corpus, tokenizer, chosen.rounds)
    size = corpus.summary.n_bytes
    print(
        f"{described(torch.device('cpu'))}; {corpus.name}, {size / 1e6:.1f} MB; tokenizers {tokenizers.__version__}\n"
    )
    print("| | MB/s | ours reaches |\n|---|---:|---:|")
    for name, times in taken.items():
        share = statistics.median(other / own for own, other in zip(taken["ours"], times, strict=True))
        print(f"| {name} | {size / 1e6 / statistics.median(times):.2f} | {share:.0%} |", flush=True)

    print("\n| prepared | peak of the process |\n|---|---:|")
    peaks(corpus, tokenizer, chosen.memory)


if __name__ == "__main__":
    main()
