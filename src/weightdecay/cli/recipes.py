"""`weightdecay recipes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from weightdecay.cli.flags import Argument, Switch, WordsOrFiles, raise_together
from weightdecay.cli.output import console, print_json
from weightdecay.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from weightdecay.recipes.schema import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Recipes:
    """The published systems with sources and status: `recipes`, `recipes show NAME` or `recipes diff A B`."""

    words: Argument[WordsOrFiles] = ()
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
                one, other = _both(first, second)
                document, shown = _difference(one, other), _difference_table(one, other)
            case _:
                raise ConfigError(
                    f"recipes {' '.join(self.words)}: must be `recipes`, `recipes show NAME` or `recipes diff A B`, "
                    "with names like gpt3:125m or mine.toml:125m"
                )
        if self.json:
            print_json(document)
        else:
            console().print(shown)
        return 0


def _both(*names: str) -> list[Recipe]:
    from weightdecay.recipes.schema import recipe

    found, faults = [], []
    for name in names:
        try:
            found.append(recipe(name))
        except ConfigError as error:
            faults += error.faults
    raise_together(faults)
    return found


def _row(one: Recipe) -> dict[str, Any]:
    weight_decay = one.values["optimizer.weight_decay"]
    return {
        "name": one.name,
        "parameters": one.parameters or None,
        "optimizer": one.values["optimizer.name"].value,
        "weight_decay": weight_decay.value,
        "weight_decay_as_cited": one.brief.value if one.brief else None,
        "weight_decay_published": one.published_weight_decay,
        "status": weight_decay.status,
        "source": weight_decay.source,
        "exempt": one.exempt,
        "scaling": one.scaling,
    }


def _overview(listed: list[Recipe]) -> RenderableType:
    """A line a system, from its largest size: λ, optimizer and exemptions belong to the system."""
    from rich.console import Group

    systems: dict[str, list[Recipe]] = {}
    for one in listed:
        systems.setdefault(one.system, []).append(one)
    table = _table(
        "", "system", "as cited", "published", "recipe", "optimizer", "exempt", wrapped=("published", "exempt")
    )
    for system, sizes in systems.items():
        row, policy = _row(sizes[-1]), sizes[-1].values["optimizer.policy"]
        table.add_row(
            system,
            f"{row['weight_decay_as_cited']:g}" if sizes[-1].brief else "",
            row["weight_decay_published"],
            f"{row['weight_decay']:g} {row['status']}",
            row["optimizer"],
            _text(sizes[-1].exempt_tensors + ("" if policy.status == "confirmed" else " ?")),
        )
    return Group(
        _text("λ as commonly cited, as published, and in the recipe with its status"),
        table,
        _text("?: what is exempt is not published, or not stated where λ is"),
        _text("Sizes, for train SYSTEM:SIZE; recipes show SYSTEM:SIZE has every value with its source"),
        *(_text(f"  {system}: {' '.join(one.size for one in sizes)}") for system, sizes in systems.items()),
    )


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

    from weightdecay.recipes.entries import READ

    notes = [f"{name}: {source.reference} (read: {READ[source.read]})" for name, source in one.sources.items()]
    notes += [f"Scaled down: {one.scaling}."] if one.scaling else []
    notes += [f"Not as published: {one.differs}."] if one.differs else []
    tables: list[RenderableType] = []
    forms = {f"{one.title}, {one.name}": one.values}
    if one.published:
        forms[f"{one.title} as published: what --as-published takes instead"] = one.published
    for title, values in forms.items():
        table = _table(title, "key", "value", "status", "source")
        for key, sourced in _by_section(table, values):
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
    names = (first.name, second.name)
    table = _table(f"{first.name} against {second.name}", "key", *names, wrapped=names)
    differing = {row["key"]: [row[one.name] for one in (first, second)] for row in _difference(first, second)}
    for key, cells in _by_section(table, differing):
        words = [f"{_word(cell['value'])} ({cell['status']})" if cell else "(default)" for cell in cells]
        table.add_row(key, *(_text(word) for word in words))
    table.caption = "(default): the recipe leaves it open"
    return table


def _table(title: str, *columns: str, wrapped: Sequence[str] = ("value", "source")) -> Table:
    """A table whose last columns are wrapped where the terminal is narrow; nothing is ever cut off."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in wrapped)
    return table


def _by_section(table: Table, values: Mapping[str, T]) -> Iterator[tuple[str, T]]:
    """`section.key` pairs in order, with a line `[section]` in the table before each section's first."""
    open_section = ""
    for key, value in sorted(values.items()):
        section, _, name = key.partition(".")
        if section != open_section:
            table.add_row(_text(f"[{section}]"))
            open_section = section
        yield f"  {name}", value


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        return " ".join(_word(item) for item in value.values())
    return ", ".join(_word(item) for item in value) or "none" if isinstance(value, list | tuple) else str(value)


def _text(text: str) -> Any:
    from rich.text import Text

    return Text(text)
