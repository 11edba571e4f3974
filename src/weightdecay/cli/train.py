"""`weightdecay train`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdecay.cli.flags import (
    Argument,
    Choice,
    File,
    Recipe,
    Settings,
    Switch,
    key_value_pairs,
    setting_flags,
    with_setting_flags,
)
from weightdecay.cli.last_screen import show_last_screen
from weightdecay.cli.output import console, note, print_json
from weightdecay.errors import ConfigError, RecipeError, printable
from weightdecay.recipes.settings import TrainConfig

if TYPE_CHECKING:
    from weightdecay.recipes.files import SettingsFile
    from weightdecay.recipes.layers import Layer
    from weightdecay.recipes.schema import Recipe as PublishedRecipe
    from weightdecay.runs import Tracker

_DEFAULT_RECIPE = "gpt3:nano"


@with_setting_flags(TrainConfig)
@dataclass(frozen=True)
class Train:
    """Train a GPT on real text with its decay plan: by default gpt3:nano on this Python's own standard library.

    What is not given is the recipe's: flags go over --config, --config over the recipe, --set over all. The same
    command with the same --out goes on with a run that was stopped.
    """

    recipe: Argument[Recipe] = ""
    """SYSTEM[:SIZE], or a recipe file of your own, FILE.toml[:SIZE]; `weightdecay recipes` lists the systems. Default:
    that of --config, or gpt3:nano."""
    config: File = ""
    """Settings as a run's run.toml has them, all or some: RUN/run.toml with another --out trains the same once more."""
    resume: Choice = "auto"
    """auto (go on if --out holds a run), never, or must."""
    on_change: Choice = "refuse"
    """Settings that differ from the run being resumed: refuse, keep the run's, or override them from the next step."""
    track: Choice = ""
    """Send the rows of metrics.jsonl to a tracker, too: tensorboard (events in RUN/tensorboard), trackio or wandb."""
    as_published: Switch = False
    """The published form where the recipe keeps another value (PaLM's optimizer)."""
    set: Settings = ()
    """Any other setting, like optimizer.beta2=0.95; `--dry-run` prints them all, and where each comes from."""
    dry_run: Switch = False
    """Say what would be trained, and stop before the first step."""
    json: Switch = False
    """One JSON document on stdout; progress goes to stderr."""

    def run(self) -> int:
        config, origins = self.settings()
        _refuse_another_tokenizer(config, origins)
        from rich.text import Text

        from weightdecay.recipes.files import settings_toml
        from weightdecay.training.briefing import briefing, document
        from weightdecay.training.needs import needs_of
        from weightdecay.training.pace import seconds_a_step
        from weightdecay.training.progress import ConsoleReporter, told_now_and_then
        from weightdecay.training.resuming import check_start
        from weightdecay.training.setup import set_up
        from weightdecay.training.trainer import train

        out = console(stderr=self.json, lasting=not self.dry_run)
        if self.dry_run:
            if config.run.init_from:
                check_start(config.run.init_from)
            setup = set_up(config, told_now_and_then(note))
            origins = _with_what_was_worked_out(origins, config, setup.config)
            needs = needs_of(setup)
            fits = needs.available is None or needs.memory.more <= needs.available
            step_s = seconds_a_step(setup) if fits else None
            if self.json:
                print_json(document(setup, needs, step_s) | {"origins": origins})
            else:
                out.print(briefing(setup, needs, step_s), "")
                out.print(Text(printable(settings_toml(setup.config, origins))), soft_wrap=True)
            return 0
        run = train(
            config, resume=self.resume, on_change=self.on_change, reporter=ConsoleReporter(out), tracker=self._tracker()
        )
        if os.environ.get("RANK", "0") != "0":
            return 0  # under torchrun the first process speaks for all
        if self.json:
            print_json({"run": str(run.path), "summary": run.summary()})
        else:
            show_last_screen(run, out)
        return 0

    def settings(self) -> tuple[TrainConfig, dict[str, str]]:
        """What this command line asks for, with every fault of it at once; and what each value is given by."""
        from weightdecay.declared.reading import ReadError
        from weightdecay.integrations.trackers import tracker_faults
        from weightdecay.recipes.layers import Layer, stacked
        from weightdecay.recipes.settings import faults_of_some
        from weightdecay.training.preflight import missing_names, unknown_choices

        faults = unknown_choices(self.resume, self.on_change)
        if self.track:
            faults += [f"--track {fault}" for fault in tracker_faults(self.track)]
        file = self._file(faults)
        flags = {flag.setting.key: flag for flag in setting_flags(TrainConfig)}
        given = {key: value for key, flag in flags.items() if (value := getattr(self, flag.name))}
        own = [
            *([Layer(file.values, lambda _: self.config)] if file else []),
            Layer(given, lambda key: flags[key].shown),
            Layer(key_value_pairs(self.set, faults), lambda _: "--set"),
        ]
        chosen = self._recipe(file, faults)
        values, origins = stacked([*([_layer(chosen)] if chosen else []), *own])
        if chosen is None and not (file and file.recipe and not self.recipe):
            above, _ = stacked(own)
            raise ConfigError([*faults, *faults_of_some(above), *missing_names(above)])

        try:
            config = TrainConfig.from_values(values, recipe=_name(chosen, file), scaling=_scaling(chosen, file, own))
        except ReadError as error:
            faults += [
                f"{self.config}: {fault.words}"
                if self.config and origins.get(fault.key.partition("[")[0]) == self.config
                else fault.words
                for fault in error.found
            ]
        if faults:
            raise ConfigError([*faults, *missing_names(stacked(own)[0])])
        return config, origins

    def _tracker(self) -> Tracker | None:
        from weightdecay.integrations.trackers import tracker

        return tracker(self.track) if self.track else None

    def _file(self, faults: list[str]) -> SettingsFile | None:
        from pathlib import Path

        from weightdecay.recipes.files import read_settings

        try:
            return read_settings(Path(self.config)) if self.config else None
        except ConfigError as error:
            faults += [f"--config {fault}" for fault in error.faults]
            return None

    def _recipe(self, file: SettingsFile | None, faults: list[str]) -> PublishedRecipe | None:
        """The recipe below all else; none where the file's is not here, whose run then has all of its values."""
        from weightdecay.recipes.schema import recipe

        named = file.recipe if file else ""
        try:
            chosen = recipe(self.recipe or named or _DEFAULT_RECIPE)
        except RecipeError as error:
            faults += error.faults if self.recipe or not named else []
            return None
        if self.as_published:
            if not chosen.published:
                note(f"{chosen.name}: nothing that is published differs from the recipe")
            chosen = chosen.as_published()
        return chosen


def _refuse_another_tokenizer(config: TrainConfig, origins: dict[str, str]) -> None:
    """Raise where a tokenizer was given, not the recipe's own, beside data that was prepared with another."""
    from pathlib import Path

    from weightdecay.data.finding import is_prepared
    from weightdecay.data.tokenizer import load_tokenizer
    from weightdecay.data.tokenizer_specs import refuse_another_tokenizer

    given = not origins.get("data.tokenizer", "recipe").startswith("recipe")
    if given and len(config.data.sources) == 1 and is_prepared(prepared := Path(config.data.sources[0])):
        refuse_another_tokenizer(prepared, load_tokenizer(prepared / "tokenizer.json"), config.data.tokenizer)


def _layer(chosen: PublishedRecipe) -> Layer:
    from weightdecay.recipes.layers import Layer

    return Layer(chosen.beginning, lambda key: f"recipe {chosen.name}, {chosen.values[key].status}")


def _name(chosen: PublishedRecipe | None, file: SettingsFile | None) -> str:
    return chosen.name if chosen else file.recipe if file else ""


def _scaling(chosen: PublishedRecipe | None, file: SettingsFile | None, own: list[Layer]) -> str:
    """How the size was scaled down, and what of its shape is given anew; a run's file has said that of its own."""
    if file and file.recipe:
        return file.scaling
    return chosen.scaling_with({key for layer in own for key in layer.values}) if chosen else ""


def _with_what_was_worked_out(origins: dict[str, str], asked: TrainConfig, found: TrainConfig) -> dict[str, str]:
    """Where each value of a run that is ready comes from."""
    before, after = asked.values(), found.values()
    worked_out = {key: "worked out" for key, value in after.items() if before.get(key) != value}
    return dict.fromkeys(after, "default") | {key: origins[key] for key in after if key in origins} | worked_out
