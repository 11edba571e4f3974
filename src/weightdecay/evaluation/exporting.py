"""A run's model for the world outside: a directory that transformers loads, or one in our own format."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from weightdecay.errors import ConfigError, TrainingError
from weightdecay.evaluation.tokenizerfiles import write_tokenizer
from weightdecay.evaluation.trained import NEWEST, Report, Stored, find
from weightdecay.models import huggingface
from weightdecay.runs import Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        step: of the checkpoint; None where nothing says.
        architecture: the class of transformers that loads it; empty if there is none.
        files: the names of the weights' files.
        dtype: of the weights.
        remark: why there is no such class, or no such tokenizer, and what rounding does; for people.
    """

    path: Path
    step: int | None
    architecture: str
    files: list[str]
    dtype: str
    remark: str


def export(
    source: Run | Stored | Path,
    path: Path,
    report: Report,
    *,
    dtype: str = "float32",
    shard_bytes: float = huggingface.SHARD_BYTES,
    which: str = NEWEST,
) -> Exported:
    """Write a trained model as config.json, safetensors, tokenizer and generation settings.

    It holds in memory about what one file of weights holds, whatever the model's size.

    Args:
        source: a run, or what else `evaluation.trained.find` takes.
        path: a directory that is empty or not there yet.
        report: told of damaged checkpoints that were passed over.
        dtype: one of DTYPES, to which the weights are rounded.
        shard_bytes: the most that a file of weights holds, one larger tensor aside.
        which: of a run's checkpoints `newest` (the newest good one), `best`, or the number of a step.

    Raises:
        ConfigError: the run has no checkpoint, the directory holds something, or a weight is too large for the dtype.
        TrainingError: the disk refused; nothing is left behind.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: not an empty directory: give another one")
    if isinstance(source, Stored):
        stored = source
    else:
        stored = find(source.path if isinstance(source, Run) else source, report, which)
    tokenizer, config = stored.tokenizer(), stored.config
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        with stored.weights(report) as weights:
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
    return Exported(path, stored.step, made.architecture, made.files, dtype, "; ".join(remarks))
