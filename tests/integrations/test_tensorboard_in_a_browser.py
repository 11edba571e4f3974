"""A run's log in a real TensorBoard, looked at in a real headless Chromium."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.integrations.step_audits import StepAudits
from weightdecay.integrations.step_hooks import audited_steps
from weightdecay.integrations.tensorboard import TensorBoard
from weightdecay.runs import Run

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose gains decay: audited three times, and monitored, into one log."""
    pytest.importorskip("tensorboard", reason="no tensorboard here: pip install 'weightdecay[track]'")
    folder = tmp_path_factory.mktemp("log")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    monitor = weightdecay.Monitor(model, optimizer, interval=2)
    tracker = TensorBoard()
    audits = StepAudits((1, 5, 9), trackers=tracker)
    ids = torch.randint(0, 16, (8, 8))
    with audited_steps(audits, model, [optimizer], folder=folder):
        for step in range(1, 11):
            loss: Any = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.row({"kind": "train", "step": step, "loss": loss.item()})
        for row in monitor.rows:
            tracker.row(row)
    (folder / "run.toml").write_text('[run]\nname = "[a](b) <b>bold</b>"\n', encoding="utf-8")
    again = TensorBoard()
    again.start(Run(folder), 10)
    again.close()
    return folder


@pytest.fixture(scope="module")
def address(log: Path) -> Iterator[str]:
    """Of a TensorBoard that shows it, to this machine alone."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen([*command, "--load_fast=false"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        said = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        yield said
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.fixture
def page(address: str, chromium: Any) -> Iterator[Any]:
    opened = chromium.new_page(viewport={"width": 1500, "height": 1400}, base_url=address)
    opened.set_default_timeout(120_000)
    yield opened
    opened.close()


def test_numbers_are_drawn_by_what_they_are_of_and_a_roles_are_together(page: Any) -> None:
    page.goto("/#timeseries")
    page.wait_for_selector("text=audit/warnings")
    groups = [one.inner_text() for one in page.query_selector_all(".group-title")]
    assert {"audit", "decay norm gain", "decay linear weight", "decay embedding", "train"} <= set(groups)
    # A line of three audits, each with a warning; the table below a chart has the last number.
    card = page.locator("scalar-card", has_text="audit/warnings").first
    card.locator("svg path, canvas").first.wait_for(state="attached")
    row = card.locator("tb-data-table-content-row").first
    row.wait_for()
    assert row.inner_text().split()[-5:-3] == ["1", "1"], row.inner_text()


def test_findings_are_read_as_text_with_the_code_that_mends_them(page: Any) -> None:
    page.goto("/#text")
    page.wait_for_selector("text=alarm/decays-exempt/text_summary")
    page.wait_for_selector("pre >> text=weightdecay.regroup(optimizer, plan)")
    # Locators look through the shadows in which TensorBoard keeps its parts; a page's text does not.
    assert page.locator("text=step 9").count() >= 1
    assert page.locator("p", has_text="decays-exempt: 4 tensors decay").count() >= 1
    assert page.locator("strong", has_text="warning").count() >= 1
    # Settings are shown as they stand, and are no markup.
    assert page.locator("pre", has_text='name = "[a](b) <b>bold</b>"').count() >= 1
    assert page.locator("pre b").count() == 0
