"""`weightdecay recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdecay.cli.flags import Argument, Switch, Words
from weightdecay.cli.output import console, print_json
from weightdecay.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from weightdecay.recipes.schema import Recipe


@dataclass(frozen=True)
class Recipes:
    """The published systems, value by value, with source and status: `recipes`, or `recipes show NAME`."""

    words: Argument[Words] = ()
    """Nothing for the table of all, or: show SYSTEM[:SIZE]."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from weightdecay.recipes.schema import recipe

        match self.words:
            case ():
                listed = _all_recipes()
                document: Any = [_row(one) for one in listed]
                table = _overview(listed)
            case ("show", name):
                shown = recipe(name)
                document = _document(shown)
                table = _values(shown)
            case _:
                raise ConfigError(
                    f"recipes {' '.join(self.words)}: give nothing, or show NAME, like `recipes show gpt3:125m`"
                )
        if self.json:
            print_json(document)
        else:
            console().print(table)
        return 0


def _all_recipes() -> list[Recipe]:
    from weightdecay.recipes.schema import FOLDER, load, systems

    return [one for system in systems() for one in load(FOLDER / f"{system}.toml").values()]


def _row(one: Recipe) -> dict[str, Any]:
    weight_decay = one.values["optimizer.weight_decay"]
    return {
        "name": one.name,
        "parameters": one.parameters or None,
        "optimizer": one.values["optimizer.name"].value,
        "weight_decay": weight_decay.value,
        "status": weight_decay.status,
        "source": weight_decay.source,
        "scaling": one.scaling,
    }


def _document(shown: Recipe) -> dict[str, Any]:
    values = {key: vars(sourced) for key, sourced in sorted(shown.values.items())}
    return {
        "name": shown.name,
        "title": shown.title,
        "scaling": shown.scaling,
        "sources": dict(shown.sources),
        "values": values,
    }


def _overview(listed: list[Recipe]) -> Table:
    from rich.table import Table

    table = Table(title="Recipes")
    for column in ("recipe", "parameters", "optimizer", "λ", "status of λ", "where λ comes from"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for one in listed:
        row = _row(one)
        size = f"{one.parameters / 1e6:,.0f}M" if one.parameters else "scaled down"
        table.add_row(
            row["name"], size, row["optimizer"], f"{row['weight_decay']:g}", row["status"], _text(row["source"])
        )
    return table


def _values(shown: Recipe) -> Table:
    from rich.table import Table

    sources = "; ".join(f"{name}: {source}" for name, source in shown.sources.items())
    caption = f"Scaled down: {shown.scaling}. {sources}" if shown.scaling else sources
    table = Table(title=f"{shown.title}, {shown.name}", caption=_text(caption), caption_justify="left")
    for column in ("key", "value", "status", "source"):
        table.add_column(column)
    for key, sourced in sorted(shown.values.items()):
        source = f"{sourced.source} ({sourced.note})" if sourced.note else sourced.source
        table.add_row(key, _text(f"{sourced.value}"), sourced.status, _text(source))
    return table


def _text(text: str) -> Any:
    from rich.text import Text

    return Text(text)
