"""A recipe file: a published system's values, each with where it comes from and how sure that is.

    [sources]
    paper = { reference = "Brown et al. 2020, arXiv:2005.14165", read = "text" }

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
from weightdecay.recipes.entries import (
    Brief,
    Faults,
    Source,
    Sourced,
    brief_in,
    sources_in,
    values_in,
)
from weightdecay.recipes.places import lines_of_keys
from weightdecay.recipes.settings import SECTIONS, TrainConfig

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """One size of one published system.

    Attributes:
        system, size: as in `gpt3:125m`.
        title: the system's name as people write it.
        sources: short name of each source, its full reference and how it was read.
        values: `section.key` to value, source and status.
        scaling: how a size that was never published was derived; empty for published ones.
        parameters: the published count, 0 if there is none.
        published: values of the published form where it differs, taken by `as_published`.
        differs: what of the published system is not built here.
        brief: the system's row in the table that people copy, if it has one.
    """

    system: str
    size: str
    title: str
    sources: Mapping[str, Source]
    values: Mapping[str, Sourced]
    scaling: str = ""
    parameters: float = 0.0
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
    def exempt_tensors(self) -> str:
        """What does not decay, in words."""
        policy: str = self.values["optimizer.policy"].value
        return {"default": "biases, norms, 1-D", "all": "nothing", "olmo2": "token embeddings"}.get(policy, policy)

    @property
    def exempt(self) -> str:
        """The same with its status."""
        return f"{self.exempt_tensors} ({self.values['optimizer.policy'].status})"

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
        anew = sorted(key for key in overrides if key.startswith("model."))
        scaling = self.scaling + (f"; given anew: {', '.join(anew)}" if self.scaling and anew else "")
        return TrainConfig.from_values(values | overrides, recipe=self.name, scaling=scaling)


# What moves a value over the run: it goes when the value is given anew.
_MOVES = {
    "run.batch_tokens": ("run.batch_ramp", "run.batch_ramp_increment"),
    "optimizer.grad_clip": ("schedule.grad_clip_changes",),
}
_WARMUP_UNITS = ("steps", "tokens", "fraction")


def recipe(name: str, size: str | None = None) -> Recipe:
    """The recipe `SYSTEM[:SIZE]`, or `FILE.toml[:SIZE]` of one's own (`mine.toml:small`); without a size, the first.

        from weightdecay import recipe

        recipe("gpt3:nano")
        recipe("gpt3", size="125m")

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


def load(path: Path) -> dict[str, Recipe]:
    """All sizes of one recipe file, in its order.

    Raises:
        RecipeError: every fault of the file at once, with its line.
    """
    return dict(_shipped(path)[1] if path.parent == FOLDER else _read(path)[1])  # one's own may change while we run


@cache
def _shipped(path: Path) -> tuple[Recipe, Mapping[str, Recipe]]:
    return _read(path)


def _read(path: Path) -> tuple[Recipe, Mapping[str, Recipe]]:
    """What all sizes of a file share, as a recipe without a size, and the sizes."""
    document, lines = _document(path)
    faults: Faults = []
    _refuse_unknown(document, "", _FILE, faults)
    base, base_sizes = _extended(document, path, faults)
    shared = replace(
        base,
        title=document.get("title", path.stem),
        differs=document.get("differs", base.differs),
        brief=brief_in(document.get("brief"), faults) or base.brief,
        sources={**base.sources, **sources_in(document.get("sources", {}), faults)},
    )
    common = values_in(_table(document, "common"), "common", shared.sources, faults)
    published = values_in(_table(document, "as_published"), "as_published", shared.sources, faults)
    sizes = _table(document, "sizes")
    _refuse_unknown(sizes, "sizes.", dict.fromkeys(sizes, dict), faults)
    found = {}
    for size in [*sizes, *(size for size in base_sizes if size not in sizes)]:
        below = base_sizes.get(size, replace(base, size=size))
        own = replace(
            shared,
            **{name: getattr(below, name) for name in ("size", "scaling", "parameters")},
            values={**below.values, **common},
            published={**below.published, **published},
        )
        found[size] = _with_size(own, _table(sizes, size), faults)
    if not found:
        faults.append(("sizes", "no sizes: a recipe needs at least one table [sizes.NAME]"))
    for candidate in found.values() if not faults else ():
        faults += [_placed(candidate, fault, lines) for fault in _config_faults(candidate)]
    if faults:
        once = dict.fromkeys((_line(lines, place), fault) for place, fault in faults)  # not again for each size
        placed = sorted(once, key=lambda pair: pair[0])
        raise RecipeError([f"{path}:{line}: {fault}" for line, fault in placed])
    return replace(shared, values={**base.values, **common}, published={**base.published, **published}), found


def _with_size(shared: Recipe, entry: Mapping[str, Any], faults: Faults) -> Recipe:
    """What all sizes share, with what the table of one adds to it."""
    where = f"sizes.{shared.size}"
    _refuse_unknown(entry, f"{where}.", _SIZE, faults)
    sections = {section: _table(entry, section) for section in SECTIONS}
    own = values_in(sections, where, shared.sources, faults)
    published = values_in(_table(entry, "as_published"), f"{where}.as_published", shared.sources, faults)
    return replace(
        shared,
        values={**shared.values, **own},
        published={**shared.published, **published},
        **{name: entry[name] for name in ("scaling", "parameters") if name in entry},
    )


# What a file may say, and a size in it, each with its type.
_FILE: dict[str, type[Any]] = {
    "title": str, "differs": str, "extends": str, "brief": dict, "sources": dict, "common": dict, "as_published": dict,
    "sizes": dict,
}  # fmt: skip
_SIZE: dict[str, type[Any]] = {
    "scaling": str, "parameters": float, "as_published": dict, **dict.fromkeys(SECTIONS, dict)
}  # fmt: skip
_WORDS = {str: "a text", float: "a number", dict: "a table"}


def _document(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), lines_of_keys(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{path}: not a recipe that can be read: {reason}") from error


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a file, empty where it is missing, or is something else, which `_refuse_unknown` has said."""
    entry = document.get(name, {})
    return entry if isinstance(entry, dict) else {}


def _refuse_unknown(document: Mapping[str, Any], where: str, known: Mapping[str, type[Any]], faults: Faults) -> None:
    """A fault for each entry that has no business here, and for each of another type."""
    for key, entry in document.items():
        kind = known.get(key)
        if kind is None:
            faults.append((where + key, f"{where}{key}: unknown entry: {did_you_mean(key, known)}"))
        elif not isinstance(entry, int | float if kind is float else kind) or isinstance(entry, bool):
            faults.append((where + key, f"{where}{key}: must be {_WORDS[kind]}"))


def _extended(document: Mapping[str, Any], path: Path, faults: Faults) -> tuple[Recipe, Mapping[str, Recipe]]:
    """The recipe that this one extends, under this one's name; an empty one without sizes if it stands alone."""
    nothing = Recipe(path.stem, "", path.stem, {}, {})
    name = document.get("extends", "")
    if name and name not in systems():
        faults.append(("extends", f"extends '{name}': {did_you_mean(str(name), systems())}"))
    if name not in systems():
        return nothing, {}
    base, sizes = _shipped(FOLDER / f"{name}.toml")
    return replace(base, system=path.stem), sizes


def _config_faults(candidate: Recipe) -> list[str]:
    faults = []
    for form in (candidate, candidate.as_published()) if candidate.published else (candidate,):
        try:
            form.config()
        except ConfigError as error:
            faults += error.faults
    return faults


def _placed(candidate: Recipe, fault: str, lines: Mapping[str, int]) -> tuple[str, str]:
    """A fault of a configuration at the entry that it begins with; at the size where the file has no such entry."""
    key = fault.partition(" ")[0]
    for table in (f"sizes.{candidate.size}", f"sizes.{candidate.size}.as_published", "common", "as_published"):
        if f"{table}.{key}" in lines:
            return f"{table}.{key}", f"{table}: {fault}"
    return f"sizes.{candidate.size}", f"{candidate.name}: {fault}"


def _line(lines: Mapping[str, int], place: str) -> int:
    """Of a key, or of the nearest table around it or in it."""
    while place and place not in lines:
        inside = [line for key, line in lines.items() if key.startswith(f"{place}.")]
        if inside:
            return min(inside)
        place = place.rpartition(".")[0]
    return lines.get(place, 1)
