"""A run's model for the world outside: a directory that transformers loads, or one in our own format."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from weightdecay.data.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from weightdecay.errors import ConfigError, TrainingError
from weightdecay.models import huggingface
from weightdecay.runs import Run
from weightdecay.training import checkpoint
from weightdecay.training.sampling import Report


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        step: of the checkpoint.
        architecture: the class of transformers that loads it; empty if there is none.
        remark: why there is none, or why transformers has no such tokenizer; for people.
    """

    path: Path
    step: int
    architecture: str
    remark: str


def export(run: Run, path: Path, report: Report) -> Exported:
    """Write the newest good checkpoint of a run as config.json, safetensors and tokenizer.

    Args:
        path: a directory that is empty or not there yet.
        report: told of damaged checkpoints that were passed over.

    Raises:
        ConfigError: the run has no checkpoint, or the directory holds something.
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
        said = huggingface.write(partial, config, found.model(), end_of_text_id=tokenizer.end_of_text_id)
        remarks = [] if said in huggingface.ARCHITECTURES else [f"{said}; written in our own format"]
        remarks += _write_tokenizer(partial, tokenizer, config.context)
        if path.is_dir():
            path.rmdir()
        partial.rename(path)
    except OSError as error:
        raise TrainingError(f"{path}: cannot write: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(path, found.step, "" if said not in huggingface.ARCHITECTURES else said, "; ".join(remarks))


def _write_tokenizer(path: Path, tokenizer: Tokenizer, context: int) -> list[str]:
    (path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return ["transformers has no such tokenizer: tokenizer.json is for weightdecay alone"]
    end = tokenizer.decode([tokenizer.end_of_text_id])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return []
