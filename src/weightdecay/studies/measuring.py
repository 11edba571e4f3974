"""What is measured of a finished run beside its own metrics, once, in the process that trained it.

A measure takes the run with its model and gives numbers by metric. Those that say how memorising came about are also
taken at every checkpoint along the way, beside the loss on a fixed part of the training text without dropout: two runs
are compared where they fit that equally well, not where they happened to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from weightdecay import checkpoint
from weightdecay.data.loader import evaluation_batches
from weightdecay.data.prepare import Prepared, open_prepared
from weightdecay.errors import DamagedError
from weightdecay.evaluation.loss import EVALUATION_TOKENS, nats, own_text
from weightdecay.evaluation.tasks import solve
from weightdecay.evaluation.trained import Trained, find, load
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run
from weightdecay.studies.canaries import PREFIXES, CanaryPlan, make_canaries, memorised
from weightdecay.studies.directory import MEASURED, SCHEMA_VERSION, StudyDirectory
from weightdecay.studies.rounding import compressed_bits, with_rounded_weights
from weightdecay.studies.texts import MAIN, OTHER

# Of the training text, enough for a loss to 0.01 and little beside the training.
_TRAINING_SAMPLE = 32_768
_HELD_OUT_SAMPLE = 65_536
# Width of the grid on which all models are compressed: 1/32 of the usual initial size, 0.02, of a weight.
_GRID = 0.02 / 32
# The fine-tuning on another text: a tenth of the run, at a tenth of its rate.
_FINETUNING_SHARE = 0.1
_SILENT = lambda _message: None  # noqa: E731  # what a damaged checkpoint would be told to

Values = dict[str, float | None]


@dataclass(frozen=True)
class Measured:
    """A finished run as measures see it.

    Attributes:
        directory: of the study.
        which: of the run's checkpoints.
    """

    directory: StudyDirectory
    name: str
    run: Run
    which: str = "newest"

    @cached_property
    def trained(self) -> Trained:
        return load(find(self.run.path, _SILENT, self.which), _SILENT)

    @cached_property
    def main(self) -> Prepared:
        """The study's main text: the same for all runs, whatever was planted in theirs."""
        return open_prepared(self.directory.texts / MAIN, verify=False)

    def loss(self, tokens: Any, most: int) -> float:
        """In nats a token, without dropout."""
        model = self.trained.model
        context = model.config.context
        batches = evaluation_batches(
            tokens, context, max(1, EVALUATION_TOKENS // context), most,
            end_of_text_id=self.trained.tokenizer.end_of_text_id,
        )  # fmt: skip
        total, count = nats(model, batches, device=torch.device("cpu"), dtype=torch.float32)
        return total / count


Measure = Callable[[Measured], Values]


def measure(directory: StudyDirectory, name: str, run: Run, measures: Sequence[str]) -> None:
    """Take the measures of a finished run and write them beside it; then keep its last checkpoint alone.

    Raises:
        DamagedError: a checkpoint is not as it was written.
    """
    last = Measured(directory, name, run)
    values: Values = {}
    for each in measures:
        values |= MEASURES[each](last)
    values["gap"] = _held_out_loss(last) - float(values["train_loss"] or math.nan)

    series = []
    if along := [each for each in measures if each in _ALONG_THE_WAY]:
        for point in checkpoint.checkpoints(run.checkpoints):
            there = Measured(directory, name, run, str(point.step))
            row: dict[str, float | None] = {"step": point.step, **_fit(there)}
            for each in along:
                row |= MEASURES[each](there)
            series.append(row)
    run.write_json(MEASURED, {"schema_version": SCHEMA_VERSION, "values": values, "series": series})
    checkpoint.prune(run.checkpoints, keep=1)


def _held_out_loss(measured: Measured) -> float:
    return measured.loss(measured.main.held_out.tokens, _HELD_OUT_SAMPLE)


def _fit(measured: Measured) -> Values:
    """How well the training text is fitted, and how large the weights are for it."""
    matrices = [p.detach().double() for p in measured.trained.model.parameters() if p.ndim >= 2]
    squares = math.fsum(float(p.square().sum()) for p in matrices)
    return {
        "train_loss": measured.loss(measured.main.training.tokens, _TRAINING_SAMPLE),
        "weight_rms": math.sqrt(squares / sum(p.numel() for p in matrices)),
    }


def _canaries(measured: Measured) -> Values:
    study = measured.directory.study()
    plan = CanaryPlan(**{**study["canaries"], "repeats": tuple(study["canaries"]["repeats"])})
    tokenizer = measured.trained.tokenizer
    found = memorised(measured.trained.model, make_canaries(plan, tokenizer), tokenizer.end_of_text_id)
    values: Values = {f"exposure_{repeats}": cell.exposure for repeats, cell in found.items()}
    most = found[max(found)]
    return values | {f"extracted_{k}": most.extracted[k] for k in PREFIXES}


def _rounding(measured: Measured) -> Values:
    model, values = measured.trained.model, Values()
    whole = _held_out_loss(measured)
    for bits in (8, 4):
        with with_rounded_weights(model, bits):
            values[f"int{bits}_loss"] = _held_out_loss(measured) - whole
    return values | {"compressed_bits": compressed_bits(model, _GRID)}


def _tasks(measured: Measured) -> Values:
    text = own_text(measured.run, measured.trained.tokenizer)
    results = solve(measured.trained, text)
    above = [result.share - result.chance for result in results if result.share is not None]
    return {f"task_{result.name}": result.share for result in results} | {"tasks": math.fsum(above) / len(above)}


def _finetuning(measured: Measured) -> Values:
    """The loss on another text before and after a short training on it, without decay, from these weights."""
    from weightdecay.training.progress import SilentReporter
    from weightdecay.training.trainer import train

    other = measured.directory.texts / OTHER
    config = _finetuning_config(measured.run.config(), measured, str(other.resolve()))
    held_out = open_prepared(other, verify=False).held_out.tokens
    before = measured.loss(held_out, _HELD_OUT_SAMPLE)
    tuned = train(config, reporter=SilentReporter())
    after = Measured(measured.directory, measured.name, tuned).loss(held_out, _HELD_OUT_SAMPLE)
    return {"finetuned_loss": after, "finetuning_gain": before - after}


def _finetuning_config(config: TrainConfig, measured: Measured, other: str) -> TrainConfig:
    steps = max(20, round(_FINETUNING_SHARE * config.run.steps))
    return config.resolved(
        data__sources=(other,),
        optimizer__lr=config.optimizer.lr / 10,
        optimizer__weight_decay=0.0,
        run__steps=steps,
        run__eval_every=steps,
        run__checkpoint_every=steps,
        run__out=str(measured.directory.finetuned(measured.name).path),
        run__init_from=str(measured.run.path),
    )


def _rotation(measured: Measured) -> Values:
    """How fast the hidden matrices turn in the run's last quarter, beside what theory says; from the monitor's rows."""
    steps = measured.run.config().run.steps
    rows = [row for row in measured.run.rows("decay") if row.get("hidden") and row["step"] > 0.75 * steps]
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("angle"):
            by_name.setdefault(row["name"], []).append(row)
    if not by_name:
        raise DamagedError(f"{measured.run.path}: metrics.jsonl has no rows of the monitor over the last quarter")

    angles = {name: _mean([row["angle"] for row in own]) for name, own in by_name.items()}
    told = {name: [row["expected_angle"] for row in own if row.get("expected_angle")] for name, own in by_name.items()}
    within = [abs(angles[name] / _mean(each) - 1) <= 0.25 for name, each in told.items() if each]
    logs = [math.log(angle) for angle in angles.values()]
    return {
        "rotating_as_told": sum(within) / len(within) if within else None,
        "rotation_spread": math.sqrt(_mean([(log - _mean(logs)) ** 2 for log in logs])),
    }


def _ending(measured: Measured) -> Values:
    """How norms of weights and gradients move while the rate falls: their end over their half-way value."""
    steps = measured.run.config().run.steps
    train = [row for row in measured.run.rows("train") if row.get("grad_norm") is not None]
    norms = [row for row in measured.run.rows("decay-role") if row.get("hidden") and row.get("weight_rms")]

    def ratio(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
        half = [row[key] for row in rows if 0.45 * steps <= row["step"] <= 0.55 * steps]
        end = [row[key] for row in rows if row["step"] >= 0.95 * steps]
        return _mean(end) / _mean(half) if half and end else None

    return {
        "norm_end_over_peak": ratio(norms, "weight_rms"),
        "gradient_end_over_peak": ratio(train, "grad_norm"),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


MEASURES: dict[str, Measure] = {
    "fit": _fit,
    "canaries": _canaries,
    "rounding": _rounding,
    "tasks": _tasks,
    "finetuning": _finetuning,
    "rotation": _rotation,
    "ending": _ending,
}
_ALONG_THE_WAY = {"canaries"}
