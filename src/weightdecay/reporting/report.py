"""Directories of runs or of a study to one page: gathered, told, written."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from weightdecay.errors import ConfigError
from weightdecay.reporting.html import html
from weightdecay.reporting.markdown import markdown
from weightdecay.reporting.page import Page
from weightdecay.reporting.run_page import run_page
from weightdecay.reporting.run_record import record_of
from weightdecay.reporting.runs_page import runs_page
from weightdecay.reporting.study_page import study_page
from weightdecay.reporting.study_record import is_study, study_of
from weightdecay.reporting.svg import standalone
from weightdecay.runs import runs_in
from weightdecay.storage import whole_file

Format = Literal["html", "md"]


@dataclass(frozen=True)
class Written:
    """What was made.

    Attributes:
        out: the page.
        pictures: its plots as files, where they were asked for.
    """

    page: Page
    out: Path
    size: int
    pictures: list[Path]


def report(
    folders: Sequence[Path], out: Path | None = None, *, format: Format = "html", pictures: Path | None = None
) -> Written:
    """Write the page of a run, of several runs, or of a study.

    Args:
        folders: run directories, folders that hold runs at any depth, or one study directory.
        out: the page; by default report.html (or .md) in the one directory that is given, or here.
        pictures: a folder for each plot as SVG; of Markdown, which has them beside it, by default NAME-pictures.

    Raises:
        ConfigError: a folder is no run and holds none, with all that are wrong at once.
        DamagedError: a study's files cannot be read.
        MissingExtraError: what draws and writes pages is not installed.
        StorageError: the disk refused.
    """
    page = page_of(folders)
    out = out or (folders[0] if len(folders) == 1 else Path()) / f"report.{format}"
    if format == "md" and pictures is None:
        pictures = out.with_name(f"{out.stem}-pictures")

    out.parent.mkdir(parents=True, exist_ok=True)  # before the work, which takes seconds
    drawn = _draw(page, pictures) if pictures is not None else {}
    text = html(page) if format == "html" else markdown(page, lambda picture: _link(drawn[picture.id], out))
    with whole_file(out) as file:
        size = file.write(text.encode())
    return Written(page, out, size, list(drawn.values()))


def page_of(folders: Sequence[Path]) -> Page:
    """What a reader is told of these directories.

    Raises:
        ConfigError: a folder is no run and holds none, or studies and runs are mixed.
    """
    if studies := [folder for folder in folders if is_study(folder)]:
        if len(folders) > 1:
            raise ConfigError(f"{studies[0]}: is a study, and has a page of its own: give it alone")
        page = study_page(study_of(studies[0]))
    else:
        records = [record_of(path) for path in _runs(folders)]
        page = run_page(records[0]) if len(records) == 1 else runs_page(records)
    return replace(page, made=_made())


def _runs(folders: Sequence[Path]) -> list[Path]:
    """The runs that are meant: each once, in the order that they were given in."""
    if not folders:
        raise ConfigError("report: give a run directory, a folder of runs, or a study's directory")
    found: dict[Path, Path] = {}
    faults = []
    for folder in folders:
        try:
            inside = [folder] if (folder / "run.toml").is_file() else [run.path for run in runs_in(folder)]
        except ConfigError as error:
            faults += error.faults
            continue
        if not inside:
            faults.append(
                f"{folder}: not a run directory (it has no run.toml), and none is in it; `weightdecay train` makes one"
            )
        found |= {path.resolve(): path for path in inside if path.resolve() not in found}
    if faults:
        raise ConfigError(faults)
    return list(found.values())


def _draw(page: Page, folder: Path) -> dict[str, Path]:
    """Each plot as a file, by its id."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for figure in page.figures():
        path = folder / f"{figure.picture.id}.svg"
        with whole_file(path) as file:
            file.write(standalone(figure.picture).encode())
        drawn[figure.picture.id] = path
    return drawn


def _link(picture: Path, page: Path) -> str:
    """From a page to its picture, as a URL."""
    return quote(Path(os.path.relpath(picture, page.parent)).as_posix())


def _made(now: Callable[[], datetime.datetime] = datetime.datetime.now) -> str:
    from weightdecay import __version__

    return f"Made {now().isoformat(sep=' ', timespec='minutes')} by weightdecay {__version__}."
