"""A study of seconds: a decoder of some thousand weights, two arms, a few steps, canaries; everything else is real."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightdecay.studies.analysis import analyse
from weightdecay.studies.catalogue.memorization import MEMORIZATION
from weightdecay.studies.design import Arm, Plan, SizeName, Study, against_first
from weightdecay.studies.directory import RESULTS, Json, StudyDirectory
from weightdecay.studies.pictures import curves, points, scatter, weight_decay_axis
from weightdecay.studies.runner import begin, carry_out, tasks_of
from weightdecay.studies.texts import TextPlan
from weightdecay.studies.worker import Outcome, carried_out

STEPS = 8
SETTINGS: Mapping[str, Any] = {
    "model.n_layers": 1, "model.d_model": 16, "model.attention.n_heads": 2, "model.context": 16,
    "run.steps": STEPS, "run.batch_tokens": 64, "run.eval_every": 4, "run.log_every": 1, "run.checkpoint_every": 2,
    "run.keep": STEPS, "run.monitor": False, "run.eval_tokens": 256,
}  # fmt: skip
ARMS = (
    Arm("λ=0", {"weight_decay": 0.0}, {"optimizer.weight_decay": 0.0}),
    Arm("</script> λ=3", {"weight_decay": 3.0}, {"optimizer.weight_decay": 3.0}),
)
TEXT = {"main": TextPlan(20_000, tokenizer="byte")}


def plan(_: SizeName) -> Plan:
    contrasts = (*against_first("val_bits_per_byte", ARMS), *against_first("train_loss", ARMS))
    return Plan("gpt3:nano", SETTINGS, ARMS, contrasts, TEXT)


TINY = dataclasses.replace(
    MEMORIZATION,
    name="tiny",
    headline="val_bits_per_byte",
    plan=plan,
    pictures=lambda found: [
        points(found, "p", "P", "p.", x=weight_decay_axis(), y="val_bits_per_byte"),
        curves(found, "c", "C", "c."),
        scatter(found, "s", "S", "s.", x="weight_rms", y="gap"),
    ],
    conclude=lambda _: [],
)


def in_this_process(path: Path, sources: list[str], study: Study = TINY, n_seeds: int = 2) -> dict[str, Outcome]:
    """A study's runs one after the other, without processes of their own, and its analysis."""
    directory = StudyDirectory(path)
    with directory.lock():
        begin(study, directory, size="quick", n_seeds=n_seeds, sources=sources)
    outcomes = {task.name: carried_out(task) for task in tasks_of(directory)}
    for name, outcome in outcomes.items():
        if outcome.outcome in ("failed", "diverged"):
            directory.add_failure(name, outcome.exit_code, outcome.outcome, outcome.why)
    judged(directory, study)
    return outcomes


def judged(directory: StudyDirectory, study: Study = TINY) -> Json:
    directory.write(RESULTS, analyse(study, directory))
    return directory.results()


if __name__ == "__main__":  # python -m tests.studies.tiny DIRECTORY SOURCE JOBS
    carry_out(
        TINY, Path(sys.argv[1]), size="quick", n_seeds=2, jobs=int(sys.argv[3]), sources=[sys.argv[2]],
        report=lambda line: print(line, flush=True),
    )  # fmt: skip
