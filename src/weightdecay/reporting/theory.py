"""What `weightdecay diagnose` says of a run, on its page: findings, and each role beside what theory expects."""

from __future__ import annotations

from collections.abc import Iterator

from weightdecay.diagnosing.diagnosis import Diagnosis, diagnose
from weightdecay.errors import WeightDecayError, printable
from weightdecay.reporting.numbers import shown_number
from weightdecay.reporting.page import Block, Finding, Listing, Paragraph, Section, Table
from weightdecay.reporting.run_record import RunRecord, number
from weightdecay.runs import Row

_NAMED = 3


def diagnosis_of(record: RunRecord) -> Diagnosis | None:
    """The diagnosis; None where files of the run are damaged, or its rows are not those that a monitor writes."""
    if record.config is None or not record.readable:
        return None
    try:
        return diagnose(record.path)
    except (WeightDecayError, KeyError, TypeError, ValueError):
        return None


def findings_of(found: Diagnosis) -> Iterator[Finding]:
    """Its findings, each with the first of its tensors."""
    for alarm in found.findings:
        tensors = [printable(name) for name in alarm.tensors]
        more = f" and {len(tensors) - _NAMED} more" if len(tensors) > _NAMED else ""
        named = f" ({', '.join(tensors[:_NAMED])}{more})" if tensors else ""
        yield Finding(alarm.severity, printable(alarm.title), f"{printable(alarm.detail)}{named}")


def theory_section(found: Diagnosis) -> Section | None:
    """Each role's size, rotation and decay beside what theory expects of it; None where no row tells."""
    if not found.roles:
        return None
    blocks: list[Block] = []
    if found.within is not None:
        share = f"{100 * found.within:.0f} % of the hidden matrices turn within a quarter of what theory expects"
        blocks.append(Paragraph(f"{share}, over the last quarter of the run."))
    columns = ("role", "tensors", "RMS", "expected", "angle", "expected", "decay asked", "decay that came")
    rows = [_role(row) for row in found.roles]
    blocks.append(
        Table(columns, rows, frozenset(range(1, len(columns))), "At the latest look at each; decay in a step")
    )
    if found.remarks:
        blocks.append(Listing([printable(remark) for remark in found.remarks]))
    return Section("theory", "Against theory", blocks)


def _role(row: Row) -> tuple[str, ...]:
    keys = ("weight_rms", "expected_rms", "angle", "expected_angle", "decay_requested", "decay_realised")
    numbers = (number(row.get(key)) for key in keys)
    return printable(str(row["role"])), str(row["tensors"]), *map(_short, numbers)


def _short(value: float | None) -> str:
    return shown_number(value) if value is None else f"{value:.3g}"
