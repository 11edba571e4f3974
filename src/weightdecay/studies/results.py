"""What the runs of a study came to, read from their directories: which of them count, and the numbers of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightdecay.errors import DamagedError
from weightdecay.runs import Run, read_json
from weightdecay.studies.directory import Json, StudyDirectory
from weightdecay.studies.metrics import MATCHED

# Of the end of a run's gradient norms: a single step's is noise.
_LAST_SHARE = 0.05


@dataclass
class RunResult:
    """One run of the study.

    Attributes:
        status: finished, diverged, failed, running, stopped, waiting, `other text` or damaged.
        why: in words, where it does not count.
        values: by metric.
        series: what was measured along the way, a row a checkpoint.
        curve: the rows of its evaluations.
    """

    name: str
    arm: str
    seed: int
    status: str
    why: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    series: list[Json] = field(default_factory=list)
    curve: list[Json] = field(default_factory=list)
    environment: Json = field(default_factory=dict)

    @property
    def counted(self) -> bool:
        return self.status == "finished"

    def as_json(self) -> Json:
        kept = {key: getattr(self, key) for key in ("name", "arm", "seed", "status", "counted", "why", "values")}
        return kept


def read_results(directory: StudyDirectory, study: Mapping[str, Any]) -> list[RunResult]:
    """All runs of a study as they are now; asking changes nothing."""
    text_of = {arm["name"]: arm["text"] for arm in study["arms"]}
    texts = {arm: study["texts"][text] for arm, text in text_of.items()}
    failures = {failure["name"]: failure for failure in directory.failures()}
    results = [
        _result(directory, RunResult(run["name"], run["arm"], run["seed"], "waiting"), texts[run["arm"]], failures)
        for run in study["runs"]
    ]
    for text in sorted(set(text_of.values())):  # who has read a passage once fits it otherwise than who read it often
        _add_matched([result for result in results if text_of[result.arm] == text])
    return results


def _result(
    directory: StudyDirectory, result: RunResult, text: Mapping[str, str], failures: Mapping[str, Json]
) -> RunResult:
    run = directory.run(result.name)
    try:
        _read(directory, run, result, text)
    except DamagedError as error:
        result.status, result.why = "damaged", str(error)
    failure = failures.get(result.name)
    if failure and result.status in ("waiting", "stopped"):
        result.status, result.why = failure["outcome"], failure["why"]
    return result


def _read(directory: StudyDirectory, run: Run, result: RunResult, text: Mapping[str, str]) -> None:
    if not (run.path / "run.toml").is_file():
        return
    result.status = run.status()
    path = run.path / "environment.json"
    result.environment = read_json(path) if path.is_file() else {}
    for key in ("corpus_sha256", "tokenizer_sha256"):
        if (found := result.environment.get(key)) != text[key]:
            result.status = "other text"
            result.why = f"its {key} is {str(found)[:12]}, the study's {text[key][:12]}: its loss is on another axis"
            return

    result.curve = list(run.rows("eval"))
    if result.status != "finished":
        return
    measured = directory.measured(result.name)
    if measured is None:
        result.status, result.why = "running", "finished training, not measured yet"
        return
    result.series = measured["series"]
    result.values = _of_metrics(run, result.curve) | measured["values"]
    loss = result.values["val_loss"]
    if loss is None or not math.isfinite(loss):
        result.status, result.why = "diverged", "the held-out loss at the end is not finite"


def _of_metrics(run: Run, curve: Sequence[Json]) -> dict[str, float | None]:
    """What metrics.jsonl and summary.json tell."""
    summary = run.summary() or {}
    along = [row["val_bits_per_byte"] for row in curve if row.get("val_bits_per_byte") is not None]
    norms = [row["grad_norm"] for row in run.rows("train") if row.get("grad_norm") is not None]
    last = norms[-max(1, round(_LAST_SHARE * len(norms))) :]
    return {
        "val_loss": summary.get("val_loss"),
        "val_bits_per_byte": summary.get("val_bits_per_byte"),
        "best_val_bits_per_byte": min(along, default=None),
        "decay_total": summary.get("decay_total"),
        "grad_norm": math.fsum(last) / len(last) if last else None,
    }


def _add_matched(results: Sequence[RunResult]) -> None:
    """Each run's values where its training loss came down to the level that all of them with a series reach."""
    with_series = [result for result in results if result.counted and len(result.series) > 1]
    if not with_series:
        return
    level = max(min(row["train_loss"] for row in result.series) for result in with_series)
    for result in with_series:
        result.values["matched_train_loss"] = level
        for name in result.series[0].keys() - {"step", "train_loss"}:
            result.values[MATCHED + name] = value_at(result.series, name, level)


def value_at(series: Sequence[Mapping[str, float]], name: str, train_loss: float) -> float | None:
    """A quantity where the training loss first came down to a level, along the straight line between two checkpoints.

    None where the first checkpoint lies below it already.
    """
    before = series[0]
    if before["train_loss"] <= train_loss:
        return before[name] if before["train_loss"] == train_loss else None
    for row in series[1:]:
        if row["train_loss"] <= train_loss:
            share = (before["train_loss"] - train_loss) / (before["train_loss"] - row["train_loss"])
            return before[name] + share * (row[name] - before[name])
        before = row
    return None
