"""The numbers behind a picture as a table, for those who do not see it, and those who want to know exactly."""

from __future__ import annotations

from weightdecay.reporting.encodings import titles
from weightdecay.reporting.page import Table
from weightdecay.reporting.picture import Cell, Picture

_MOST = 40  # rows; a page is read by people


def numbers_of(picture: Picture) -> tuple[Table, bool]:
    """The table, and whether rows were left out."""
    columns = titles(picture)
    records: list[dict[str, Cell]] = []
    for panel, part in picture.panels():
        records += [{"panel": panel, **record} for record in part.records()]
    if picture.facet is not None:
        columns = {"panel": picture.facet.label or picture.facet.field, **columns}
    shown = records if len(records) <= _MOST else _some(records)
    numbers = {name for name in columns if all(not isinstance(record.get(name), str) for record in records)}
    return (
        Table(
            columns=list(columns.values()),
            rows=[[shown_number(record.get(name)) for name in columns] for record in shown],
            numbers=frozenset(index for index, name in enumerate(columns) if name in numbers),
            caption=f"{picture.title}: {len(shown):,} of {len(records):,} rows" if len(shown) < len(records) else "",
        ),
        len(shown) < len(records),
    )


def _some(records: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    """Rows evenly from all; of each series the last, which is the one that is asked for."""
    step = -(-len(records) // (_MOST - 10))
    last = {
        (record.get("panel"), record.get("color"), record.get("detail")): index for index, record in enumerate(records)
    }
    kept = sorted({*range(0, len(records), step), *list(last.values())[:_MOST]})
    return [records[index] for index in kept]


def shown_number(value: Cell) -> str:
    """A cell as people read it: five digits, and a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    whole = f"{value:,.0f}"
    return whole if value == round(value) and abs(value) < 1e15 else f"{value:.5g}"
