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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Never

from weightdecay.declared.reading import Fault, attempt, without
from weightdecay.errors import RecipeError, did_you_mean
from weightdecay.models.config import ModelConfig
from weightdecay.recipes.entries import Brief, RecipeFile, Size, Source, Sourced, values_in
from weightdecay.recipes.layers import laid_over
from weightdecay.recipes.moved import as_spelt_now
from weightdecay.recipes.places import lines_of_keys
from weightdecay.recipes.settings import SECTIONS, TrainConfig, as_keywords, faults_of

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

    @property
    def beginning(self) -> dict[str, Any]:
        """The values that a run begins with: the recipe's, and bfloat16 only where the machine is faster at it."""
        values = {key: sourced.value for key, sourced in self.values.items()}
        return values | ({"run.dtype": "auto"} if values.get("run.dtype") == "bfloat16" else {})

    def as_published(self) -> Recipe:
        """The published form; the recipe itself where nothing differs from it."""
        return replace(self, values={**self.values, **self.published})

    def config(self, overrides: Mapping[str, Any] | None = None, **settings: Never) -> TrainConfig:
        """The recipe as a run's configuration, with the user's values over it, see `laid_over`.

        Raises:
            ConfigError: every fault at once.
        """
        if settings:
            raise RecipeError(as_keywords("config()", settings))
        values = laid_over(self.beginning, overrides or {})
        return TrainConfig.from_values(values, recipe=self.name, scaling=self.scaling_with(overrides or {}))

    def scaling_with(self, given: Iterable[str]) -> str:
        """How this size was scaled down, and what of its shape is given anew."""
        anew = sorted(key for key in as_spelt_now(dict.fromkeys(given)) if key.startswith("model."))
        return self.scaling + (f"; given anew: {', '.join(anew)}" if self.scaling and anew else "")


def recipe(name: str, size: str | None = None, **settings: Never) -> Recipe:
    """The recipe `SYSTEM[:SIZE]`, or `FILE.toml[:SIZE]` of one's own (`mine.toml:small`); without a size, the first.

        from weightdecay import recipe

        recipe("gpt3:nano")
        recipe("gpt3", size="125m")

    Raises:
        RecipeError: no such system or size, with the nearest names; a faulty file, with all its faults; a setting,
            which is for `config` to take.
    """
    faults = as_keywords("recipe()", settings)
    system, _, suffix = str(name).rpartition(":") if ":" in str(name) else (str(name), "", "")
    if suffix and size and suffix != size:
        raise RecipeError([*faults, f"two sizes for {system}: '{suffix}' and '{size}'; give one"])
    if not system.endswith(".toml") and system not in systems():
        raise RecipeError([*faults, f"no recipe '{system}': {did_you_mean(system, systems())}"])
    if faults:
        raise RecipeError(faults)
    sizes = load(Path(system) if system.endswith(".toml") else FOLDER / f"{system}.toml")
    wanted = str(size or suffix or next(iter(sizes))).lower()
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
    """A file of ours: its values are looked at when a run takes them, and all of them by a test."""
    return _read(path, judged=False)


def _read(path: Path, *, judged: bool = True) -> tuple[Recipe, Mapping[str, Recipe]]:
    """What all sizes of a file share, as a recipe without a size, and the sizes.

    Args:
        judged: whether each size must make a run's configuration.
    """
    document, lines = _document(path)
    content, faults = attempt(RecipeFile, document)
    if content is None:  # the rest is still looked at, so that its faults are told with these
        content = attempt(RecipeFile, without(document, {fault.key for fault in faults}))[0] or RecipeFile()
    base, base_sizes = _extended(content, path, faults)
    shared = replace(
        base,
        title=content.title or path.stem,
        differs=content.differs or base.differs,
        brief=content.brief or base.brief,
        sources={**base.sources, **content.sources},
    )
    common = values_in(content.common, "common", shared.sources, faults)
    published = values_in(content.as_published, "as_published", shared.sources, faults)
    found = {}
    for size in [*content.sizes, *(size for size in base_sizes if size not in content.sizes)]:
        below = base_sizes.get(size, replace(base, size=size))
        own = replace(
            shared,
            **{name: getattr(below, name) for name in ("size", "scaling", "parameters")},
            values={**below.values, **common},
            published={**below.published, **published},
        )
        found[size] = _with_size(own, content.sizes.get(size, Size()), faults)
    if not found and not faults:
        faults.append(Fault("missing", "sizes", "no sizes: a recipe needs at least one table [sizes.NAME]"))
    placed = [(fault.key, fault.words) for fault in faults]
    for candidate in found.values() if judged else ():
        placed += [_placed(candidate, fault, lines) for fault in _run_faults(candidate, whole=not faults)]
    if placed:
        once = dict.fromkeys((_line(lines, place), words) for place, words in placed)  # not again for each size
        told = sorted(once, key=lambda pair: pair[0])
        raise RecipeError([f"{path}:{line}: {words}" for line, words in told])
    return replace(shared, values={**base.values, **common}, published={**base.published, **published}), found


def _with_size(shared: Recipe, size: Size, faults: list[Fault]) -> Recipe:
    """What all sizes share, with what one adds to it."""
    where = f"sizes.{shared.size}"
    own = values_in({section: getattr(size, section) for section in SECTIONS}, where, shared.sources, faults)
    published = values_in(size.as_published, f"{where}.as_published", shared.sources, faults)
    return replace(
        shared,
        values={**shared.values, **own},
        published={**shared.published, **published},
        scaling=size.scaling or shared.scaling,
        parameters=size.parameters or shared.parameters,
    )


def _document(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{path}: not a recipe that can be read: {reason}") from error
    if set(SECTIONS) & document.keys():
        raise RecipeError(
            f"{path}: holds settings, as a run's run.toml does, and no recipe: give it by --config {path}"
        )
    return document, lines_of_keys(text)


def _extended(content: RecipeFile, path: Path, faults: list[Fault]) -> tuple[Recipe, Mapping[str, Recipe]]:
    """The recipe that this one extends, under this one's name; an empty one without sizes if it stands alone."""
    name = content.extends
    if name in systems():
        base, sizes = _shipped(FOLDER / f"{name}.toml")
        return replace(base, system=path.stem), sizes
    if name:
        faults.append(Fault("wrong", "extends", f"extends = '{name}': {did_you_mean(name, systems())}"))
    return Recipe(path.stem, "", path.stem, {}, {}), {}


def _run_faults(candidate: Recipe, *, whole: bool) -> list[Fault]:
    """What keeps a size from being a run; where the file has other faults, of the values that it has alone."""
    forms = (candidate, candidate.as_published()) if candidate.published else (candidate,)
    found = [faults_of({key: value.value for key, value in form.values.items()}) for form in forms]
    return [fault for faults in found for fault in faults if whole or fault.kind in ("unknown", "wrong")]


def _placed(candidate: Recipe, fault: Fault, lines: Mapping[str, int]) -> tuple[str, str]:
    """A fault at the entry that it is about; at the size where the file has no such entry."""
    key = fault.key.partition("[")[0]
    for table in (f"sizes.{candidate.size}", f"sizes.{candidate.size}.as_published", "common", "as_published"):
        if f"{table}.{key}" in lines:
            return f"{table}.{key}", f"{table}: {fault.words}"
    return f"sizes.{candidate.size}", f"{candidate.name}: {fault.words}"


def _line(lines: Mapping[str, int], place: str) -> int:
    """Of a key, or of the nearest table around it or in it."""
    while place and place not in lines:
        inside = [line for key, line in lines.items() if key.startswith(f"{place}.")]
        if inside:
            return min(inside)
        place = place.rpartition(".")[0]
    return lines.get(place, 1)
