"""The page of a study: its question, its answer with the intervals, its pictures, and every run by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from weightdecay.errors import printable
from weightdecay.reporting.numbers import shown_number
from weightdecay.reporting.page import (
    Block,
    Code,
    Facts,
    Figure,
    Finding,
    Folded,
    Listing,
    Page,
    Paragraph,
    Section,
    Severity,
    Table,
)
from weightdecay.reporting.run_record import number
from weightdecay.reporting.sections import word
from weightdecay.reporting.study_record import Compared, StudyRecord

_SEVERITY: dict[str, Severity] = {
    "shown": "good",
    "the opposite is shown": "warning",
    "not shown": "note",
    "too few seeds": "note",
}
_WAITING = ("running", "waiting")
_MANY = 12  # rows, from which on a table is folded


def study_page(record: StudyRecord) -> Page:
    """The page."""
    asked, results = record.asked, record.results
    figures = [Figure(picture, picture.alt) for picture in record.pictures]
    claims = [
        Finding(_SEVERITY.get(claim.verdict, "note"), claim.claim.rstrip("."), claim.sentence, claim.verdict)
        for claim in results.verdicts
    ]
    sections = [Section("claims", "Claims, and what came of them", claims)] if claims else []
    sections += [Section("pictures", "What was seen", figures)] if figures else []
    if results.comparisons:
        sections.append(Section("comparisons", "Differences", list(_comparisons(record))))
    if results.groups:
        sections.append(Section("groups", "Means and intervals", [_groups(record)]))
    sections.append(Section("protocol", "How it was done", list(_protocol(record))))
    if results.limits:
        sections.append(Section("limits", "What cannot be concluded", [Listing([*map(printable, results.limits)])]))
    sections.append(Section("runs", "All runs", list(_runs(record))))
    if results.environments:
        sections.append(Section("environment", "Environment", [_environments(record)]))
    sections.append(Section("repeat", "How to repeat it", list(_repeat(record))))
    answer = results.answer or "No run has ended yet, so there is no answer."
    left = sum(run.status in _WAITING for run in results.runs)
    if results.answer and not results.complete:
        answer = f"So far, with {left or 'some'} run{'' if left == 1 else 's'} still to end: {answer}"
    return Page(
        title=printable(asked.question),
        kicker=f"Study {printable(asked.study)}{f', {printable(asked.scale)}' if asked.scale else ''}",
        asked=f"What people say: {printable(asked.belief)}" if asked.belief else "",
        answer=printable(answer),
        findings=list(_findings(record)),
        sections=sections,
        key_figures=list(_key_figures(record)),
    )


def _key_figures(record: StudyRecord) -> Iterator[tuple[str, str]]:
    counted = [run for run in record.results.runs if run.counted]
    yield f"{len(counted)}", f"runs counted, of {len(record.results.runs) or len(record.asked.arms)}"
    if record.asked.seeds:
        yield f"{len(record.asked.seeds)}", "seeds"
    if record.results.comparisons_counted:
        yield f"{record.results.comparisons_counted}", "comparisons counted"


def _findings(record: StudyRecord) -> Iterator[Finding]:
    if len(record.results.corpora) > 1:
        words = f"The runs read {len(record.results.corpora)} different texts; only those of one are compared."
        yield Finding("warning", "The runs are of different texts", words)
    bad = [run for run in record.results.runs if not run.counted and run.status not in _WAITING]
    if bad:
        told = "; ".join(f"{printable(run.name)}: {printable(run.why or run.status)}" for run in bad)
        yield Finding("warning", f"{len(bad)} run{'' if len(bad) == 1 else 's'} not counted", told)


def _comparisons(record: StudyRecord) -> Iterator[Block]:
    results = record.results
    tests = ", ".join(dict.fromkeys(printable(one.test) for one in results.comparisons if one.test))
    yield Paragraph(
        f"Pairs of one seed, {tests or 'in pairs'}. Comparisons that the study made: "
        f"{results.comparisons_counted or len(results.comparisons)}; the second interval holds for all together, and "
        "p is Holm's."
    )
    columns = (
        "arm",
        "against",
        "metric",
        "difference",
        "95 % interval",
        "95 %, all together",
        "p (Holm)",
        "n",
        "verdict",
    )
    rows = [_compared(record, one) for one in results.comparisons]
    table = Table(columns, rows, frozenset({3, 4, 5, 6, 7}), "Paired differences")
    yield table if len(rows) <= 2 * _MANY else Folded(f"{len(rows)} comparisons", [table])


def _compared(record: StudyRecord, one: Compared) -> tuple[str, ...]:
    return (
        printable(one.arm),
        printable(one.against),
        _metric(record, one.metric),
        "–" if one.difference is None else f"{one.difference:+.4g}",
        _interval(one.interval, "+.4g"),
        _interval(one.simultaneous, "+.4g"),
        "–" if one.p_holm is None else f"{one.p_holm:.2g}",
        str(one.n),
        printable(one.verdict),
    )


def _groups(record: StudyRecord) -> Block:
    rows = []
    for group in record.results.groups:
        interval = group.get("interval")
        ends = (number(interval[0]), number(interval[1])) if isinstance(interval, list) and len(interval) == 2 else None
        known = (ends[0], ends[1]) if ends and ends[0] is not None and ends[1] is not None else None
        rows.append(
            (
                word(group.get("arm", "")),
                _metric(record, str(group.get("metric", ""))),
                shown_number(number(group.get("mean"))),
                _interval(known, ".5g"),
                shown_number(number(group.get("std"))),
                word(group.get("n", "")),
            )
        )
    table = Table(("arm", "metric", "mean", "95 % interval", "std", "n"), rows, frozenset({2, 3, 4, 5}), "By arm")
    return table if len(rows) <= 2 * _MANY else Folded(f"{len(rows)} means", [table])


def _metric(record: StudyRecord, name: str) -> str:
    said = record.results.metrics.get(name, {})
    unit = word(said.get("unit", ""))
    return word(said.get("label", name)) + (f" ({unit})" if unit else "")


def _interval(ends: tuple[Any, Any] | None, form: str) -> str:
    return "–" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def _protocol(record: StudyRecord) -> Iterator[Block]:
    asked = record.asked
    if asked.protocol:
        yield Listing([printable(sentence) for sentence in asked.protocol])
    if asked.arms:
        rows = [
            (
                printable(arm.name),
                ", ".join(f"{printable(key)} = {word(value)}" for key, value in arm.settings.items()) or "as all",
                printable(arm.role),
            )
            for arm in asked.arms
        ]
        table = Table(("arm", "settings", "role"), rows, caption="What is compared")
        yield table if len(rows) <= _MANY else Folded(f"{len(rows)} arms", [table])
    if asked.settings:
        pairs = [(printable(key), word(value)) for key, value in asked.settings.items()]
        yield Folded("Settings that all runs share", [Facts(pairs)])


def _runs(record: StudyRecord) -> Iterator[Block]:
    results = record.results
    metrics = list(dict.fromkeys(name for run in results.runs for name in run.values))[:6]
    rows = [
        (
            printable(run.name),
            printable(run.arm),
            "–" if run.seed is None else str(run.seed),
            printable(run.status),
            "yes" if run.counted else f"no: {printable(run.why)}" if run.why else "no",
            *(shown_number(number(run.values.get(name))) for name in metrics),
        )
        for run in results.runs
    ]
    columns = ("run", "arm", "seed", "status", "counted", *(_metric(record, name) for name in metrics))
    table = Table(columns, rows, frozenset({2, *range(5, len(columns))}), "Runs")
    yield table if len(rows) <= _MANY else Folded(f"{len(rows)} runs", [table])
    if record.failures:
        failed = [
            (
                word(row.get("name", "")),
                word(row.get("when", "")),
                word(row.get("exit_code", "")),
                word(row.get("why", "")),
            )
            for row in record.failures
        ]
        yield Table(("run", "when", "exit code", "why"), failed, caption="Runs that ended badly: kept, and not counted")


def _environments(record: StudyRecord) -> Block:
    found = record.results.environments
    if len(found) == 1:
        return Facts(
            [(printable(key.replace("_", " ")), word(value) or "not known") for key, value in found[0].items()]
        )
    keys = list(dict.fromkeys(key for each in found for key in each))
    return Table([printable(key) for key in keys], [[word(each.get(key, "")) for key in keys] for each in found])


def _repeat(record: StudyRecord) -> Iterator[Block]:
    if record.asked.command:
        yield Code(printable(record.asked.command))
    version = f" with weightdecay {printable(record.asked.weightdecay)}" if record.asked.weightdecay else ""
    yield Paragraph(
        f"Started {printable(record.asked.started) or 'at an unknown time'}{version}; results of "
        f"{printable(record.results.date) or 'no date'}. The same command with the same --out goes on where it stopped."
    )
