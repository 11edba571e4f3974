"""Settings as files: a run's run.toml, or a part of one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from weightdecay.declared.values import flat, nested
from weightdecay.errors import ConfigError
from weightdecay.recipes.moved import as_of_now, given_twice
from weightdecay.recipes.places import lines_of_keys
from weightdecay.recipes.settings import TrainConfig

# Of what is written; older ones are read too, a file without one being the first.
VERSION = 2


@dataclass(frozen=True)
class SettingsFile:
    """What a file says.

    Attributes:
        values: `section.key` pairs.
        recipe, scaling: of the run that wrote it; empty where the file does not say.
    """

    values: Mapping[str, Any]
    recipe: str = ""
    scaling: str = ""

    def config(self) -> TrainConfig:
        """A whole run's configuration.

        Raises:
            ConfigError: every fault at once.
        """
        return TrainConfig.from_values(self.values, recipe=self.recipe, scaling=self.scaling)


def read_settings(path: Path) -> SettingsFile:
    """The settings in a file, by whatever version it was written; what they hold is not looked at yet.

    Raises:
        ConfigError: it cannot be read, or a newer version wrote it.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise  # not damaged: its owner has to let us
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    version = document.pop("schema_version", 1)
    if version not in range(1, VERSION + 1):
        raise ConfigError(f"{path}: schema_version = {version!r}: this weightdecay reads up to {VERSION}: update it")
    whole = "recipe" in document  # a run wrote it, and every setting that it had
    heads = {name: document.pop(name, "") for name in ("recipe", "scaling")}
    if strange := [name for name, value in heads.items() if not isinstance(value, str)]:
        raise ConfigError([f"{path}: {name} = {heads[name]!r}: must be UTF-8 text" for name in strange])
    values = flat(document)
    if twice := given_twice(values):
        raise ConfigError([f"{path}: {words}" for words in twice])
    if whole:
        values = as_of_now(values, version)
    return SettingsFile(values, **heads)


def settings_toml(config: TrainConfig, origins: Mapping[str, str] | None = None) -> str:
    """Every setting, a table a section.

    Args:
        origins: where the values of some keys come from, said beside them.
    """
    head = {"schema_version": VERSION, "recipe": config.recipe, "scaling": config.scaling}
    text = tomli_w.dumps(head | nested(config.values()))
    lines = text.split("\n")  # and nothing else that Unicode calls a line's end
    places = lines_of_keys(text)
    for key, origin in (origins or {}).items():
        if key in places:
            lines[places[key] - 1] += f"  # {origin}"
    return "\n".join(lines)
