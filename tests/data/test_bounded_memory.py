"""Preparing text needs the same memory whatever the text's size: the peak of a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from weightdecay.data.corpus import Corpus
from weightdecay.data.tokenizer import Tokenizer

MEGABYTE = 1_000_000

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks Linux for the peak of a process")

SCRIPT = """
import json, re, sys
from pathlib import Path
from weightdecay.data.prepare import prepare_text
tokenizer, *texts = sys.argv[1:]
for text in texts:
    prepared = prepare_text([text], Path(text + " prepared"), tokenizer)
    # Not getrusage's ru_maxrss, which a process inherits from the one that started it.
    peak = 1024 * int(re.search("VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
    print(json.dumps([peak, prepared.summary.n_bytes]))
"""


def peaks_bytes(tokenizer: Path, *texts: Path) -> list[int]:
    """The peak up to the end of each text, prepared one after the other."""
    command = [sys.executable, "-c", SCRIPT, str(tokenizer), *map(str, texts)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks, sizes = zip(*map(json.loads, ended.stdout.splitlines()), strict=True)
    assert list(sizes) == [text.stat().st_size for text in texts]
    return list(peaks)


def write_text(path: Path, line: str, size: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for _ in range(size // (1000 * len(line))):
            file.write(line * 1000)
    return path


LINES = {
    "lines": "characterisation, internationalisation: straightforwardness (incomprehensibilities)\n",
    "one line": "characterisation, internationalisation: straightforwardness (incomprehensibilities) ",
}


@pytest.mark.parametrize("kind", LINES)
def test_much_text_needs_hardly_more_memory_than_little(kind: str, bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    texts = [write_text(tmp_path / f"{size}.txt", LINES[kind], size * MEGABYTE) for size in (6, 30)]
    peaks = peaks_bytes(tmp_path / "tokenizer.json", *texts)
    assert peaks[1] < 250 * MEGABYTE
    assert peaks[1] - peaks[0] < 23 * MEGABYTE  # 5 to 16 are seen, as threads meet, and the text itself has 24 more


@pytest.mark.long
def test_a_gigabyte_of_text_is_prepared_in_less_than_a_gigabyte(bpe: Tokenizer, stdlib: Corpus, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    library = "".join(document.text for document in stdlib.documents())
    text = tmp_path / "large.txt"
    with text.open("w", encoding="utf-8", newline="\n") as file:
        for _ in range(1000 * MEGABYTE // len(library) + 1):
            file.write(library)
    assert text.stat().st_size > 1000 * MEGABYTE
    assert peaks_bytes(tmp_path / "tokenizer.json", text)[0] < 300 * MEGABYTE
