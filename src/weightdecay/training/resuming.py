"""Going on with a run: what must be the same, what may change if the user says so, and loading by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weightdecay import checkpoint
from weightdecay.checkpoint import Checkpoint
from weightdecay.errors import ConfigError, DamagedError
from weightdecay.models import huggingface
from weightdecay.models.weightfiles import weight_files
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run, read_json
from weightdecay.storage import why_no_directory
from weightdecay.training.pretrained import pretrained_weights

# Settings that change nothing about what is learned, only what is kept and how the work is shared out.
_FREE = {
    "run.out", "run.log_every", "run.eval_every", "run.eval_tokens", "run.checkpoint_every", "run.keep",
    "run.monitor", "run.monitor_every", "run.monitor_bytes",
    "run.micro_batch_tokens", "run.nproc", "run.compile", "run.activation_checkpointing", "run.init_from",
    "data.sources", "data.text_key", "data.missing_text", "data.separator", "data.encoding_errors",
    "data.tokenizer",  # all of the data's are judged by their hashes
    "optimizer.weight_decay_source", "optimizer.parametrization",  # λ itself is what is compared
}  # fmt: skip
# What a run that was killed before its run.toml leaves; it is written anew.
_BEFORE_A_RUN = {".lock", "plan.json", "tokenizer.json", "environment.json"}
# Settings that a run can change on its way, if its user asks for it.
_CHANGEABLE = ("optimizer.", "schedule.", "run.steps", "run.dtype", "run.on_nonfinite")


def holds_a_run(run: Run, resume: str) -> bool:
    """Whether `run` is there to go on with.

    Raises:
        ConfigError: `resume` is `must` and it is not, or `never` and it is; the directory holds other things.
    """
    if (run.path / "run.toml").is_file():
        if resume == "never":
            raise ConfigError(f"{run.path}: holds a run already: give another --out, or --resume auto to go on with it")
        return True
    if resume == "must":
        raise ConfigError(f"{run.path}: holds no run to resume: correct --out, or start one with --resume auto")
    entries = [entry.name for entry in run.path.iterdir()] if run.path.is_dir() else []
    foreign = [name for name in entries if name not in _BEFORE_A_RUN and not name.startswith(".partial-")]
    if foreign:
        raise ConfigError(f"{run.path}: not empty, and not a run: it holds {', '.join(sorted(foreign)[:5])}; "
                          "give another --out")  # fmt: skip
    return False


def is_finished(run: Run, steps: int, report: Callable[[str], None]) -> bool:
    """Whether nothing is left to do; false for a run that reached its end and whose last checkpoint is damaged since.

    Args:
        steps: how long the run is to be.
        report: told which of it is the case.

    Raises:
        DamagedError: summary.json cannot be read.
    """
    summary = run.summary()
    if not summary or summary["status"] != "finished" or summary["steps"] != steps:
        return False

    last = checkpoint.of_step(run.checkpoints, steps)
    if faults := last.faults():
        report(f"{run.path}: this run was finished, and its last checkpoint is damaged since: {'; '.join(faults)}; its "
               "last steps are made once more")  # fmt: skip
        return False

    rows = max((row["step"] for row in run.rows("train")), default=0)
    cut = f"; its metrics.jsonl was cut off after step {rows}" if rows < steps else ""
    report(f"{run.path}: this run is finished ({steps} steps); nothing to do{cut}")
    return True


def config_changes(old: TrainConfig, new: TrainConfig) -> dict[str, str]:
    """Each setting that differs and decides what is learned, with both values in words."""
    before, after = old.values(), new.values()
    return {
        key: f"{key}: the run has {before.get(key, _NOTHING)}, asked for {after.get(key, _NOTHING)}"
        for key in {**after, **before}
        if before.get(key) != after.get(key) and key not in _FREE
    }


_NOTHING = "no such part"  # a model without experts, say


def can_change(key: str) -> bool:
    """Whether a run can change this setting on its way; another optimizer could not read its state."""
    return key.startswith(_CHANGEABLE) and key != "optimizer.name"


def with_recorded_choice(old: TrainConfig, new: TrainConfig) -> TrainConfig:
    """What is asked for, with what a run does not change on its way: how it computes, and what `auto` took."""
    new = new.resolved(run__arithmetic=old.run.arithmetic)
    if new.run.dtype == "auto":
        new = new.resolved(run__dtype=old.run.dtype)
    recorded, asked = old.optimizer, new.optimizer.weight_decay
    if not recorded.weight_decay_source or asked not in ("auto", recorded.weight_decay):
        return new
    return new.resolved(
        optimizer__weight_decay=recorded.weight_decay, optimizer__weight_decay_source=recorded.weight_decay_source
    )


def agree_on_config(old: TrainConfig, new: TrainConfig, on_change: str, report: Callable[[str], None]) -> TrainConfig:
    """The configuration that a resumed run goes on with, from its next step.

    Args:
        old, new: both resolved.
        on_change: `refuse`, `keep` the old values, or `override` them by the new ones.

    Raises:
        ConfigError: something differs that cannot change on the way, or that `on_change` refuses; all at once.
    """
    before = old.values()
    words = config_changes(old, new)
    differing = list(words)
    fixed = [key for key in differing if not can_change(key)]
    if fixed and on_change != "keep":
        raise ConfigError([f"{words[key]}; this cannot change on the way: give another --out" for key in fixed])
    if differing and on_change == "refuse":
        raise ConfigError(
            [f"{words[key]}; --on-change keep goes on as before, override takes the new value" for key in differing]
        )
    for key in differing:
        report(f"{words[key]}; {'kept' if on_change == 'keep' else 'changed from the next step on'}")
    if on_change != "keep":
        return new
    chosen = {key.replace(".", "__", 1): before[key] for key in differing if not key.startswith("model.")}
    kept = new.replace(**chosen) if chosen else new
    # The run's model whole: parts that it lacks have no values that could be put back one by one.
    return dataclasses.replace(kept, model=old.model) if any(key.startswith("model.") for key in differing) else kept


def check_data(run: Run, identity: Mapping[str, str]) -> None:
    """The corpus and the tokenizer are the run's own.

    Raises:
        ConfigError: they are not.
        DamagedError: environment.json cannot be read.
    """
    recorded = read_json(run.path / "environment.json")
    faults = [
        f"{run.path}: was trained with {key} {str(recorded.get(key))[:12]}, this one is {value[:12]}: give the same "
        "data and tokenizer, or another --out"
        for key, value in identity.items()
        if recorded.get(key) != value
    ]
    if faults:
        raise ConfigError(faults)


def check_start(source: str) -> None:
    """Raise where `--init-from` names nothing that a training could start from, before any work.

    Raises:
        ConfigError: there is no such directory, or nothing in it that is known here, or no weights.
        DamagedError: it cannot be read.
    """
    path = Path(source)
    if not path.is_dir():
        raise ConfigError(
            f"--init-from {path}: {why_no_directory(path)}: give a run, a checkpoint or a Hugging Face directory"
        )
    if huggingface.holds_a_model(path):
        huggingface.read_config(path)
        weight_files(path)
    elif not any((path / name).is_file() for name in ("run.toml", checkpoint.MANIFEST)):
        raise ConfigError(
            f"--init-from {path}: neither a run (run.toml) nor a checkpoint ({checkpoint.MANIFEST}) nor a Hugging Face "
            "directory (config.json)"
        )


def initial_weights(
    source: str, tokenizer_sha256: str, report: Callable[[str], None], advice: Callable[[Path], str]
) -> tuple[dict[str, Tensor], Path]:
    """The weights that `--init-from` names, and where they lie.

    Args:
        source: a run directory (its newest good checkpoint), a checkpoint directory, or a model of transformers.
        tokenizer_sha256: of the data's tokenizer, which must be the source's too.
        advice: what to do about another one, see `tokenizer_advice`.

    Raises:
        ConfigError: there is nothing of that kind, or its tokenizer is another.
        DamagedError: the checkpoint is not as it was written.
    """
    path = Path(source)
    if huggingface.holds_a_model(path):
        return pretrained_weights(path, tokenizer_sha256, report, advice), path
    if (path / checkpoint.MANIFEST).is_file():
        chosen, run = Checkpoint(path), Run(path.resolve().parent.parent)
        if faults := chosen.faults():
            raise DamagedError("\n".join(faults))
    else:
        run = Run.open(path)
        found = checkpoint.newest_good(run.checkpoints, report)
        if found is None:
            raise ConfigError(f"{path}: the run has no checkpoint to start from")
        chosen = found
    recorded = recorded_environment(run).get("tokenizer_sha256")
    if recorded is not None and recorded != tokenizer_sha256:
        raise ConfigError(f"{path}: its weights speak another tokenizer than the data: {advice(run.tokenizer_path)}")
    return chosen.model(), chosen.path / checkpoint.MODEL


def recorded_environment(run: Run) -> dict[str, Any]:
    """environment.json, or nothing where there is none."""
    path = run.path / "environment.json"
    return read_json(path) if path.is_file() else {}
