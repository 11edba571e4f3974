"""The page of several runs: what they differ in, which is better and how sure that is, and all of them by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from weightdecay.errors import printable
from weightdecay.reporting.comparing import (
    LEVEL,
    SEEDS_FOR_A_CLAIM,
    Difference,
    Group,
    by_text,
    counts,
    differences,
    groups,
    mean_interval,
)
from weightdecay.reporting.page import Block, Figure, Finding, Page, Paragraph, Section, Table
from weightdecay.reporting.picture import Axis, Picture, safe_id
from weightdecay.reporting.run_page import findings
from weightdecay.reporting.run_pictures import decay_of_steps, thinned
from weightdecay.reporting.run_record import RunRecord, number
from weightdecay.reporting.sections import environment_section, plan_section, recipe_section, repeat_section
from weightdecay.reporting.theory import diagnosis_of

_LEVEL = f"{100 * LEVEL:g} %"
_UNITS = {"val_bits_per_byte": "bits per byte", "val_loss": "nats a token"}


def runs_page(records: Sequence[RunRecord]) -> Page:
    """The page."""
    texts = [(f"text {index + 1}", groups(part)) for index, part in enumerate(by_text(records))]
    several = len(texts) > 1
    sections: list[Section] = []
    for index, (name, found) in enumerate(texts):
        title = f"Losses on {name}" if several else "Losses"
        sections.append(Section(f"losses-{index}", title, list(_losses(found, name if several else "", index))))
    sections.append(Section("runs", "All runs", [_table(texts)]))
    sections += _shared(records)
    return Page(
        title=f"{len(records)} runs",
        kicker="Report of runs",
        asked=_asked(texts),
        answer=" ".join(_answer(texts)),
        findings=_findings(records, texts),
        sections=[*sections, environment_section(list(records)), repeat_section(list(records))],
    )


Texts = Sequence[tuple[str, list[Group]]]


def _hashes(found: Sequence[Group]) -> str:
    corpus, tokenizer = found[0].records[0].text
    return f"corpus {corpus[:8]}, tokenizer {tokenizer[:8]}" if corpus else "of which nothing is recorded"


def _asked(texts: Texts) -> str:
    found = texts[0][1]
    keys = list(dict.fromkeys(key for _, part in texts for group in part for key in group.settings))
    n = sum(len(group.records) for _, part in texts for group in part)
    if not keys:
        return f"{n} runs of the same settings: how far do seeds lie apart?"
    named = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
    return f"{n} runs of {sum(len(part) for _, part in texts)} settings, which differ in {named}." if found else ""


def _answer(texts: Texts) -> Iterator[str]:
    if len(texts) > 1:
        yield (
            f"The runs read {len(texts)} different texts (or cut them into other tokens), so their losses are not "
            "compared across these; each text has an axis of its own."
        )
    for name, found in texts:
        where = f"On {name}: " if len(texts) > 1 else ""
        judged = [group for group in found if group.values]
        if not judged:
            yield f"{where}No run is finished yet, so there is nothing to compare."
            continue
        best = min(judged, key=lambda group: mean_interval(list(group.values.values()))[0])
        yield f"{where}{_told(best, 'The lowest held-out loss' if len(judged) > 1 else 'The held-out loss')}"
        made = differences(found)
        yield from (_difference(one) for one in made if one.group is best or len(made) == 1)
        if len(made) > 1 and best is made[0].against:
            yield f"None of the other settings is lower than {best.label}."
        n = max(len(group.values) for group in judged)
        if len(judged) > 1 and n < SEEDS_FOR_A_CLAIM:
            seeds = f"{n} seed{'s' if n > 1 else ''}"
            yield f"With {seeds} a setting this is a hint, not a claim, which takes {SEEDS_FOR_A_CLAIM}."


def _told(group: Group, what: str) -> str:
    values = list(group.values.values())
    mean, interval = mean_interval(values)
    unit = _UNITS[group.key]
    if interval is None:
        return f"{what} is that of {group.label}: {mean:.3f} {unit} (one run)."
    low, high = interval
    spread = f"{_LEVEL} interval {low:.3f} to {high:.3f}, {len(values)} seeds"
    return f"{what} is that of {group.label}: {mean:.3f} {unit} ({spread})."


def _difference(one: Difference) -> str:
    unit, n = _UNITS[one.group.key], len(one.pairs)
    way = "below" if one.mean < 0 else "above"
    said = f"{one.group.label} is {abs(one.mean):.3f} {unit} {way} {one.against.label}"
    if one.interval is None:
        return f"{said} in the one pair of runs that share a seed."
    low, high = one.interval
    counted = f", {one.comparisons} comparisons counted" if one.comparisons > 1 else ""
    verdict = "" if one.shown else ": not shown" if n >= SEEDS_FOR_A_CLAIM else ""
    return f"{said} ({_LEVEL} interval of the paired difference {low:+.3f} to {high:+.3f}, n = {n}{counted}){verdict}."


def _losses(found: Sequence[Group], text: str, index: int) -> Iterator[Block]:
    """What the runs of one text are shown by."""
    on = f", {text}" if text else ""
    for key, kind, title in (("val_loss", "eval", "Held-out loss"), ("loss", "train", "Training loss")):
        if (picture := _curves(found, key, kind, f"{title}{on}", f"{safe_id(title)}-{index}")) is not None:
            yield Figure(picture, picture.alt)
    if len([group for group in found if group.values]) > 1:
        picture = _finals(found, f"Held-out loss at the end{on}", f"final-loss-{index}")
        yield Figure(picture, picture.alt)
    made = differences(found)
    if made:
        yield _differences_table(made)


def _curves(found: Sequence[Group], key: str, kind: str, title: str, name: str) -> Picture | None:
    data: list[dict[str, Any]] = []
    for group in found:
        for record in group.records:
            rows = thinned(record.rows.get(kind, []), key, most=80)
            data += [
                {"step": row["step"], "loss": row[key], "setting": group.label, "run": record.name} for row in rows
            ]
    if not data:
        return None
    runs = len({row["run"] for row in data})
    return Picture(
        id=name,
        title=title,
        subtitle="every run a line" if runs > len(found) else "",
        alt=f"{title} of {runs} runs over their steps, by setting.",
        kind="lines",
        x=Axis(field="step", label="step"),
        y=Axis(field="loss", label="loss", unit="nats a token"),
        color=Axis(field="setting", label="setting", type="nominal", sort=[group.label for group in found]),
        detail="run",
        data=data,
    )


def _finals(found: Sequence[Group], title: str, name: str) -> Picture:
    """The last losses: over the one number that varies, or by name."""
    judged = [group for group in found if group.values]
    keys = list(judged[0].settings)
    along = keys[0] if len(keys) == 1 and all(_is_number(group.settings[keys[0]]) for group in judged) else None
    data: list[dict[str, Any]] = []
    for group in judged:
        mean, interval = mean_interval(list(group.values.values()))
        low, high = interval or (mean, mean)
        at = group.settings[along] if along else group.label
        data.append({"at": at, "loss": mean, "low": low, "high": high})
    numbers = [record["at"] for record in data if _is_number(record["at"])]
    wide = along is not None and max(numbers) > 20 * min(
        (value for value in numbers if value > 0), default=max(numbers)
    )
    least = min((value for value in numbers if value > 0), default=1.0)
    words = {"optimizer.weight_decay": "weight decay λ", "optimizer.lr": "learning rate η"}
    across = Axis(
        field="at",
        label=words.get(along, along) if along else "setting",
        type="quantitative" if along else "nominal",
        scale="symlog" if wide else "linear",
        constant=least / 2 if wide else None,
        sort=None if along else [group.label for group in judged],
    )
    n = sorted({len(group.values) for group in judged})
    seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    best = min(data, key=lambda record: record["loss"])
    return Picture(
        id=name,
        title=title,
        subtitle=f"mean of {seeds} seed{'s' if n[-1] > 1 else ''}"
        + (f", {_LEVEL} interval" if n[-1] > 1 else "; no interval without a second seed"),
        alt=f"{title}: lowest at {_shown(best['at'])} with {best['loss']:.3f} {_UNITS[judged[0].key]}.",
        kind="points",
        x=across,
        y=Axis(field="loss", label="held-out loss", unit=_UNITS[judged[0].key]),
        low="low",
        high="high",
        data=data,
    )


def _differences_table(made: Sequence[Difference]) -> Table:
    rows = []
    for one in made:
        interval = "–" if one.interval is None else f"{one.interval[0]:+.4f} to {one.interval[1]:+.4f}"
        verdict = "shown" if one.shown else "too few seeds" if len(one.pairs) < SEEDS_FOR_A_CLAIM else "not shown"
        rows.append((one.group.label, one.against.label, f"{one.mean:+.4f}", interval, str(len(one.pairs)), verdict))
    counted = f", {made[0].comparisons} comparisons counted" if len(made) > 1 else ""
    return Table(
        ("setting", "against", f"difference ({_UNITS[made[0].group.key]})", f"{_LEVEL} interval", "n", "verdict"),
        rows,
        frozenset({2, 3, 4}),
        f"Paired differences of the held-out loss{counted}",
    )


def _table(texts: Texts) -> Table:
    rows = []
    for index, (_, found) in enumerate(texts):
        for group in found:
            for record in group.records:
                decay_T = decay_of_steps(record)
                rows.append(
                    (
                        record.name,
                        group.label,
                        str(record.config.run.seed) if record.config else "–",
                        "diverged" if record.diverged else record.status,
                        f"{record.step:,}" + (f"/{record.steps:,}" if record.steps else ""),
                        _loss(record.last.get("loss")),
                        _loss(record.held_out.get("val_loss")),
                        _loss(record.best.get("val_loss")),
                        "–" if decay_T is None else f"{float(decay_T.sum()):.3g}",
                        str(index + 1),
                    )
                )
    columns = ("run", "setting", "seed", "status", "step", "training", "held-out", "best", "Σ decay", "text")
    kept = len(columns) if len(texts) > 1 else len(columns) - 1
    return Table(columns[:kept], [row[:kept] for row in rows], frozenset({2, 4, 5, 6, 7, 8}), "Losses in nats a token")


def _findings(records: Sequence[RunRecord], texts: Texts) -> list[Finding]:
    found = []
    if len(texts) > 1:
        words = "; ".join(
            f"{name} ({_hashes(part)}): {', '.join(r.name for g in part for r in g.records)}" for name, part in texts
        )
        said = f"Their losses have axes of their own. {words[0].upper()}{words[1:]}."
        found.append(Finding("warning", "The runs are of different texts", said))
    if left := [record for record in records if not counts(record)]:
        words = "; ".join(f"{record.name}: {'diverged' if record.diverged else record.status}" for record in left)
        found.append(Finding("note", "Runs that are in no mean and no difference", f"{words}."))
    if len({record.steps for record in records}) > 1:
        found.append(
            Finding("warning", "The runs are of different lengths", "Their last losses are after unlike training.")
        )
    for record in records:
        own = [one for one in findings(record, diagnosis_of(record)) if one.severity in ("error", "warning")]
        found += [Finding(one.severity, f"{record.name}: {one.title}", one.text) for one in own]
    order = ("error", "warning", "note", "good")
    return sorted(found, key=lambda one: order.index(one.severity))


def _shared(records: Sequence[RunRecord]) -> Iterator[Section]:
    """The plan and the recipe of the first run that has them; where others have other ones, that is said."""
    planned = [record for record in records if record.plan is not None]
    if planned and planned[0].plan is not None:
        section = plan_section(planned[0].plan)
        first = _verdicts(planned[0])
        other = [record.name for record in planned if _verdicts(record) != first]
        said = f"The plan of {planned[0].name}" + (
            f"; {', '.join(other)} decay other tensors." if other else ", which all share."
        )
        yield Section(section.id, section.title, [Paragraph(said), *section.blocks])
    configured = [record for record in records if record.config is not None]
    if configured and configured[0].config is not None:
        section = recipe_section(configured[0].config)
        yield Section(section.id, section.title, [Paragraph(f"Of {configured[0].name}:"), *section.blocks])


def _verdicts(record: RunRecord) -> list[tuple[str, float]]:
    return [(tensor.name, tensor.multiplier) for tensor in record.plan or ()]


def _loss(value: Any) -> str:
    return "–" if (known := number(value)) is None else f"{known:.3f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else printable(str(value))
