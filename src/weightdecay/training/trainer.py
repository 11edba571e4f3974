"""Start a training run or go on with one: directory, ranks, configuration, then the loop."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Never

from weightdecay import checkpoint
from weightdecay.errors import ConfigError, WeightDecayError, fault_of_the_world, printable
from weightdecay.kernels.memory import give_back_freed_memory
from weightdecay.recipes.settings import TrainConfig, as_keywords
from weightdecay.runs import Run, Tracker, environment
from weightdecay.storage import cache_directory
from weightdecay.training import checkpointing, distributed
from weightdecay.training.briefing import briefing
from weightdecay.training.building import build
from weightdecay.training.checkpointing import Position
from weightdecay.training.distributed import Ranks
from weightdecay.training.loop import TrainingLoop
from weightdecay.training.needs import needs_of, refuse_what_does_not_fit
from weightdecay.training.precision import bfloat16_costs
from weightdecay.training.preflight import unknown_choices
from weightdecay.training.progress import ConsoleReporter, Reporter, SilentReporter, lasting_console, told_now_and_then
from weightdecay.training.resuming import (
    agree_on_config,
    check_data,
    check_start,
    holds_a_run,
    is_finished,
    with_recorded_choice,
)
from weightdecay.training.setup import Setup, set_up
from weightdecay.training.signals import StopRequest


def train(
    config: TrainConfig,
    *,
    resume: str = "auto",
    on_change: str = "refuse",
    reporter: Reporter | None = None,
    tracker: Tracker | None = None,
    **settings: Never,
) -> Run:
    """Train to the end, or go on with a run that was stopped.

        import weightdecay

        config = weightdecay.recipe("gpt3:nano").config({"run.steps": 200, "run.out": "runs/first"})
        run = weightdecay.train(config)
        run.summary()["val_bits_per_byte"]

    Args:
        config: what to train; `run.out` empty picks a new directory under runs/.
        resume: `auto` goes on where `run.out` holds a run, `must` insists on it, `never` refuses it.
        on_change: settings that differ from the run being resumed: `refuse`, `keep` the run's, or `override` them.
        reporter: told of the progress; by default lines on stderr. With `run.nproc` above 1 the first of the new
            processes writes there by itself.
        tracker: is sent the rows of metrics.jsonl, too; `integrations` has some. With several processes it is the first
            of them that sends, and the tracker is pickled to get there.

    Raises:
        ConfigError: all faults of the configuration at once, then all of the data.
        DamagedError: there are checkpoints and none is good.
        RunBusyError: another process trains in the directory.
        StoppedError: a signal asked to stop (see `signals`); the state was saved first.
        TrainingError: the gradient stopped being finite, or the disk refused.
    """
    faults = as_keywords("train()", settings) + unknown_choices(resume, on_change)
    if not isinstance(config, TrainConfig):
        faults.append(
            f"config is a {type(config).__name__}: give a TrainConfig, as weightdecay.recipe('gpt3:nano').config()"
        )
    if faults:
        raise ConfigError(faults)
    reporter = reporter or ConsoleReporter(lasting_console(stderr=True))
    if not config.run.out:
        config = config.resolved(run__out=_new_directory(config))
    run = Run(Path(config.run.out))

    if config.run.nproc > 1 and not distributed.inside_a_group():
        # The ranks look for the cache where we found one, so that all read the same files.
        os.environ["XDG_CACHE_HOME"] = str(cache_directory().parent)
        on_stdout = isinstance(reporter, ConsoleReporter) and reporter.on_stdout
        distributed.launch(config.run.nproc, _train_rank, config, resume, on_change, on_stdout, tracker)
        return run

    with ExitStack() as stack:
        ranks = stack.enter_context(distributed.join())
        reporter = reporter if ranks.is_first else SilentReporter()
        stack.callback(reporter.close)
        if ranks.is_first:
            stack.enter_context(run.lock())
        ranks.wait_for_all()
        _train(config, run, ranks, resume, on_change, reporter, tracker)
    give_back_freed_memory()  # which steps kept for each other
    return run


def _train(
    config: TrainConfig,
    run: Run,
    ranks: Ranks,
    resume: str,
    on_change: str,
    reporter: Reporter,
    tracker: Tracker | None,
) -> None:
    going_on = holds_a_run(run, resume)
    if config.run.init_from and not going_on:
        check_start(config.run.init_from)
    if going_on:
        config = with_recorded_choice(run.config(), config)
    reporter.note(f"reading {' '.join(config.data.sources) or 'the standard library'}")
    costs = ranks.total(bfloat16_costs())[0] / ranks.world_size if config.run.dtype == "auto" else None
    setup = set_up(config, told_now_and_then(reporter.note), costs)
    identity = {"corpus_sha256": setup.data.corpus_sha256, "tokenizer_sha256": setup.data.tokenizer.sha256}
    if going_on:
        check_data(run, identity)
        agreed = agree_on_config(run.config(), setup.config, on_change, reporter.note)
        if is_finished(run, agreed.run.steps, reporter.note):
            return
        if agreed != setup.config:
            setup = set_up(agreed)

    needs = needs_of(setup)
    reporter.show(briefing(setup, needs))
    refuse_what_does_not_fit(setup, needs)
    built = build(setup, ranks, reporter.note, fresh=not going_on)
    ranks.wait_for_all()  # every rank has read the directory as it was
    if ranks.is_first:
        checkpoint.sweep(run.checkpoints, reporter.note)
        _write_head(run, setup, identity)
    position = Position()
    if going_on:
        position = checkpointing.resume(run, built.model, built.optimizer, ranks, reporter.note)
    ranks.wait_for_all()

    # Closing gives the terminal its cursor back; where there are several ranks, their launcher tells.
    with StopRequest(before_leaving=reporter.close, tells=ranks.world_size == 1) as stop:
        TrainingLoop(setup, built, run, ranks, reporter, position, tracker).run_to_end(stop)


def _write_head(run: Run, setup: Setup, identity: dict[str, str]) -> None:
    """What a run directory holds before its first step; a resume changes only the plan and the configuration.

    run.toml comes last: with it the directory is a run, and a kill before it leaves one that can be started anew.
    """
    run.write_text("plan.json", setup.plan.to_json())
    if not (run.path / "run.toml").is_file():
        setup.data.tokenizer.save(run.tokenizer_path)
        run.write_json("environment.json", {**environment(), **identity})
    run.write_config(setup.config)


def _new_directory(config: TrainConfig) -> str:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.recipe.replace(':', '-') or 'run'}-{stamp}"
    candidates = (Path("runs") / (name if attempt == 1 else f"{name}-{attempt}") for attempt in range(1, 1000))
    return str(next(path for path in candidates if not path.exists()))


def _train_rank(config: TrainConfig, resume: str, on_change: str, on_stdout: bool, tracker: Tracker | None) -> int:
    """What each process of `--nproc` does; the first one talks."""
    reporter = ConsoleReporter(lasting_console(stderr=not on_stdout))
    try:
        train(config, resume=resume, on_change=on_change, reporter=reporter, tracker=tracker)
    except KeyboardInterrupt:  # before there was anything to save
        return 130
    except Exception as error:
        fault = error if isinstance(error, WeightDecayError) else fault_of_the_world(error)
        if fault is None:
            raise
        if os.environ["RANK"] == "0":
            sys.stderr.writelines(f"error: {printable(words)}\n" for words in fault.faults)
        return fault.exit_code
    return 0
