"""A run as it lies on the disk: what of it is as it was written, and what resuming with other settings would change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightdecay import checkpoint
from weightdecay.errors import ConfigError
from weightdecay.models.decoder import GPT
from weightdecay.planning.lockfile import read_lock
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run
from weightdecay.training.optimizers import decay_plan
from weightdecay.training.preflight import missing_names
from weightdecay.training.resuming import can_change, config_changes, with_recorded_choice


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        faults: of each checkpoint, oldest first; none where it is as it was written.
        resumes_from: the step of the newest good checkpoint, 0 for none.
        rows_lost: what is missing of metrics.jsonl, in words; empty where nothing is.
        changes: settings that would differ, in words, each with whether a resume can change it.
        tensors: tensors whose decay would differ, in words.
    """

    faults: Mapping[int, list[str]]
    resumes_from: int
    rows_lost: str
    changes: list[tuple[str, bool]]
    tensors: list[str]

    @property
    def damaged(self) -> bool:
        return any(self.faults.values()) or bool(self.rows_lost)

    def document(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {
            "checkpoints": [{"step": step, "faults": faults} for step, faults in self.faults.items()],
            "resumes_from": self.resumes_from,
            "rows_lost": self.rows_lost,
            "changes": [{"change": words, "possible": possible} for words, possible in self.changes],
            "tensors": self.tensors,
        }


def verify(run: Run, asked: Mapping[str, Any]) -> Verification:
    """Every checkpoint against its manifest, and the run's settings against those asked for.

    Args:
        asked: `section.key` pairs that a resume would be given; none compares nothing.

    Raises:
        ConfigError: a setting that is none, no value for it, or a name that nothing has; all at once.
        DamagedError: run.toml or plan.json cannot be read.
    """
    faults = {one.step: one.faults() for one in checkpoint.checkpoints(run.checkpoints)}
    old = run.config()
    new = _asked_for(old, asked)
    changes = [(words, can_change(key)) for key, words in config_changes(old, new).items()]
    tensors: list[str] = []
    if changes and old.model == new.model:
        saved = read_lock(run.path / "plan.json")
        planned = decay_plan(GPT.blueprint(new.model), new.optimizer)
        tensors = [str(difference) for difference in saved.diff(planned)]
    good = [step for step, found in faults.items() if not found]
    lost = _rows_lost(run, max(faults, default=0), old.run.log_every)
    return Verification(faults, max(good, default=0), lost, changes, tensors)


def _rows_lost(run: Run, step: int, log_every: int) -> str:
    """Rows are on the disk before the checkpoint of their step, so that none after the last of them is missing."""
    last = max((row["step"] for row in run.rows("train")), default=0)
    wanted = step - step % log_every
    return f"metrics.jsonl ends after step {last}, and a checkpoint is of step {step}: rows are lost" * (last < wanted)


def _asked_for(old: TrainConfig, asked: Mapping[str, Any]) -> TrainConfig:
    unknown = missing_names(asked)
    try:
        new = TrainConfig.from_values(old.values() | dict(asked), recipe=old.recipe, scaling=old.scaling)
    except ConfigError as error:
        raise ConfigError([*error.faults, *unknown]) from error
    if unknown:
        raise ConfigError(unknown)
    return with_recorded_choice(old, new)
