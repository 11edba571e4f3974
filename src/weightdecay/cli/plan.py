"""`weightdecay plan`: which tensors of a model decay, and why."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdecay.cli.flags import Argument, Choice, Model, Name, NameOrFile, Number, Switch, Words, raise_together
from weightdecay.cli.output import console, note, print_document, print_json
from weightdecay.errors import CheckFailedError, ConfigError, RecipeError, WeightDecayError, did_you_mean

if TYPE_CHECKING:
    from weightdecay.models.config import ModelConfig
    from weightdecay.planning.decay_plan import DecayPlan
    from weightdecay.planning.model_sources import Source
    from weightdecay.recipes.schema import Recipe
    from weightdecay.recipes.settings import TrainConfig

_UNKNOWN = ("error", "exempt")
_DEFAULT_WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Plan:
    """Which tensors decay and why: every one of them, with the evidence."""

    model: Argument[Model]
    """A recipe (gpt2:124m), a run directory, an exported or Hugging Face directory, its config.json, hf:ORG/NAME, a
    .safetensors file, or python:package.module:factory."""
    policy: NameOrFile = ""
    """Which tensors decay: a policy's name or a TOML file; by default the recipe's, else `default`."""
    weight_decay: Number = ""
    """λ; by default the recipe's, else 0.1."""
    override: Words = ()
    """PATTERN=MULTIPLIER, one or more, for the tensors in whose name the regular expression is found; the first
    decides."""
    against: NameOrFile = ""
    """Another policy's name, or a lock: who differs on what, and why it matters."""
    why: Name = ""
    """One tensor's story."""
    lock: NameOrFile = ""
    """Write the plan to this file, for a repository to commit; an incomplete one is refused, exit 3."""
    check: NameOrFile = ""
    """Compare with that file; exit 3 if a tensor, role or multiplier changed."""
    unknown: Choice = "error"
    """error or exempt: what to do with a tensor whose job nothing tells."""
    strict: Switch = False
    """Exit 3 if verdicts rest on shapes alone, or the look at the model was cut short; they are listed, with the
    overrides to paste."""
    trace: Choice = "on"
    """on or off: whether small copies are run to see how tensors are used."""
    deadline: Number = "60"
    """Seconds after which nothing more is run; a plan that this cuts is incomplete, and says so."""
    json: Switch = False
    """One JSON document on stdout; of a plan, in the format of a run's plan.json."""

    def run(self) -> int:
        overrides = self._checked()
        decided = self._decided(overrides)
        if self.json:  # one document, or the error
            self._refuse(decided)
        if self.why:
            self._show_story(decided)
        elif self.against:
            self._show_comparison(decided)
        elif not self.check:
            self._show_plan(decided)
        self._refuse(decided)
        return self._lock_and_check(decided)

    def _checked(self) -> dict[str, float]:
        faults = []
        for flag, value, known in (("--unknown", self.unknown, _UNKNOWN), ("--trace", self.trace, ("on", "off"))):
            if value not in known:
                faults.append(f"{flag} {value}: {did_you_mean(value, known)}")
        overrides: dict[str, float] = {}
        for text in self.override:
            pattern, _, multiplier = text.rpartition("=")
            try:
                overrides[pattern] = float(multiplier)
            except ValueError:
                faults.append(f"--override {text}: must be PATTERN=MULTIPLIER, like 'lm_head=0'")
        if self.weight_decay == "auto":
            faults.append("--weight-decay auto depends on the run's length, which a plan has not: give a number")
        elif self.weight_decay and not _is_number(self.weight_decay):
            faults.append(f"--weight-decay {self.weight_decay}: must be a number, like 0.1")
        if not _is_number(self.deadline) or not float(self.deadline) > 0:
            faults.append(f"--deadline {self.deadline}: must be a number of seconds above 0")
        if self.lock and self.lock == self.check:
            faults.append(f"--lock and --check {self.lock}: one writes what the other compares with: give one of them")
        raise_together(faults)
        return overrides

    def _decided(self, overrides: dict[str, float]) -> DecayPlan:
        """The plan: the model is found, built and looked at once."""
        from weightdecay.planning.plan import plan
        from weightdecay.planning.policies.overrides import Override

        source = _open(self.model)
        ours = [Override(pattern, multiplier) for pattern, multiplier in overrides.items()]
        weight_decay = float(self.weight_decay) if self.weight_decay else _DEFAULT_WEIGHT_DECAY
        policy: Any = self.policy or "default"
        if source is None:
            from weightdecay.training.optimizers import plan_overrides

            config = self._config()
            to_plan: Any = _our_model(config.model)
            weight_decay, policy = config.optimizer.peak_weight_decay, self.policy or config.optimizer.policy
            ours += plan_overrides(config.optimizer)
        else:
            to_plan = source.to_plan
            if source.model is None:
                note("names and shapes only: these verdicts are weaker than those on a model")
        unknown: Any = self.unknown
        looking: dict[str, Any] = {"trace": self.trace == "on", "deadline": float(self.deadline)}
        return plan(to_plan, weight_decay, policy, overrides=ours, unknown=unknown, **looking)

    def _refuse(self, decided: DecayPlan) -> None:
        """What was asked for and this plan cannot give.

        Raises:
            CheckFailedError: `--strict` and verdicts that rest on little, or an incomplete plan to lock or to check.
        """
        faults = []
        if decided.incomplete and (self.lock or self.check):
            flag = "--lock" if self.lock else "--check"
            faults.append(f"{flag}: the plan is incomplete, and may be another one elsewhere: {decided.incomplete}")
        if self.strict:
            try:
                decided.raise_if_weak()
            except CheckFailedError as error:
                faults += [f"--strict: {fault}" for fault in error.faults]
        if faults:
            raise CheckFailedError(faults)

    def _config(self) -> TrainConfig:
        from pathlib import Path

        from weightdecay.runs import Run

        given = {"optimizer.weight_decay": self.weight_decay} if self.weight_decay else {}
        if (Path(self.model) / "run.toml").is_file():
            config = Run.open(self.model).config().replace(**{key.replace(".", "__"): v for key, v in given.items()})
        else:
            config = _recipe(self.model).config(given)
        if config.optimizer.weight_decay == "auto":
            raise ConfigError("--weight-decay auto depends on the run's length, which a plan has not: give a number")
        return config

    def _show_plan(self, decided: DecayPlan) -> None:
        from rich.text import Text as RichText

        from weightdecay.planning.render import PlanTable

        if self.json:
            print_document(decided.to_json())
        else:
            console().print(PlanTable(decided))
            console().print(RichText(str(decided.summary())))

    def _show_story(self, decided: DecayPlan) -> None:
        from rich.text import Text as RichText

        from weightdecay.planning.render import story, story_document

        tensor = decided[self.why]
        if self.json:
            print_json(story_document(tensor))
        else:
            console().print(RichText(story(tensor)))

    def _show_comparison(self, decided: DecayPlan) -> None:
        from pathlib import Path

        from rich.text import Text as RichText

        from weightdecay.planning.render import comparison, comparison_document

        against: Any = self.against
        is_lock = Path(against).is_file() and not against.endswith(".toml")
        other = type(decided).read(against) if is_lock else decided.under(against)
        if self.json:
            print_json(comparison_document(decided, other))
        else:
            console().print(comparison(decided, other))
            console().print(RichText(f"{decided.policy}: {decided.summary()}\n{other.policy}: {other.summary()}"))

    def _lock_and_check(self, decided: DecayPlan) -> int:
        from pathlib import Path

        from weightdecay.planning.lockfile import check_lock, write_lock

        if self.check:
            check_lock(decided, Path(self.check))
            if self.json:
                print_json({"check": self.check, "holds": True, "tensors": len(decided)})
            else:
                note(f"the plan is the one in {self.check}: {len(decided)} tensors")
        if self.lock:
            write_lock(decided, Path(self.lock))
            note(f"wrote {self.lock}: {len(decided)} tensors")
        return 0


def _open(name: str) -> Source | None:
    """The model of that name; what a user's own factory raises is shown as its own traceback, without our frames."""
    from pathlib import Path

    from weightdecay.models import huggingface
    from weightdecay.planning.model_sources import Source, open_source

    if (Path(name) / huggingface.OWN_CONFIG).is_file():  # exported, and transformers has no counterpart
        return Source(model=_our_model(huggingface.read_config(Path(name))))
    if name.startswith("hf:"):
        note(f"asking the Hugging Face hub for the configuration of {name.removeprefix('hf:')}")
    try:
        return open_source(name)
    except WeightDecayError:
        raise
    except Exception as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith(
            ("weightdecay.", "importlib")
        ):
            frame = frame.tb_next
        note("".join(traceback.format_exception(type(error), error, frame)).rstrip())
        raise WeightDecayError(f"{name} raised {type(error).__name__}: no model, no plan") from None


def _recipe(name: str) -> Recipe:
    from pathlib import Path

    from weightdecay.recipes.schema import recipe
    from weightdecay.storage import is_directory, is_file

    try:
        return recipe(name)
    except RecipeError as error:
        kinds = (
            "a run directory, a directory with config.json or weightdecay.json, hf:ORG/NAME, a .safetensors file, "
            "python:module:factory"
        )
        path = Path(name)
        what = "file" if is_file(path) else "directory" if is_directory(path) else ""
        if what and path.suffix != ".toml":  # nobody means a recipe's name by it
            raise RecipeError(f"{name}: a {what}, and none that is known here: give {kinds}") from None
        raise RecipeError([*error.faults, f"'{name}' is none of these either: {kinds}"]) from None


def _our_model(config: ModelConfig) -> Any:
    from weightdecay.models.decoder import GPT

    return GPT.blueprint(config)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
