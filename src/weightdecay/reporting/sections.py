"""Sections that pages of runs share: plan, recipe with its sources, environment, how to repeat."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from weightdecay.errors import RecipeError, printable
from weightdecay.planning.evidence_summary import rests_on
from weightdecay.planning.planned import Plan
from weightdecay.planning.render import grouped
from weightdecay.recipes.entries import READ, STATUSES
from weightdecay.recipes.files import settings_toml
from weightdecay.recipes.schema import Recipe, recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.reporting.page import Code, Facts, Folded, Listing, Paragraph, Section, Table
from weightdecay.reporting.run_record import RunRecord


def plan_section(plan: Plan) -> Section:
    """Which tensors decay, a row a pattern of names."""
    rows = []
    for row in grouped(plan):
        first = row.tensors[0]
        shape = "×".join(map(str, first.shape)) or "scalar"
        roles = " + ".join(map(str, first.roles))
        rows.append((row.pattern, str(len(row.tensors)), shape, roles, f"{first.weight_decay:g}", first.why))
    return Section(
        "plan",
        "Which weights decay",
        [
            Paragraph(f"Policy {plan.policy}, λ = {plan.weight_decay:g}: {plan.summary()}."),
            Table(("tensors", "n", "shape", "role", "λ", "why"), rows, frozenset({1, 4}), "The decay plan"),
            Paragraph(rests_on(plan)),
        ],
    )


def recipe_section(config: TrainConfig) -> Section:
    """Every setting: the recipe's with its source, or this run's own."""
    try:
        published = recipe(config.recipe) if config.recipe else None
    except RecipeError:  # a file of somebody's own that is not here, or a recipe of another version
        published = None
    rows = list(_settings(config, published))
    table = Table(("setting", "value", "status", "where it comes from"), rows, caption="Settings that the recipe has")
    blocks: list[Any] = []
    if published is None:
        named = f"the recipe {config.recipe} cannot be found here" if config.recipe else "no recipe was named"
        blocks.append(Paragraph(f"All settings are this run's own: {named}."))
    else:
        blocks.append(Paragraph(f"{published.title}: {config.recipe}, after the sources below."))
        blocks.append(Folded(f"{len(rows)} settings, with where each comes from", [table]))
        notes = [f"Scaled down: {config.scaling}."] if config.scaling else []
        notes += [f"Not as published: {published.differs}."] if published.differs else []
        sources = [
            f"{name}: {source.reference} (read: {READ[source.read]})" for name, source in published.sources.items()
        ]
        blocks.append(Listing([*notes, *sources]))
        words = [(status, meaning) for status, meaning in STATUSES.items() if any(row[2] == status for row in rows)]
        blocks.append(Folded("What the words of status mean", [Facts(words)]))
    return Section("recipe", "Recipe and sources", blocks)


def _settings(config: TrainConfig, published: Recipe | None) -> Iterator[tuple[str, str, str, str]]:
    values = config.values()
    for key, sourced in sorted(published.values.items() if published else ()):
        if key not in values:
            continue
        given, own = word(values[key]), word(sourced.value)
        if given == own:
            where = f"{sourced.source} ({sourced.note})" if sourced.note else sourced.source
            yield key, given, sourced.status, where
        else:
            yield key, given, "this run's", f"the recipe has {own}"


def environment_section(records: list[RunRecord]) -> Section:
    """What the runs were made with and on; of several runs what they share, and where they differ."""
    keys = list(dict.fromkeys(key for record in records for key in record.environment))
    pairs, differing = [], []
    for key in keys:
        values = list(dict.fromkeys(word(record.environment.get(key, "")) for record in records))
        if len(values) == 1:
            pairs.append((key.replace("_", " "), values[0] or "not known"))
        else:
            differing.append((key.replace("_", " "), *(word(record.environment.get(key, "")) for record in records)))
    blocks: list[Any] = [Facts(pairs)] if pairs else [Paragraph("The runs recorded no environment.")]
    if differing:
        names = [record.name for record in records]
        blocks.append(Table(("differs in", *names), differing, caption="Where the environments differ"))
    return Section("environment", "Environment", blocks)


def repeat_section(records: list[RunRecord]) -> Section:
    """Commands and settings that train the same again."""
    blocks: list[Any] = []
    known = [record for record in records if record.config]
    commands = [
        f"weightdecay train --config {_shown(record)}/run.toml --out {_shown(record)}-again" for record in known
    ]
    if commands:
        words = "The same settings give the same run, bit for bit on the same processor and versions."
        blocks += [Paragraph(words), Code("\n".join(commands))]
    if len(known) == 1:
        path = _shown(known[0])
        more = f"weightdecay train --config {path}/run.toml --seed 1 --out {path}-seed-1"
        both = f"weightdecay report {path} {path}-seed-1 --out both.html"
        blocks += [Paragraph("Another seed, and both on one page with an interval:"), Code(f"{more}\n{both}")]
    for record in known:
        assert record.config is not None
        title = "run.toml" if len(known) == 1 else f"run.toml of {record.name}"
        blocks.append(Folded(title, [Code(settings_toml(record.config))]))
    return Section("repeat", "How to repeat it", blocks or [Paragraph("The settings cannot be read.")])


def _shown(record: RunRecord) -> str:
    return shlex.quote(printable(str(record.path)))


def word(value: Any) -> str:
    """A setting's value as people write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        return " ".join(word(item) for item in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(word(item) for item in value) or "none"
    return printable(str(value))
