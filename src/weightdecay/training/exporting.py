"""A run's model for the world outside: a directory that transformers loads, or one in our own format."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from weightdecay.data.tokenizer import load_tokenizer
from weightdecay.errors import ConfigError, TrainingError
from weightdecay.models import huggingface
from weightdecay.runs import Run
from weightdecay.training import checkpoint
from weightdecay.training.sampling import Report
from weightdecay.training.tokenizerfiles import write_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        step: of the checkpoint.
        architecture: the class of transformers that loads it; empty if there is none.
        files: the names of the weights' files.
        dtype: of the weights.
        remark: why there is no such class, or no such tokenizer, and what rounding does; for people.
    """

    path: Path
    step: int
    architecture: str
    files: list[str]
    dtype: str
    remark: str


def export(
    run: Run, path: Path, report: Report, *, dtype: str = "float32", shard_bytes: float = huggingface.SHARD_BYTES
) -> Exported:
    """Write the newest good checkpoint of a run as config.json, safetensors, tokenizer and generation settings.

    It holds in memory about what one file of weights holds, whatever the model's size.

    Args:
        path: a directory that is empty or not there yet.
        report: told of damaged checkpoints that were passed over.
        dtype: one of DTYPES, to which the weights are rounded.
        shard_bytes: the most that a file of weights holds, one larger tensor aside.

    Raises:
        ConfigError: the run has no checkpoint, the directory holds something, or a weight is too large for the dtype.
        TrainingError: the disk refused; nothing is left behind.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: not an empty directory: give another one")
    found = checkpoint.newest_good(run.checkpoints, report)
    if found is None:
        raise ConfigError(f"{run.path}: no checkpoint yet; let the training reach its first one")
    tokenizer = load_tokenizer(run.tokenizer_path)
    config = run.config().model
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        with found.stored_model() as weights:
            made = huggingface.write(
                partial,
                config,
                weights,
                end_of_text_id=tokenizer.end_of_text_id,
                dtype=DTYPES[dtype],
                shard_bytes=shard_bytes,
            )
        remarks = [f"{made.lacking}; written in our own format"] if made.lacking else []
        if dtype != "float32":
            remarks.append(f"the weights are rounded to {dtype}, the checkpoint's are float32")
        if lacking := write_tokenizer(partial, tokenizer, config.context):
            remarks.append(lacking)
        if path.is_dir():
            path.rmdir()
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot write: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(path, found.step, made.architecture, made.files, dtype, "; ".join(remarks))
