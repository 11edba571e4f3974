"""The site of the documentation in a real browser: no fault on its console, and a search that finds a function."""

from __future__ import annotations

import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [f"{name}.html" for name in ("index", "plan", "training", "recipes", "settings", "log", "api/planning")]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of a site that is built now."""
    if importlib.util.find_spec("zensical") is None:
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)("no zensical here: make docs installs it")
    built = subprocess.run([sys.executable, "docs/make_site.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    folder = str(ROOT / "build" / "docs" / "html")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page whose faults are gathered in `page.faults`."""
    page = chromium.new_page(viewport=DESKTOP)
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    page.close()


@pytest.mark.long
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_fault_and_within_its_width(
    name: str, size: dict[str, int], site: str, page: Any
) -> None:
    page.set_viewport_size(size)
    answer = page.goto(f"{site}{name}", wait_until="networkidle")
    assert answer.status == 200
    assert page.faults == []
    assert page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


@pytest.mark.long
def test_a_search_finds_a_function_of_the_library(site: str, page: Any) -> None:
    page.goto(site, wait_until="networkidle")
    page.keyboard.press("/")
    page.keyboard.type("param_groups", delay=20)
    page.get_by_text("param_groups").first.wait_for(timeout=15_000)
    found = page.eval_on_selector_all("a", "links => links.map(link => link.href)")
    assert any(link.startswith(f"{site}api/planning.html") and link.endswith(".param_groups") for link in found)
    assert page.faults == []
