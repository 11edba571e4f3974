"""From what a user names to a tokenizer: bytes, BPE trained on the corpus and kept, a file, or tiktoken's.

tokenizer = make_tokenizer("bpe:4096", corpus)     # or "byte", "path/to/tokenizer.json", "tiktoken:gpt2"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightdecay.data.corpus import Corpus, Progress
from weightdecay.data.pieces import cuts_of_pipeline, pieces
from weightdecay.data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    HuggingFaceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    load_tokenizer,
)
from weightdecay.errors import DamagedError, DataError, MissingExtraError, did_you_mean
from weightdecay.storage import cache_directory, is_directory, is_file

SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 257, 1 << 20


def make_tokenizer(
    spec: str, corpus: Corpus | None = None, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Tokenizer:
    """The tokenizer that a specification names.

    Args:
        spec: "byte"; "bpe:N", a byte-level BPE of at most N tokens trained on the corpus's training part; the path of
            a `tokenizer.json`, or of a directory that holds one; "tiktoken:NAME".
        corpus: what bpe:N is trained on.
        cache_dir: where trained tokenizers are kept; the user's cache if None.
        progress: told how much text a tokenizer has been trained on.

    Raises:
        DataError: an unknown specification, or a tokenizer that cannot be had.
    """
    check_tokenizer_spec(spec)
    kind, _, argument = spec.partition(":")
    if spec == "byte":
        return ByteTokenizer()
    if kind == "tiktoken":
        return TiktokenTokenizer(_tiktoken_encoding(argument))
    if kind != "bpe":
        return load_tokenizer(_file_of(spec))
    if corpus is None:
        raise DataError(f"tokenizer '{spec}' is trained on a corpus, and none was given")
    return _trained_bpe(int(argument), corpus, cache_dir or cache_directory(), progress)


def check_tokenizer_spec(spec: str) -> None:
    """Whether `make_tokenizer` could make anything of it, found out at once.

    Raises:
        DataError: it could not.
    """
    kind, _, argument = spec.partition(":")
    if spec == "byte" or kind == "tiktoken" or is_file(_file_of(spec)):
        return
    if kind == "bpe":
        if not re.fullmatch("[0-9]{1,9}", argument) or not SMALLEST_VOCABULARY <= int(argument) <= LARGEST_VOCABULARY:
            raise DataError(
                f"tokenizer '{spec}': bpe:N takes N from {SMALLEST_VOCABULARY} (all bytes and the end of text) to "
                f"{LARGEST_VOCABULARY}"
            )
    elif spec and is_directory(Path(spec)):
        raise DataError(f"tokenizer '{spec}': a directory without tokenizer.json")
    elif spec.endswith(".json") or "/" in spec:
        raise DataError(f"tokenizer '{spec}': no such file")
    else:
        known = ["byte", "bpe:4096", "tiktoken:gpt2", "a path of a tokenizer.json"]
        raise DataError(f"unknown tokenizer '{spec}'; {did_you_mean(spec, known)}")


def refuse_another_tokenizer(prepared: Path, tokenizer: Tokenizer, spec: str) -> None:
    """Raise where a specification that was given means another tokenizer than prepared data was written with.

    Of bpe:N only the size can be compared: the text it would be trained on is not here.

    Raises:
        DataError: it does.
    """
    kind, _, argument = spec.partition(":")
    if kind == "bpe":
        check_tokenizer_spec(spec)
        same = isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.vocab_size == int(argument)
    else:
        same = make_tokenizer(spec).sha256 == tokenizer.sha256
    if not same:
        raise DataError(
            f"--tokenizer {spec}: {prepared} was prepared with another tokenizer, {prepared / 'tokenizer.json'}: leave "
            f"--tokenizer out, or prepare the text again: weightdecay data prepare SRC… --tokenizer {spec} --out DIR"
        )


def _file_of(spec: str) -> Path:
    """The tokenizer.json that is meant by its path, or by that of the directory it lies in (`save_pretrained`)."""
    path = Path(spec)
    return path / "tokenizer.json" if spec and is_directory(path) else path


def _trained_bpe(vocab_size: int, corpus: Corpus, cache_dir: Path, progress: Progress | None) -> Tokenizer:
    """From the cache if the same corpus was seen before; two processes that train it at once write the same file."""
    path = cache_dir / "tokenizers" / f"bpe-{vocab_size}-{corpus.sha256[:32]}.json"
    if is_file(path):
        try:
            return load_tokenizer(path)
        except (DataError, DamagedError):
            pass  # a cache is only a cache
    tokenizer = HuggingFaceTokenizer(_train_bpe(vocab_size, corpus, progress))
    tokenizer.save(path)
    return tokenizer


def _train_bpe(vocab_size: int, corpus: Corpus, progress: Progress | None) -> str:
    """GPT-2's byte-level BPE (Radford et al. 2019, §2.2), its merges learnt from the training part alone."""
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import decoders, models, pre_tokenizers, trainers

    pipeline = Pipeline(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    cuts = cuts_of_pipeline(json.loads(pipeline.to_str()))

    def texts() -> Iterator[str]:
        done, total = 0, corpus.summary.n_bytes - corpus.summary.held_out_bytes
        for document in corpus.training():
            for piece in pieces(document.blocks(), cuts):
                yield piece
                done += len(piece)
                if progress is not None:
                    progress("training the tokenizer", done, total)

    pipeline.train_from_iterator(texts(), trainer)
    text: str = pipeline.to_str()
    return text


def _tiktoken_encoding(name: str) -> Any:
    try:
        import tiktoken
    except ImportError:
        raise MissingExtraError(f"the tokenizer tiktoken:{name}", "tiktoken") from None
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise DataError(f"unknown tokenizer 'tiktoken:{name}'; {did_you_mean(name, known)}")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # whatever the download raises
        raise DataError(
            f"tiktoken:{name}: its files cannot be had ({type(error).__name__}); fetch them once where there is a "
            "network and set TIKTOKEN_CACHE_DIR to the folder that holds them"
        ) from error
