"""Recorded models: what the planner sees of each (classes, names, shapes, uses), with labels; no weights, no code.

`python -m tests.planning.skeletons` builds all architectures of the installed transformers and records them anew.
A few of them want timm and torchvision, which the zoo's environment has (`.venv-zoo`), and xlstm's absence.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.evidence.uses import Use

FOLDER = Path(__file__).parent / "skeletons"


@dataclass(frozen=True)
class Skeleton:
    """One model's tensors, the labels read from its source, and what transformers' Trainer would decay."""

    name: str
    tensors: tuple[TensorFacts, ...]
    labels: tuple[str, ...]
    trainer_decays: tuple[bool, ...]


def names(kind: str) -> list[str]:
    """The models that are recorded of one kind."""
    return list(_content(kind)["models"])


def read(kind: str, only: Collection[str] | None = None) -> Iterator[Skeleton]:
    """The skeletons of one kind, "causal" or "other"; those of some models `only`."""
    content = _content(kind)
    vocabulary = content["vocabulary"]
    for name in content["models"] if only is None else [name for name in content["models"] if name in only]:
        lines = content["models"][name]
        tensors = tuple(_decode(vocabulary, line) for line in lines)
        yield Skeleton(name, tensors, tuple(line["label"] for line in lines), tuple(line["trainer"] for line in lines))


@functools.cache
def _content(kind: str) -> Any:
    return json.loads(lzma.decompress((FOLDER / f"{kind}.json.xz").read_bytes()))


def _decode(vocabulary: list[Any], line: dict[str, Any]) -> TensorFacts:
    sites = []
    for name, kind in line["sites"]:
        owner, bases, within, original = vocabulary[kind]
        attribute = name.split(".")[-2 if original else -1]
        sites.append(Site(name, attribute, owner, tuple(bases), tuple(within), original))
    uses = line.get("uses")
    return TensorFacts(
        shape=tuple(line["shape"]),
        sites=tuple(sites),
        trainable=not line.get("frozen", False),
        uses=None if uses is None else tuple(_use(vocabulary[number]) for number in uses),
    )


def _use(fields: list[Any]) -> Use:
    operation, slot, partner, geometry, through, axes, rows = fields
    return Use(operation, slot, partner, geometry, tuple(through), axes, rows)


class _Vocabulary:
    """Gives equal things the same number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, value: Any) -> int:
        return self.numbers.setdefault(json.dumps(value), len(self.numbers))

    def values(self) -> list[Any]:
        return [json.loads(text) for text in self.numbers]


def _encode(facts: TensorFacts, vocabulary: _Vocabulary, label: str, trainer: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "shape": facts.shape,
        "sites": [
            [site.name, vocabulary.number([site.owner, site.bases, site.within, site.original])] for site in facts.sites
        ],
        "label": label,
        "trainer": trainer,
    }
    if not facts.trainable:
        line["frozen"] = True
    if facts.uses is not None:
        line["uses"] = [vocabulary.number(use) for use in facts.uses]
    return line


def record(kind: str, names: list[str]) -> None:
    """Build, trace and label the named models, and write what was found."""
    from tests.planning.labels import label
    from tests.planning.zoo import tiny
    from weightdecay.planning.evidence.tensors import read_tensors
    from weightdecay.planning.evidence.tracing import trace

    vocabulary, models = _Vocabulary(), {}
    for name in names:
        model = tiny(name)
        if model is None:
            print(f"{name} does not build here")
            continue
        decaying = set(trainer_names(model))
        tensors = trace(model, read_tensors(model)).tensors
        models[name] = [_encode(facts, vocabulary, label(facts), facts.name in decaying) for facts in tensors]
    text = json.dumps({"vocabulary": vocabulary.values(), "models": models}, separators=(",", ":"))
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{kind}.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))
    print(f"{kind}: {len(models)} models")


def trainer_names(model: Any) -> list[str]:
    """`Trainer.get_decay_parameter_names`, the real one; it uses nothing of the trainer."""
    from transformers.trainer import Trainer

    names: list[str] = Trainer.get_decay_parameter_names(None, model)
    return names


if __name__ == "__main__":
    from tests.planning.zoo import causal_models, other_models

    record("causal", causal_models())
    record("other", other_models())
