"""What a run's directory says at this moment: of a run that has ended, goes on, was killed or is damaged in parts.

Nothing here fails on what is missing: it is said on the page, and the rest is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from weightdecay.errors import WeightDecayError, printable
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.planned import Plan
from weightdecay.recipes.settings import TrainConfig
from weightdecay.reporting.page import Finding
from weightdecay.runs import Row, Run, read_json

T = TypeVar("T")


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        status: finished, running or stopped.
        rows: of metrics.jsonl, by their kind, in the order of steps.
        faults: what of the directory could not be read.
        readable: whether all lines of metrics.jsonl are rows, but for a last one that was cut off.
    """

    path: Path
    status: str
    config: TrainConfig | None
    environment: Row
    plan: Plan | None
    summary: Row
    rows: dict[str, list[Row]]
    faults: list[Finding] = field(default_factory=list)
    readable: bool = True

    @property
    def name(self) -> str:
        return printable(self.path.resolve().name) or "run"

    @property
    def training(self) -> list[Row]:
        return self.rows.get("train", [])

    @property
    def evaluations(self) -> list[Row]:
        return self.rows.get("eval", [])

    @property
    def step(self) -> int:
        """Steps that are done."""
        return max((int(row["step"]) for row in self.training), default=0)

    @property
    def steps(self) -> int | None:
        """Steps that were asked for."""
        return self.config.run.steps if self.config else self.summary.get("steps")

    @property
    def last(self) -> Row:
        """The last training row; empty before the first."""
        return self.training[-1] if self.training else {}

    @property
    def held_out(self) -> Row:
        """The last evaluation; empty before the first."""
        return self.evaluations[-1] if self.evaluations else {}

    @property
    def best(self) -> Row:
        """The evaluation with the lowest loss; empty where none has one."""
        told = [row for row in self.evaluations if number(row.get("val_loss")) is not None]
        return min(told, key=lambda row: row["val_loss"], default={})

    @property
    def diverged(self) -> bool:
        """Whether its last loss is above its first, or no number: JSON has no word for infinity, and rows say null."""
        if not self.training:
            return False
        first, last = (number(row.get("loss")) for row in (self.training[0], self.training[-1]))
        return last is None or (first is not None and last > first)

    @property
    def text(self) -> tuple[str, str]:
        """Hashes of what its losses are of: its corpus and its tokenizer; losses compare where both are the same."""
        return str(self.environment.get("corpus_sha256", "")), str(self.environment.get("tokenizer_sha256", ""))

    def measure(self) -> tuple[str, str, str]:
        """How its held-out loss is told: by bits per byte where they are known; key, words and unit."""
        if number(self.held_out.get("val_bits_per_byte")) is not None:
            return "val_bits_per_byte", "held-out loss", "bits per byte"
        return "val_loss", "held-out loss", "nats a token"


def record_of(path: Path) -> RunRecord:
    """What the run's directory says.

    Raises:
        ConfigError: it is no run's.
    """
    run = Run.open(path)
    faults: list[Finding] = []
    rows = _rows(run, faults)
    summary = _attempt(run.summary, faults) or {}
    status = _attempt(run.status, faults) or "stopped"
    config = _attempt(run.config, faults)
    environment = path / "environment.json"
    plan = path / "plan.json"
    return RunRecord(
        path=path,
        status=status,
        config=config,
        environment=(_attempt(lambda: read_json(environment), faults) or {}) if environment.is_file() else {},
        plan=_attempt(lambda: DecayPlan.read(plan), faults) if plan.is_file() else None,
        summary=summary,
        rows=_ordered(rows, running=status == "running", faults=faults),
        faults=faults,
        readable=None not in rows.rows,
    )


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _attempt(read: Callable[[], T], faults: list[Finding]) -> T | None:
    try:
        return read()
    except WeightDecayError as error:
        faults += [Finding("error", "A file of the run cannot be read", printable(fault)) for fault in error.faults]
        return None


@dataclass(frozen=True)
class _Lines:
    """metrics.jsonl, line by line; None for one that is no row."""

    rows: list[Row | None]
    torn: bool


def _rows(run: Run, faults: list[Finding]) -> _Lines:
    """Not `Run.rows`, which a resume reads: a page goes on behind a damaged line, and counts those."""
    try:
        text = run.metrics_path.read_bytes() if run.metrics_path.is_file() else b""
    except OSError as error:
        faults.append(
            Finding("error", "metrics.jsonl cannot be read", printable(f"{run.metrics_path}: {error.strerror}"))
        )
        text = b""
    *whole, rest = text.split(b"\n")
    found = [_row(line) for line in whole]
    last = _row(rest) if rest else None
    return _Lines([*found, *([last] if last else [])], torn=bool(rest) and last is None)


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and number(row.get("step")) is not None else None


def _ordered(lines: _Lines, *, running: bool, faults: list[Finding]) -> dict[str, list[Row]]:
    """Rows by kind and step; of a step that was taken again after a resume, the later one."""
    damaged = sum(row is None for row in lines.rows)
    if damaged:
        words = f"{damaged:,} of {len(lines.rows):,} lines of metrics.jsonl are no rows, and are left out"
        faults.append(Finding("warning", "Damaged metric rows", words))
    if lines.torn and not running:  # of a running one the next line is just being written
        words = "The last row of metrics.jsonl was cut off, as by a kill or a full disk; it is left out"
        faults.append(Finding("warning", "Last row cut off", words))
    kinds: dict[str, list[Row]] = {}
    for row in lines.rows:
        if row is not None:
            kinds.setdefault(str(row.get("kind", "")), []).append(row)
    return {kind: sorted(rows, key=lambda row: float(row["step"])) for kind, rows in kinds.items()}
