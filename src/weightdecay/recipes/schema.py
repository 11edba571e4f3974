"""A recipe file: a published system's values, each with where it comes from and how sure that is.

    [sources]
    paper = "Brown et al. 2020, arXiv:2005.14165"

    [common.optimizer]
    weight_decay = { value = 0.1, status = "confirmed", source = "paper, appendix B" }

    [sizes.125m.model]
    n_layers = { value = 12, status = "confirmed", source = "paper, table 2.1" }

    [sizes.nano]
    scaling = "how the published shape was scaled down"

`common` holds what all sizes share; a size adds to it and overrides it. `as_published`, of the file or of a size, holds
what to take instead where the published form differs. A file of one's own may say `extends = "gpt3"`: it then adds to
that recipe and overrides it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from weightdecay.errors import ConfigError, RecipeError, did_you_mean
from weightdecay.models.config import ModelConfig
from weightdecay.recipes.places import lines_of_keys
from weightdecay.recipes.settings import SECTIONS, TrainConfig, known_keys, read_values

STATUSES = {
    "confirmed": "read in the primary source",
    "assumed": "not read there: not stated, or known from memory or at second hand; the source says which",
    "unpublished": "never published; the source is whose number it is",
    "contradicted": "the primary source says otherwise; the note says what",
}
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Sourced:
    """One value, where it comes from, and how sure that is."""

    value: Any
    status: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Brief:
    """A row of the table that people copy, and what is behind it.

    Attributes:
        value: λ as the table has it.
        published: λ as it is published, in words.
        source: paper and section, or repository and path.
        says: what that source says.
    """

    value: float
    published: str
    source: str
    says: str


@dataclass(frozen=True)
class Recipe:
    """One size of one published system.

    Attributes:
        system, size: as in `gpt3:125m`.
        title: the system's name as people write it.
        sources: short name of each source and its full reference.
        values: `section.key` to value, source and status.
        scaling: how a size that was never published was derived; empty for published ones.
        parameters: the published count, 0 if there is none.
        absent: parameters of the published system's parts that `differs` names.
        published: values of the published form where it differs, taken by `as_published`.
        differs: what of the published system is not built here.
        brief: the system's row in the table that people copy, if it has one.
    """

    system: str
    size: str
    title: str
    sources: Mapping[str, str]
    values: Mapping[str, Sourced]
    scaling: str = ""
    parameters: float = 0.0
    absent: float = 0.0
    published: Mapping[str, Sourced] = field(default_factory=dict)
    differs: str = ""
    brief: Brief | None = None

    @property
    def name(self) -> str:
        return f"{self.system}:{self.size}"

    @property
    def published_weight_decay(self) -> str:
        """λ as it is published, in words."""
        weight_decay = self.values["optimizer.weight_decay"]
        if self.brief:
            return self.brief.published
        return f"{weight_decay.value:g}" if weight_decay.status == "confirmed" else "not published"

    @property
    def exempt(self) -> str:
        """What does not decay, in words, with the status of that."""
        policy = self.values["optimizer.policy"]
        words = {"default": "biases, norms, all 1-D", "all": "nothing", "olmo2": "token embeddings"}
        return f"{words.get(policy.value, policy.value)} ({policy.status})"

    @property
    def model(self) -> ModelConfig:
        """The decoder, with the published vocabulary."""
        return ModelConfig(
            **{key.removeprefix("model."): sourced.value for key, sourced in self.values.items() if key[:6] == "model."}
        )

    def as_published(self) -> Recipe:
        """The published form; the recipe itself where nothing differs from it."""
        return replace(self, values={**self.values, **self.published})

    def config(self, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """The recipe as a run's configuration, with the user's values over it.

        A warm-up or a length given one way replaces the recipe's given another way; another batch, its ramp; another
        largest norm of the gradient, the changes of it.

        Raises:
            ConfigError: every fault at once.
        """
        overrides = dict(overrides or {})
        values = {key: sourced.value for key, sourced in self.values.items()}
        for rivals in (("run.steps", "run.tokens"), tuple(f"schedule.warmup_{unit}" for unit in _WARMUP_UNITS)):
            if any(key in overrides for key in rivals):
                for key in rivals:
                    values.pop(key, None)
        for key, moves in _MOVES.items():
            if key in overrides:
                values = {name: value for name, value in values.items() if name not in moves}
        return TrainConfig.from_values(values | overrides, recipe=self.name, scaling=self.scaling)


# What moves a value over the run: it goes when the value is given anew.
_MOVES = {
    "run.batch_tokens": ("run.batch_ramp", "run.batch_ramp_increment"),
    "optimizer.grad_clip": ("schedule.grad_clip_changes",),
}
_WARMUP_UNITS = ("steps", "tokens", "fraction")


def recipe(name: str, size: str | None = None) -> Recipe:
    """The recipe `SYSTEM[:SIZE]`, or `FILE.toml[:SIZE]` of one's own; without a size, the first.

        recipe("gpt3:nano")    recipe("gpt3", size="125m")    recipe("mine.toml:small")

    Raises:
        RecipeError: no such system or size, with the nearest names; a faulty file, with all its faults.
    """
    system, _, suffix = name.rpartition(":") if name.count(":") else (name, "", "")
    if suffix and size and suffix != size:
        raise RecipeError(f"two sizes for {system}: '{suffix}' and '{size}'; give one")
    if system.endswith(".toml"):
        sizes = load(Path(system))
    elif system in systems():
        sizes = load(FOLDER / f"{system}.toml")
    else:
        raise RecipeError(f"no recipe '{system}': {did_you_mean(system, systems())}")
    wanted = (size or suffix or next(iter(sizes))).lower()
    if wanted not in sizes:
        raise RecipeError(f"no size '{wanted}' of {system}: {did_you_mean(wanted, sizes)}")
    return sizes[wanted]


def all_recipes() -> list[Recipe]:
    """Every size of every system."""
    return [one for system in systems() for one in load(FOLDER / f"{system}.toml").values()]


def systems() -> list[str]:
    """Names of the systems that have a recipe."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def load(path: Path) -> dict[str, Recipe]:
    """All sizes of one recipe file, in its order.

    Raises:
        RecipeError: every fault of the file at once, with its line.
    """
    document, lines = _document(path)
    faults: list[tuple[str, str]] = [
        (key, f"unknown entry '{key}': {did_you_mean(key, _ENTRIES)}") for key in document if key not in _ENTRIES
    ]
    base = _extended(document, faults)
    common = _sourced(document.get("common", {}), "common", faults)
    published = _sourced(document.get("as_published", {}), "as_published", faults)
    brief = _brief(document.get("brief"), faults)
    found = {}
    for size in [*document.get("sizes", {}), *(size for size in base if size not in document.get("sizes", {}))]:
        entry = document.get("sizes", {}).get(size, {})
        where = f"sizes.{size}"
        sections = {key: value for key, value in entry.items() if key not in _SIZE_ENTRIES}
        below = base.get(size)
        found[size] = Recipe(
            system=path.stem,
            size=size,
            title=str(document.get("title", path.stem)),
            sources={**(next(iter(base.values())).sources if base else {}), **document.get("sources", {})},
            values={**(below.values if below else {}), **common, **_sourced(sections, where, faults)},
            scaling=str(entry.get("scaling", below.scaling if below else "")),
            parameters=float(entry.get("parameters", below.parameters if below else 0.0)),
            absent=float(entry.get("absent", below.absent if below else 0.0)),
            published={
                **(below.published if below else {}),
                **published,
                **_sourced(entry.get("as_published", {}), f"{where}.as_published", faults),
            },
            differs=str(document.get("differs", below.differs if below else "")),
            brief=brief or (below.brief if below else None),
        )
    if not found:
        faults.append(("sizes", "no sizes: a recipe needs at least one table [sizes.NAME]"))
    for candidate in found.values() if not faults else ():
        faults += [(f"sizes.{candidate.size}", f"{candidate.name}: {fault}") for fault in _config_faults(candidate)]
    if faults:
        raise RecipeError([f"{path}:{_line(lines, place)}: {fault}" for place, fault in faults])
    return found


_ENTRIES = ("title", "differs", "extends", "brief", "sources", "common", "as_published", "sizes")
_SIZE_ENTRIES = ("scaling", "parameters", "absent", "as_published")


def _document(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), lines_of_keys(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error


def _extended(document: Mapping[str, Any], faults: list[tuple[str, str]]) -> dict[str, Recipe]:
    """The sizes of the recipe that this one extends, none if it stands alone."""
    name = document.get("extends", "")
    if not name:
        return {}
    if name not in systems():
        faults.append(("extends", f"extends '{name}': {did_you_mean(str(name), systems())}"))
        return {}
    return load(FOLDER / f"{name}.toml")


def _brief(entry: Any, faults: list[tuple[str, str]]) -> Brief | None:
    if entry is None:
        return None
    try:
        return Brief(**entry)
    except TypeError:
        faults.append(("brief", "brief: must have value, published, source and says"))
        return None


def _config_faults(candidate: Recipe) -> list[str]:
    faults = []
    for form in (candidate, candidate.as_published()) if candidate.published else (candidate,):
        try:
            form.config()
        except ConfigError as error:
            faults += error.faults
    return faults


def _line(lines: Mapping[str, int], place: str) -> int:
    """Of a key, or of the nearest table around it."""
    while place and place not in lines:
        place = place.rpartition(".")[0]
    return lines.get(place, 1)


def _sourced(sections: Mapping[str, Any], where: str, faults: list[tuple[str, str]]) -> dict[str, Sourced]:
    """Flatten `section.key = {value, status, source}` tables, noting every fault."""
    values = {}
    for section, entries in sections.items():
        if section not in SECTIONS or not isinstance(entries, dict):
            faults.append(
                (f"{where}.{section}", f"{where}: unknown section '{section}': {did_you_mean(section, SECTIONS)}")
            )
            continue
        for name, entry in entries.items():
            key, place = f"{section}.{name}", f"{where}.{section}.{name}"
            if wrong := _entry_faults(key, entry):
                faults += [(place, f"{place}: {fault}") for fault in wrong]
            else:
                read, _ = read_values({key: entry["value"]})
                values[key] = Sourced(read[key], entry["status"], entry["source"], entry.get("note", ""))
    return values


def _entry_faults(key: str, entry: Any) -> list[str]:
    if key not in known_keys():
        return [f"unknown key: {did_you_mean(key, known_keys())}"]
    if not isinstance(entry, dict) or not {"value", "status", "source"} <= entry.keys():
        return ["must be { value = …, status = …, source = … }"]
    faults = read_values({key: entry["value"]})[1]
    if entry["status"] not in STATUSES:
        faults.append(f"status '{entry['status']}': {did_you_mean(str(entry['status']), STATUSES)}")
    if unknown := entry.keys() - {"value", "status", "source", "note"}:
        faults.append(f"unknown {', '.join(sorted(unknown))}")
    if not str(entry["source"]).strip():
        faults.append("the source is empty")
    return faults
