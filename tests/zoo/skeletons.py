"""The zoo as recorded: what the planner sees of each model, guessed and with its batch, and its labels; no code.

`.venv-zoo/bin/python -m tests.zoo.skeletons` records it anew.
"""

from __future__ import annotations

import json
import lzma
import warnings
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from weightdecay.planning.evidence.marks import Mark
from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.evidence.uses import Use

FILE = Path(__file__).parent / "skeletons.json.xz"
# What the fields of `TensorFacts` that hold tuples hold.
_HELD: dict[str, type] = {"sites": Site, "uses": Use, "marks": Mark}


@dataclass(frozen=True)
class Skeleton:
    """One model's tensors as traced on guessed inputs and on its batch, with the labels read from its source.

    Attributes:
        fault: why its batch does not go through the planner; empty if it does.
    """

    package: str
    title: str
    guessed: tuple[TensorFacts, ...]
    given: tuple[TensorFacts, ...]
    labels: tuple[str, ...]
    fault: str = ""

    @property
    def name(self) -> str:
        return f"{self.package}: {self.title}"

    def tensors(self, given: bool) -> tuple[TensorFacts, ...]:
        return self.given if given else self.guessed


@cache
def read() -> tuple[Skeleton, ...]:
    content = json.loads(lzma.decompress(FILE.read_bytes()))
    vocabulary = [_tuples(value) for value in content["vocabulary"]]
    return tuple(_decoded(line, vocabulary) for line in content["models"])


def _decoded(line: dict[str, Any], vocabulary: list[Any]) -> Skeleton:
    guessed = tuple(_facts(vocabulary[number], vocabulary) for number in line["guessed"])
    given = tuple(_facts(vocabulary[number], vocabulary) for number in line["given"])
    return Skeleton(line["package"], line["title"], guessed, given, tuple(line["labels"]), line["fault"])


def _facts(values: tuple[Any, ...], vocabulary: list[Any]) -> TensorFacts:
    """Values are pairs of a field's name and what it is; of tuples of things, their numbers in the vocabulary."""
    named: dict[str, Any] = {}
    for name, value in values:
        held = _HELD.get(name)
        named[name] = value if held is None else tuple(held(*vocabulary[number]) for number in value)
    return TensorFacts(**named)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class _Vocabulary:
    """Gives equal things the same number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, value: Any) -> int:
        return self.numbers.setdefault(json.dumps(value), len(self.numbers))

    def values(self) -> list[Any]:
        return [json.loads(text) for text in self.numbers]

    def facts(self, facts: TensorFacts) -> int:
        pairs = []
        for one in fields(facts):
            value = getattr(facts, one.name)
            if one.default is not MISSING and value == one.default:
                continue
            if one.name in _HELD:
                value = [self.number(_plain(item)) for item in value]
            pairs.append([one.name, value])
        return self.number(pairs)


def _plain(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [getattr(value, one.name) for one in fields(value)]


def record() -> None:
    """Build, trace and label every model that is installed, and write what was found."""
    from tests.zoo.models import MODELS

    vocabulary = _Vocabulary()
    lines = []
    for model in MODELS:
        if not model.installed:
            print(f"{model.name} is not installed: its skeleton goes")
            continue
        lines.append(_recorded(model, vocabulary))
    text = json.dumps({"vocabulary": vocabulary.values(), "models": lines}, separators=(",", ":"))
    FILE.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(lines)} models, {FILE.stat().st_size:,} bytes")


def _recorded(model: Any, vocabulary: _Vocabulary) -> dict[str, Any]:
    from tests.zoo.judging import DEADLINE_S, batch_of, labels_by_name
    from weightdecay.planning.evidence.budget import Budget
    from weightdecay.planning.evidence.tensors import read_tensors
    from weightdecay.planning.evidence.tracing import trace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = model.build()
        labels = labels_by_name(model, built)
        tensors = read_tensors(built)
        guessed = trace(built, tensors, None, Budget(deadline=DEADLINE_S))
        given = trace(built, tensors, batch_of(model), Budget(deadline=DEADLINE_S))
    return {
        "package": model.package,
        "title": model.title,
        "guessed": [vocabulary.facts(facts) for facts in guessed.tensors],
        "given": [vocabulary.facts(facts) for facts in given.tensors],
        "labels": [labels[facts.name] for facts in tensors],
        "fault": given.batch_fault,
    }


def rows() -> Iterator[tuple[str, list[Skeleton]]]:
    """The skeletons of each package."""
    of_package: dict[str, list[Skeleton]] = {}
    for skeleton in read():
        of_package.setdefault(skeleton.package, []).append(skeleton)
    yield from of_package.items()


if __name__ == "__main__":
    record()
