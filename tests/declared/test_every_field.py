"""What holds for every field of every schema, whatever is added to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.declared.wrong import wrong_values
from weightdecay.declared.fields import CLOSED, Declared, dataclass_of, expected, hints, item_of, leaves, words
from weightdecay.declared.reading import attempt
from weightdecay.declared.values import nested
from weightdecay.planning.lock_format import LockFile, LockLine
from weightdecay.planning.policies.policy_file import PolicyFile
from weightdecay.recipes.entries import Brief, RecipeFile, Size, Sourced
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig

SCHEMAS: tuple[Any, ...] = (TrainConfig, PolicyFile, LockFile, LockLine, RecipeFile, Size, Sourced)
FIELDS = [(kind, found) for kind in SCHEMAS for found in leaves(kind).values()]
every_field = pytest.mark.parametrize(("kind", "found"), FIELDS, ids=[f"{kind.__name__}.{f.key}" for kind, f in FIELDS])
# Tables whose values are looked at one by one.
_OPEN = {"RecipeFile": {"sources", "common", "as_published", "sizes"}, "PolicyFile": {"roles", "norms"}}


def base_of(kind: Any) -> dict[str, Any]:
    """Dotted paths and values that are whole and right."""
    if kind is TrainConfig:
        return recipe("gpt3:nano").config().values()
    if kind is Sourced:
        return {"value": 1, "status": "confirmed", "source": "paper"}
    if kind is LockFile:
        return {"policy": "default", "weight_decay": 0.1, "tensors": []}
    if kind is LockLine:
        texts = {"name": "w", "evidence": "use", "reason": "linear weight"}
        return texts | {"shape": [2, 3], "roles": ["linear weight"], "multiplier": 1.0}
    return {f"brief.{name}": "words" for name in hints(Brief)} | {"brief.value": 0.1} if kind is RecipeFile else {}


def parts_of(kind: Any) -> Iterator[Any]:
    """A dataclass and all that stand in its fields and in the rows of its lists and tables."""
    yield kind
    for hint in hints(kind).values():
        if part := dataclass_of(hint) or dataclass_of(item_of(hint)):
            yield from parts_of(part)


@pytest.mark.parametrize("kind", list(dict.fromkeys(part for schema in SCHEMAS for part in parts_of(schema))))
def test_every_field_has_words(kind: Any) -> None:
    missing = [name for name, text in words(kind).items() if not text.strip() and not dataclass_of(hints(kind)[name])]
    assert not missing


def cases() -> Iterator[tuple[Any, Declared, str, Any]]:
    for kind, found in FIELDS:
        if found.key in _OPEN.get(kind.__name__, ()) or found.hint is Any or "dict" in str(found.hint):
            continue
        for what, value in wrong_values(found.hint):
            yield kind, found, what, value


@pytest.mark.parametrize(
    ("kind", "found", "what", "value"),
    list(cases()),
    ids=lambda part: part.key if isinstance(part, Declared) else str(part)[:40].encode("ascii", "replace").decode(),
)
def test_a_value_that_it_cannot_hold_is_told_once_at_its_key_with_what_it_takes(
    kind: Any, found: Declared, what: str, value: Any
) -> None:
    config, faults = attempt(kind, nested(base_of(kind) | {found.key: value}))
    assert config is None
    in_a_row = f"{found.key}[0]"  # of which each field that it needs is named, too
    told = [fault for fault in faults if fault.kind != "contradiction"]
    assert told, (what, faults)
    assert len(told) == 1 or all(fault.key.startswith(in_a_row) for fault in told), (what, told)
    assert told[0].key.startswith(found.key)
    assert told[0].words.startswith((found.key, f"unknown key '{found.key}"))
    if told[0].key == found.key:
        assert expected(found.hint) in told[0].words or "did you mean" in told[0].words or "known are" in told[0].words


@pytest.mark.parametrize(
    ("kind", "found"), [(kind, found) for kind, found in FIELDS if kind.__pydantic_config__ is CLOSED]
)
def test_a_misspelt_key_is_answered_with_the_nearest(kind: Any, found: Declared) -> None:
    above, dot, name = found.key.rpartition(".")
    misspelt = f"{above}{dot}{name}x"
    _, faults = attempt(kind, nested(base_of(kind) | {misspelt: 1}))
    unknown = [fault.words for fault in faults if fault.kind == "unknown"]
    assert unknown == [unknown[0]]
    assert unknown[0].startswith(f"unknown key '{misspelt}': did you mean ")
    assert f"'{found.key}'" in unknown[0]


@every_field
def test_a_field_that_needs_a_value_and_has_none_is_named(kind: Any, found: Declared) -> None:
    values = base_of(kind)
    values.pop(found.key, None)
    _, faults = attempt(kind, nested(values))
    assert [fault.key for fault in faults if fault.kind == "missing"] == [found.key] * found.required


@pytest.mark.parametrize("kind", SCHEMAS)
def test_all_faults_are_told_at_once(kind: Any) -> None:
    wrong: dict[str, Any] = {}
    for one, found, _, value in cases():
        if one is kind:
            wrong.setdefault(found.key, value)
    _, faults = attempt(kind, nested(base_of(kind) | wrong))
    told = {fault.key.partition("[")[0] for fault in faults if fault.kind == "wrong"}
    assert told == set(wrong)


@pytest.mark.parametrize("section", ["model", "data", "optimizer", "schedule", "run"])
@pytest.mark.parametrize("value", [[], [{}], 3, "x", True, None])
def test_what_stands_where_a_table_should_is_refused(section: str, value: Any) -> None:
    tables = nested(base_of(TrainConfig))
    config, faults = attempt(TrainConfig, tables | {section: value})
    assert config is None
    assert [fault.key for fault in faults] == [section]
    assert "must be a table with" in faults[0].words
