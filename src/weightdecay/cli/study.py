"""`weightdecay study`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdecay.cli.flags import Argument, Count, Folder, Name, Sources, Switch, raise_together, whole_number
from weightdecay.cli.output import console, note, print_json
from weightdecay.errors import ConfigError, printable

if TYPE_CHECKING:
    from weightdecay.studies.directory import StudyDirectory


@dataclass(frozen=True)
class Study:
    """Carry out an experiment about weight decay: train its runs side by side, compare them in pairs, and say what can
    be said.

    Without a name the studies are listed. The same command with the same --out goes on where it was.
    """

    name: Argument[Name] = ""
    """Which: lambda, decoupling, selective, equilibrium, timescale, schedule, memorization, downstream, or demo."""
    out: Folder = ""
    """The study's directory; by default studies/NAME."""
    data: Sources = ()
    """Files, folders, globs or hf:NAME, from which its texts are taken; by default the standard library's sources."""
    seeds: Count = ""
    """Runs of each arm; by default 3 with --quick and 5 without, which is the fewest for a claim."""
    jobs: Count = ""
    """Runs at a time, of one thread each; by default one for each core."""
    quick: Switch = False
    """Small models and short runs: minutes, and an indication."""
    scale: Switch = False
    """Larger models and longer runs, for a machine with many cores or a GPU."""
    json: Switch = False
    """One JSON document on stdout; progress goes to stderr."""

    def run(self) -> int:
        faults = ["--quick and --scale: give one of them"] if self.quick and self.scale else []
        seeds = whole_number("--seeds", self.seeds, faults, least=1) if self.seeds else 3 if self.quick else 5
        jobs = whole_number("--jobs", self.jobs, faults, least=1) if self.jobs else _cores()
        if not self.name:
            raise_together(faults)
            return self._list()

        from pathlib import Path

        from weightdecay.studies.catalogue import study

        try:
            chosen = study(self.name)
        except ConfigError as error:
            faults += error.faults
        raise_together(faults)

        from weightdecay.studies.runner import carry_out
        from weightdecay.training.signals import StopRequest

        with StopRequest() as stop:
            directory = carry_out(
                chosen,
                Path(self.out or f"studies/{chosen.name}"),
                size="quick" if self.quick else "large" if self.scale else "full",
                n_seeds=seeds,
                jobs=jobs,
                sources=self.data,
                report=note,
                stop_requested=lambda: stop.signal_number,
            )
        results = directory.results()
        if self.json:
            print_json({"directory": str(directory.path), "results": results})
        else:
            _tell(directory, results)
        return 0

    def _list(self) -> int:
        from rich.table import Table

        from weightdecay.studies.catalogue import studies

        known = studies()
        if self.json:
            print_json({"studies": [{"name": name, "question": each.question} for name, each in known.items()]})
            return 0
        table = Table("study", "question")
        for name, each in known.items():
            table.add_row(name, each.question)
        console().print(table)
        return 0


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # a container or a batch system may lend only some of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tell(directory: StudyDirectory, results: dict[str, Any]) -> None:
    from rich.text import Text

    out = console()
    lines = [results["answer"], ""]
    lines += [f"{verdict['claim']} {verdict['verdict']}: {verdict['sentence']}" for verdict in results["verdicts"]]
    lines += ["", *results["limits"], "", f"the page: weightdecay report {directory.path}"]
    for line in lines:
        out.print(Text(printable(line)), soft_wrap=True)
