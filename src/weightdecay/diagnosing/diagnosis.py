"""`diagnose`: findings on a run, and where each role's tensors are beside where theory expects them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightdecay.diagnosing.findings import (
    by_the_monitor,
    decay_total,
    of_the_length,
    of_the_loss,
    of_the_plan,
    of_the_theory,
    within_theory,
)
from weightdecay.monitoring.alarms import SEVERITIES, Alarm
from weightdecay.monitoring.rows import Row, role_row
from weightdecay.runs import Run


@dataclass(frozen=True)
class Diagnosis:
    """What a run's rows say of its decay.

    Attributes:
        step, steps: how far it has come, and how long it is to be.
        findings: the gravest first; the codes that are the audit's mean what they mean there.
        roles: for each role what its tensors' latest rows come to, as the monitor's rows of kind `decay-role`.
        decay_total: Σ of the decay per step over the whole run; None where the gradients decide.
        within: the part of the hidden matrices' rows of the last quarter that turn as theory expects.
        remarks: what could not be judged, and why.
    """

    run: str
    status: str
    step: int
    steps: int
    optimizer: str
    findings: tuple[Alarm, ...]
    roles: tuple[Row, ...]
    decay_total: float | None
    within: float | None
    remarks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No error and no warning."""
        return all(finding.severity == "note" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The same for machines."""
        return {**asdict(self), "ok": self.ok, "findings": [_plain(finding) for finding in self.findings]}

    def __str__(self) -> str:
        from weightdecay.diagnosing.rendering import text

        return text(self)


def diagnose(run: Run | str | Path) -> Diagnosis:
    """Findings on a run that has ended, or goes on in another process; nothing of it changes.

    Args:
        run: a run directory.

    Raises:
        ConfigError: it is none.
        DamagedError: run.toml or summary.json cannot be read.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config, status = run.config(), run.status()
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in run.rows():
        kinds[row["kind"]].append(row)
    training, tensors = kinds["train"], kinds["decay"]
    step = max((row["step"] for row in (*training, *tensors)), default=0)

    remarks = [
        *_progress(run, status, step, config.run.steps),
        *_skipped(training),
        *_unseen(tensors, config.run.monitor, step),
    ]
    findings = [
        *by_the_monitor(tensors, kinds["alarm"]),
        *of_the_loss(training),
        *of_the_length(config),
        *of_the_theory(tensors, step),
        *of_the_plan(run.path / "plan.json", tensors, remarks),
    ]
    return Diagnosis(
        run=str(run.path),
        status=status,
        step=step,
        steps=config.run.steps,
        optimizer=f"{config.optimizer.name}, rule {config.optimizer.rule}",
        findings=tuple(sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), one.step))),
        roles=tuple(_roles(tensors)),
        decay_total=decay_total(config),
        within=within_theory(tensors, step),
        remarks=tuple(remarks),
    )


def _progress(run: Run, status: str, step: int, steps: int) -> list[str]:
    remarks = []
    if status == "running":
        remarks.append(f"the run is going on, at step {step:,} of {steps:,}: what is said here may change")
    elif status == "stopped":
        remarks.append(f"the run has stopped after step {step:,} of {steps:,}")
    if status != "running" and _is_cut(run.metrics_path):
        remarks.append("the last row of metrics.jsonl was cut off, and is left out")
    return remarks


def _skipped(training: Sequence[Row]) -> list[str]:
    skipped = training[-1].get("skipped_steps", 0) if training else 0
    return [f"{skipped:,} steps were left out, as their gradient was not finite"] if skipped else []


def _is_cut(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _unseen(tensors: Sequence[Row], monitored: bool, step: int) -> list[str]:
    """What no row tells, and why."""
    if not tensors:
        why = "it was trained with --no-monitor" if not monitored else "none was due yet, or an older version made it"
        return [f"there are no rows of a monitor ({why}): only losses, plan and configuration are judged"]
    remarks = []
    latest = {row["name"]: row for row in tensors}
    reasons = Counter(row["no_theory"] for row in latest.values() if row["hidden"] and row.get("no_theory"))
    remarks += [f"{reason} ({count} hidden matrices)" for reason, count in reasons.most_common()]
    gone = [name for name, row in latest.items() if row["step"] < _LONG_AGO * step]
    if gone:
        remarks.append(f"{len(gone)} tensors were not seen any more in the second half, {gone[0]} among them")
    return remarks


_LONG_AGO = 0.5


def _roles(tensors: Sequence[Row]) -> list[Row]:
    """What the latest rows of each role come to; of tensors whose weights are no numbers any more, nothing."""
    latest = {row["name"]: row for row in tensors if row["weight_rms"] is not None}
    by_role: dict[str, list[Row]] = defaultdict(list)
    for row in latest.values():
        by_role[row["role"]].append(row)
    return [role_row(rows, max(row["step"] for row in rows)) for rows in by_role.values()]


def _plain(finding: Alarm) -> dict[str, Any]:
    return {**asdict(finding), "tensors": list(finding.tensors)}
