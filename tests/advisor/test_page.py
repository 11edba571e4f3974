"""The page says what the laws and the database say, and what it claims of the ranges was measured."""

from __future__ import annotations

import re

import make_advice
import pytest
from figures import DOCS, PICTURES

from weightdecay.recipes.published.runs import published_runs

TEXT = (DOCS / make_advice.PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", make_advice.BLOCKS)
def test_every_table_of_the_page_is_what_its_script_writes(name: str) -> None:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", TEXT, re.DOTALL)
    assert found
    assert found[1] == make_advice.BLOCKS[name]().strip(), "run docs/make_advice.py"


def test_every_run_left_out_once_nearly_always_lies_in_the_range_of_the_others() -> None:
    for whole_system in (False, True):
        found = make_advice.left_out("adamw", whole_system=whole_system)
        assert found.inside >= 0.95 * found.runs
        assert found.runs == sum(run.optimizer == "adamw" for run in published_runs())
        assert found.width[1] <= 10 * (1 + 1e-9)


def test_numbers_in_the_pages_sentences_are_the_databases() -> None:
    runs = published_runs()
    assert f"{len(runs)} public runs of {len({run.system for run in runs})} systems" in TEXT
    adamw = [run for run in runs if run.optimizer == "adamw"]
    assert f"{sum(run.decoupled == 0.1 for run in adamw)} of {len(adamw)} with AdamW" in TEXT
    scales = [run.timescale for run in adamw]
    assert f"a factor of {round(max(scales) / min(scales), -2):.0f}" in TEXT
    muon = [run.decoupled for run in runs if run.optimizer == "muon"]
    assert f"by a factor of {max(muon) / min(muon):.0f}," in TEXT


def test_every_picture_of_the_page_is_there() -> None:
    named = re.findall(r"\(pictures/(\w+\.svg)\)", TEXT)
    assert len(named) >= 5
    assert all((PICTURES / name).is_file() for name in named)
