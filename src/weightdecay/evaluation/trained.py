"""A trained model as it lies on a disk: in a run, in one of its checkpoints, or as it was exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from weightdecay import checkpoint
from weightdecay.checkpoint import Checkpoint
from weightdecay.data.tokenizer import Tokenizer, load_tokenizer
from weightdecay.errors import ConfigError, DamagedError
from weightdecay.evaluation.tokenizerfiles import tokenizers_of
from weightdecay.models import huggingface
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.loading import load_weights
from weightdecay.runs import Run, read_json
from weightdecay.storage import why_no_directory

Report = Callable[[str], None]

NEWEST, BEST = "newest", "best"
_WHAT_CAN_BE_GIVEN = (
    "give a run (run.toml), one of its checkpoints (manifest.json), or an exported or Hugging Face directory "
    "(config.json or weightdecay.json)"
)


@dataclass(frozen=True)
class Stored:
    """Where a trained model lies.

    Attributes:
        path: the directory with its weights.
        config: its shape.
        run: that it comes from; None for an exported one.
        checkpoint: of that run; None for an exported one.
    """

    path: Path
    config: ModelConfig
    run: Run | None = None
    checkpoint: Checkpoint | None = None

    @property
    def step(self) -> int | None:
        """At which its run wrote it; None where nothing says."""
        return self.checkpoint.step if self.checkpoint else None

    def tokenizer(self) -> Tokenizer:
        """That it was trained with.

        Raises:
            ConfigError: there is none beside the weights.
            DamagedError: the run's is another than the one it was trained with.
        """
        if self.run is not None:
            tokenizer = load_tokenizer(self.run.tokenizer_path)
            environment = self.run.path / "environment.json"
            recorded = read_json(environment).get("tokenizer_sha256") if environment.is_file() else None
            if recorded and recorded != tokenizer.sha256:  # the same numbers, spelt as other text
                raise DamagedError(
                    f"{self.run.tokenizer_path}: its SHA-256 is {tokenizer.sha256[:12]}, and the run was trained with "
                    f"{str(recorded)[:12]}: put its own back"
                )
            return tokenizer
        spoken = tokenizers_of(self.path)
        if not spoken:
            raise ConfigError(f"{self.path}: has no tokenizer.json, so its tokens cannot be told: put its own there")
        return next(iter(spoken.values()))

    @contextmanager
    def weights(self, report: Report) -> Iterator[Mapping[str, Tensor]]:
        """Its tensors by our names; a checkpoint's are read when they are asked for."""
        if self.checkpoint is not None:
            with self.checkpoint.stored_model() as stored:
                yield stored
        else:
            yield huggingface.read_weights(self.path, self.config, report)


@dataclass(frozen=True)
class Trained:
    """A model ready to be asked, with the tokenizer it was trained on.

    Attributes:
        step: at which its run wrote it; None where nothing says.
    """

    model: GPT
    tokenizer: Tokenizer
    step: int | None


def find(path: Path, report: Report, which: str = NEWEST) -> Stored:
    """The trained model that a path means.

    Args:
        path: a run, a checkpoint of one, or an exported or Hugging Face directory.
        report: told of damaged checkpoints that were passed over.
        which: of a run's checkpoints `newest`, `best`, or the number of a step.

    Raises:
        ConfigError: there is no such model; or a checkpoint was chosen where there is none to choose from.
        DamagedError: it is not as it was written.
    """
    if (path / "run.toml").is_file():
        run = Run.open(path)
        return _of_run(run, _chosen(run, report, which))
    if which != NEWEST:
        raise ConfigError(f"--checkpoint {which}: {path} is no run with checkpoints to choose from")
    if (path / checkpoint.MANIFEST).is_file():
        found = Checkpoint(path.resolve())
        if faults := found.faults():
            raise DamagedError(faults)
        return _of_run(Run.open(found.path.parent.parent), found)
    if huggingface.holds_a_model(path):
        return Stored(path, huggingface.read_config(path))
    if not path.is_dir():
        raise ConfigError(f"{path}: {why_no_directory(path)}: {_WHAT_CAN_BE_GIVEN}")
    raise ConfigError(f"{path}: no trained model: {_WHAT_CAN_BE_GIVEN}")


def load(source: Run | Stored, report: Report) -> Trained:
    """The model with its weights; of a run, those of its newest good checkpoint.

    Raises:
        ConfigError: the run has no checkpoint yet, or there is no tokenizer.
        DamagedError: it has, and none is good.
    """
    stored = find(source.path, report) if isinstance(source, Run) else source
    model = GPT(stored.config)
    with stored.weights(report) as tensors:
        load_weights(model, tensors, stored.path)
    return Trained(model.eval(), stored.tokenizer(), stored.step)


def _of_run(run: Run, chosen: Checkpoint) -> Stored:
    return Stored(chosen.path, run.config().model, run, chosen)


def _chosen(run: Run, report: Report, which: str) -> Checkpoint:
    if which == NEWEST:
        found = checkpoint.newest_good(run.checkpoints, report)
    elif which == BEST:
        found = checkpoint.best(run.checkpoints)
    elif which.isdecimal():
        found = checkpoint.of_step(run.checkpoints, int(which))
    else:
        raise ConfigError(f"--checkpoint {which}: newest, best, or the number of a step")

    there = [str(one.step) for one in checkpoint.checkpoints(run.checkpoints)]
    if not there:
        raise ConfigError(f"{run.path}: no checkpoint yet; let the training reach its first one")
    if found is None:
        raise ConfigError(f"--checkpoint best: {run.path} has no checkpoint with a held-out loss; it has steps "
                          f"{', '.join(there)}")  # fmt: skip
    if not found.path.is_dir():
        raise ConfigError(f"--checkpoint {which}: {run.path} has none of that step, but of {', '.join(there)}")
    if which != NEWEST and (faults := found.faults()):
        raise DamagedError(faults)
    return found
