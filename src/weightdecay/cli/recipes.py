"""`weightdecay recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdecay.cli.flags import Argument, Switch, Words
from weightdecay.cli.output import console, print_json
from weightdecay.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from weightdecay.recipes.schema import Recipe


@dataclass(frozen=True)
class Recipes:
    """The published systems with sources and status: `recipes`, `recipes show NAME` or `recipes diff A B`."""

    words: Argument[Words] = ()
    """Nothing for the table of all; show SYSTEM[:SIZE]; or diff A B. A name may be a file, FILE.toml[:SIZE]."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from weightdecay.recipes.schema import all_recipes, recipe

        document: Any
        match self.words:
            case ():
                listed = all_recipes()
                document, shown = [_row(one) for one in listed], _overview(listed)
            case ("show", name):
                one = recipe(name)
                document, shown = _document(one), _values(one)
            case ("diff", first, second):
                pair = recipe(first), recipe(second)
                document, shown = _difference(*pair), _difference_table(*pair)
            case _:
                raise ConfigError(
                    f"recipes {' '.join(self.words)}: give nothing, show NAME (like `recipes show gpt3:125m`) or "
                    "diff A B"
                )
        if self.json:
            print_json(document)
        else:
            console().print(shown)
        return 0


def _row(one: Recipe) -> dict[str, Any]:
    weight_decay = one.values["optimizer.weight_decay"]
    return {
        "name": one.name,
        "parameters": one.parameters or None,
        "optimizer": one.values["optimizer.name"].value,
        "weight_decay": weight_decay.value,
        "weight_decay_in_the_brief": one.brief.value if one.brief else None,
        "weight_decay_published": one.published_weight_decay,
        "status": weight_decay.status,
        "source": weight_decay.source,
        "exempt": one.exempt,
        "scaling": one.scaling,
    }


def _overview(listed: list[Recipe]) -> RenderableType:
    """A line a system, from its largest size: λ, optimizer and exemptions belong to the system."""
    from rich.table import Table

    systems: dict[str, list[Recipe]] = {}
    for one in listed:
        systems.setdefault(one.system, []).append(one)
    table = Table(title="Recipes: train SYSTEM:SIZE", caption="the brief: the table of λ that people copy; "
                  "recipes show NAME has every value with its source")  # fmt: skip
    for column in ("system", "sizes", "λ, the brief", "λ, published", "λ, recipe", "status", "optimizer", "exempt"):
        table.add_column(column)
    for system, sizes in systems.items():
        row = _row(sizes[-1])
        table.add_row(
            system,
            ", ".join(one.size for one in sizes),
            f"{row['weight_decay_in_the_brief']:g}" if sizes[-1].brief else "",
            row["weight_decay_published"],
            f"{row['weight_decay']:g}",
            row["status"],
            row["optimizer"],
            row["exempt"],
        )
    return table


def _document(one: Recipe) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "scaling": one.scaling,
        "differs": one.differs,
        "brief": vars(one.brief) if one.brief else None,
        "sources": {name: vars(source) for name, source in one.sources.items()},
        "values": {key: vars(sourced) for key, sourced in sorted(one.values.items())},
        "as_published": {key: vars(sourced) for key, sourced in sorted(one.published.items())},
    }


def _values(one: Recipe) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    from weightdecay.recipes.entries import READ

    notes = [f"{name}: {source.reference} (read: {READ[source.read]})" for name, source in one.sources.items()]
    notes += [f"Scaled down: {one.scaling}."] if one.scaling else []
    notes += [f"Not as published: {one.differs}."] if one.differs else []
    tables: list[RenderableType] = []
    forms = {f"{one.title}, {one.name}": one.values}
    if one.published:
        forms[f"{one.title} as published: what --as-published takes instead"] = one.published
    for title, values in forms.items():
        table = Table(title=title)
        for column in ("key", "value", "status", "source"):
            table.add_column(column)
        for key, sourced in sorted(values.items()):
            source = f"{sourced.source} ({sourced.note})" if sourced.note else sourced.source
            table.add_row(key, _text(_word(sourced.value)), sourced.status, _text(source))
        tables.append(table)
    return Group(*tables, *(_text(line) for line in notes))


def _difference(first: Recipe, second: Recipe) -> list[dict[str, Any]]:
    """Every key that the two do not share, or have another value of."""
    rows = []
    for key in sorted({*first.values, *second.values}):
        a, b = first.values.get(key), second.values.get(key)
        if a is None or b is None or a.value != b.value:
            rows.append(
                {"key": key, first.name: vars(a) if a else None, second.name: vars(b) if b else None},
            )
    return rows


def _difference_table(first: Recipe, second: Recipe) -> RenderableType:
    from rich.table import Table

    table = Table(title=f"{first.name} against {second.name}", caption="(default): the recipe leaves it open")
    for column in ("key", first.name, second.name):
        table.add_column(column)
    for row in _difference(first, second):
        cells = [row[one.name] for one in (first, second)]
        words = [f"{_word(cell['value'])} ({cell['status']})" if cell else "(default)" for cell in cells]
        table.add_row(row["key"], *(_text(word) for word in words))
    return table


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    return ", ".join(str(item) for item in value) or "none" if isinstance(value, tuple) else str(value)


def _text(text: str) -> Any:
    from rich.text import Text

    return Text(text)
