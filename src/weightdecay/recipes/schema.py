"""A recipe file: a published system's values, each with where it comes from and how sure that is.

    [sources]
    paper = "Brown et al. 2020, arXiv:2005.14165"

    [common.optimizer]
    weight_decay = { value = 0.1, status = "confirmed", source = "paper, appendix B" }

    [sizes.125m.model]
    n_layers = { value = 12, status = "confirmed", source = "paper, table 2.1" }

    [sizes.nano]
    scaling = "how the published shape was scaled down"

`common` holds what all sizes share; a size adds to it and overrides it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from weightdecay.errors import ConfigError, RecipeError, did_you_mean
from weightdecay.models.config import ModelConfig
from weightdecay.recipes.settings import SECTIONS, TrainConfig, known_keys, read_values

STATUSES = {
    "confirmed": "read in the primary source",
    "assumed": "not stated there; this project's choice",
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
class Recipe:
    """One size of one published system.

    Attributes:
        system, size: as in `gpt3:125m`.
        title: the system's name as people write it.
        sources: short name of each source and its full reference.
        values: `section.key` to value, source and status.
        scaling: how a size that was never published was derived; empty for published ones.
        parameters: the published count, 0 if there is none.
    """

    system: str
    size: str
    title: str
    sources: Mapping[str, str]
    values: Mapping[str, Sourced]
    scaling: str = ""
    parameters: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.system}:{self.size}"

    @property
    def model(self) -> ModelConfig:
        """The decoder, with the published vocabulary."""
        return ModelConfig(
            **{key.removeprefix("model."): sourced.value for key, sourced in self.values.items() if key[:6] == "model."}
        )

    def config(self, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """The recipe as a run's configuration, with the user's values over it.

        A warm-up or a length given one way replaces the recipe's given another way.

        Raises:
            ConfigError: every fault at once.
        """
        overrides = dict(overrides or {})
        values = {key: sourced.value for key, sourced in self.values.items()}
        for rivals in (("run.steps", "run.tokens"), tuple(f"schedule.warmup_{unit}" for unit in _WARMUP_UNITS)):
            if any(key in overrides for key in rivals):
                for key in rivals:
                    values.pop(key, None)
        return TrainConfig.from_values(values | overrides, recipe=self.name, scaling=self.scaling)


_WARMUP_UNITS = ("steps", "tokens", "fraction")


def recipe(name: str, size: str | None = None) -> Recipe:
    """The recipe `SYSTEM[:SIZE]`; without a size, the system's first.

        recipe("gpt3:nano")    recipe("gpt3", size="125m")

    Raises:
        RecipeError: no such system or size, with the nearest names; a faulty file, with all its faults.
    """
    system, _, suffix = name.partition(":")
    if suffix and size and suffix != size:
        raise RecipeError(f"two sizes for {system}: '{suffix}' and '{size}'; give one")
    if system not in systems():
        raise RecipeError(f"no recipe '{system}': {did_you_mean(system, systems())}")
    sizes = load(FOLDER / f"{system}.toml")
    wanted = (size or suffix or next(iter(sizes))).lower()
    if wanted not in sizes:
        raise RecipeError(f"no size '{wanted}' of {system}: {did_you_mean(wanted, sizes)}")
    return sizes[wanted]


def systems() -> list[str]:
    """Names of the systems that have a recipe."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def load(path: Path) -> dict[str, Recipe]:
    """All sizes of one recipe file, in its order.

    Raises:
        RecipeError: every fault of the file at once.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    faults: list[str] = [
        f"unknown entry '{key}': {did_you_mean(key, _ENTRIES)}" for key in document if key not in _ENTRIES
    ]
    common = _sourced(document.get("common", {}), "common", faults)
    found = {}
    for size, entry in document.get("sizes", {}).items():
        where = f"sizes.{size}"
        sections = {key: value for key, value in entry.items() if key not in ("scaling", "parameters")}
        found[size] = Recipe(
            system=path.stem,
            size=size,
            title=str(document.get("title", path.stem)),
            sources=document.get("sources", {}),
            values=common | _sourced(sections, where, faults),
            scaling=str(entry.get("scaling", "")),
            parameters=float(entry.get("parameters", 0.0)),
        )
    if not found:
        faults.append("no sizes: a recipe needs at least one table [sizes.NAME]")
    for candidate in found.values() if not faults else ():
        try:
            candidate.config()
        except ConfigError as error:
            faults += [f"{candidate.name}: {fault}" for fault in error.faults]
    if faults:
        raise RecipeError([f"{path}: {fault}" for fault in faults])
    return found


_ENTRIES = ("title", "sources", "common", "sizes")


def _sourced(sections: Mapping[str, Any], where: str, faults: list[str]) -> dict[str, Sourced]:
    """Flatten `section.key = {value, status, source}` tables, noting every fault."""
    values = {}
    for section, entries in sections.items():
        if section not in SECTIONS or not isinstance(entries, dict):
            faults.append(f"{where}: unknown section '{section}': {did_you_mean(section, SECTIONS)}")
            continue
        for name, entry in entries.items():
            key, place = f"{section}.{name}", f"{where}.{section}.{name}"
            if key not in known_keys():
                faults.append(f"{place}: unknown key: {did_you_mean(key, known_keys())}")
            elif not isinstance(entry, dict) or not {"value", "status", "source"} <= entry.keys():
                faults.append(f"{place}: must be {{ value = …, status = …, source = … }}")
            elif entry["status"] not in STATUSES:
                faults.append(f"{place}: status '{entry['status']}': {did_you_mean(entry['status'], STATUSES)}")
            elif unknown := entry.keys() - {"value", "status", "source", "note"}:
                faults.append(f"{place}: unknown {', '.join(sorted(unknown))}")
            elif not str(entry["source"]).strip():
                faults.append(f"{place}: the source is empty")
            else:
                read, wrong = read_values({key: entry["value"]})
                faults += [f"{place}: {fault}" for fault in wrong]
                if read:
                    values[key] = Sourced(read[key], entry["status"], entry["source"], entry.get("note", ""))
    return values
