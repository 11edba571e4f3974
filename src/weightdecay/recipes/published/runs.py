"""What public runs decayed, read from runs.toml and from the recipes that it names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from weightdecay.declared.fields import CLOSED, Count, Number, Rows, Switch, Text
from weightdecay.declared.reading import attempt
from weightdecay.errors import RecipeError
from weightdecay.recipes.entries import Sourced, source_of
from weightdecay.recipes.schema import Recipe, recipe

FILE = Path(__file__).parent / "runs.toml"
# What a size of a recipe must have read in a primary source to count as a run whose decay is known.
NEEDED = ("optimizer.weight_decay", "optimizer.lr", "run.batch_tokens", "run.tokens")

Positive = Annotated[Number, Gt(0)]
Whole = Annotated[Count, Ge(1)]
# How a recipe's source was read, as a tag; a paper's text in a copy is read all the same.
_TAG_OF = {"opened": "R", "text": "V"}
_EXPONENTS = {"decoupled": (1, 0), "cautious": (1, 0), "independent": (1, 1), "fixed": (0, 0), "lr_squared": (2, 0)}


@dataclass(frozen=True)
class RunSource:
    """Where runs were read."""

    __pydantic_config__ = CLOSED

    reference: Text
    """In full, with the commit."""
    tag: Literal["R", "V"]
    """How."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How large the model of a recipe's size is."""

    __pydantic_config__ = CLOSED

    parameters: Whole
    """All."""
    embeddings: Whole
    """Tables of tokens, positions and values."""
    idle: Annotated[Count, Ge(0)] = 0
    """Of experts, what one token does not pass through."""
    epochs: Positive = 0.0
    """Passes over the text; 0 where they are not known."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What parameters are counted from."""

    __pydantic_config__ = CLOSED

    layers: Whole
    """Blocks."""
    width: Whole
    """d_model."""
    kv_width: Whole
    """Of keys and of values, all heads together."""
    ffn: Whole
    """Width inside the feed-forward."""
    ffn_matrices: Whole
    """2, or 3 where it is gated."""
    vocab: Whole
    """Rows of the embedding."""
    positions: Annotated[Count, Ge(0)]
    """Rows of a learned table of positions."""
    tied: Switch
    """Whether the head is the embedding."""

    @property
    def embeddings(self) -> int:
        return (self.vocab + self.positions) * self.width

    @property
    def parameters(self) -> int:
        attention = 2 * self.width * (self.width + self.kv_width)
        block = attention + self.ffn_matrices * self.width * self.ffn
        return self.layers * block + self.embeddings + (0 if self.tied else self.vocab * self.width)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run without a recipe."""

    __pydantic_config__ = CLOSED

    name: Text
    """SYSTEM:SIZE."""
    source: Text
    """One of the file's sources."""
    read: Text
    """Which of its files."""
    lr: Positive
    """Peak η of the matrices."""
    weight_decay: Annotated[Number, Ge(0)]
    """λ under the rule."""
    batch_tokens: Whole
    """B."""
    steps: Whole
    """T."""
    schedule: Text
    """Shape of the learning rate."""
    final_fraction: Annotated[Number, Ge(0)]
    """Of the peak, where it ends."""
    exempt: Text
    """What did not decay."""
    shape: Shape
    """Of the model."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Of the matrices."""
    rule: Literal["decoupled", "cautious", "independent", "fixed", "lr_squared"] = "decoupled"
    """What λ means."""
    parametrization: Literal["standard", "mup"] = "standard"
    """How rates and initialisation follow the width."""
    epochs: Positive = 0.0
    """Passes over the text; 0 where they are not known."""
    note: Text = ""
    """What else a reader must know."""


@dataclass(frozen=True, kw_only=True)
class RunsFile:
    """runs.toml."""

    __pydantic_config__ = CLOSED

    sources: dict[str, RunSource]
    """By short name."""
    sizes: dict[str, Counts] = field(default_factory=dict)
    """Sizes of recipes."""
    runs: Rows[Entry] = ()
    """Runs without a recipe."""


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """A public run.

    Attributes:
        name: SYSTEM:SIZE; of a recipe, its own.
        optimizer, rule, parametrization: of the matrices.
        lr, weight_decay: peak η, and λ as the rule means it.
        batch_tokens, tokens, steps: B, D, and T at the full batch.
        parameters, embeddings: all, and the tables among them.
        active: parameters without embeddings that a token passes through.
        width: d_model.
        epochs: 0 where they are not known.
        schedule: of the learning rate, in words.
        exempt: what did not decay.
        source, tag: where λ stands, and how that was read.
        note: what else a reader must know.
        from_recipe: whether a recipe holds these values.
    """

    name: str
    optimizer: str
    rule: str
    parametrization: str
    lr: float
    weight_decay: float
    batch_tokens: float
    tokens: float
    steps: float
    parameters: float
    embeddings: float
    active: float
    width: int
    epochs: float
    schedule: str
    exempt: str
    source: str
    tag: str
    note: str = ""
    from_recipe: bool = False

    @property
    def system(self) -> str:
        return self.name.partition(":")[0]

    @property
    def used(self) -> float:
        """Parameters that a token passes through, tables included."""
        return self.active + self.embeddings

    @property
    def tokens_per_parameter(self) -> float:
        """D/N, N without embeddings."""
        return self.tokens / self.active

    @property
    def decay_per_step(self) -> float:
        """a at the peak: the fraction of a weight that a step removes."""
        with_lr, with_peak = _EXPONENTS[self.rule]
        return self.weight_decay * self.lr ** (with_lr - with_peak)

    @property
    def decoupled(self) -> float:
        """λ as torch.optim.AdamW means it: a/η."""
        return self.decay_per_step / self.lr

    @property
    def timescale(self) -> float:
        """τ = 1/(aT), as a part of the run."""
        return 1.0 / (self.decay_per_step * self.steps)


@cache
def published_runs() -> tuple[PublishedRun, ...]:
    """Every run of the database, by name.

    Raises:
        RecipeError: every fault of the file at once.
    """
    content = read_runs_file(FILE)
    found = [_of_recipe(recipe(name).as_published(), counts) for name, counts in content.sizes.items()]
    found += [_of_entry(entry, content.sources[entry.source]) for entry in content.runs]
    return tuple(sorted(found, key=lambda run: run.name))


def read_runs_file(path: Path) -> RunsFile:
    """The file as it stands, every fault of it at once; recipes are not looked at.

    Raises:
        RecipeError: with every fault.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{path}: cannot be read: {reason}") from error
    content, found = attempt(RunsFile, document)
    faults = [f"{path}: {fault.words}" for fault in found]
    faults += [f"{path}: {words}" for words in _contradictions(content)] if content else []
    if content is None or faults:
        raise RecipeError(faults)
    return content


def _contradictions(content: RunsFile) -> Iterator[str]:
    names = [*content.sizes, *(entry.name for entry in content.runs)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} stands twice"
    used = {entry.source for entry in content.runs}
    for entry in content.runs:
        if entry.source not in content.sources:
            yield f"{entry.name}: no source '{entry.source}'"
    for name in sorted(content.sources.keys() - used):
        yield f"source '{name}' is nobody's"


def _of_recipe(one: Recipe, counts: Counts) -> PublishedRun:
    def value(key: str, otherwise: Sourced | None = None) -> Sourced:
        found = one.values.get(f"optimizer.{key}", otherwise)
        assert found is not None, f"{one.name}: no {key}"
        return found

    λ, rule = value("weight_decay"), value("rule")
    tokens, batch = one.values["run.tokens"].value, one.values["run.batch_tokens"].value
    source = source_of(λ, one.sources)
    assert source is not None, f"{one.name}: {λ.source} is none of its sources"
    final = one.values.get("schedule.final_fraction")
    ends = "" if final is None else f" to {final.value:.3g}"
    return PublishedRun(
        name=one.name,
        optimizer=value("name").value,
        rule=rule.value,
        parametrization="standard",
        lr=value("lr").value,
        weight_decay=λ.value,
        batch_tokens=batch,
        tokens=tokens,
        steps=tokens / batch,
        parameters=counts.parameters,
        embeddings=counts.embeddings,
        active=counts.parameters - counts.embeddings - counts.idle,
        width=one.values["model.d_model"].value,
        epochs=counts.epochs,
        schedule=f"{one.values['schedule.shape'].value}{ends}",
        exempt=one.exempt,
        source=f"{source.reference} ({λ.source})",
        tag=_TAG_OF[source.read],
        note="" if rule.status == "confirmed" else f"rule {rule.status}: {rule.source}",
        from_recipe=True,
    )


def _of_entry(entry: Entry, source: RunSource) -> PublishedRun:
    shape = entry.shape
    return PublishedRun(
        name=entry.name,
        optimizer=entry.optimizer,
        rule=entry.rule,
        parametrization=entry.parametrization,
        lr=entry.lr,
        weight_decay=entry.weight_decay,
        batch_tokens=entry.batch_tokens,
        tokens=float(entry.batch_tokens) * entry.steps,
        steps=entry.steps,
        parameters=shape.parameters,
        embeddings=shape.embeddings,
        active=shape.parameters - shape.embeddings,
        width=shape.width,
        epochs=entry.epochs,
        schedule=f"{entry.schedule} to {entry.final_fraction:.3g}",
        exempt=entry.exempt,
        source=f"{source.reference}: {entry.read}",
        tag=source.tag,
        note=entry.note,
    )
