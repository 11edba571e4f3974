"""Pages in a real Chromium: nothing is loaded, nothing complains, every plot has its data, on a desk and on a phone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.conftest import picture
from weightdecay.reporting.report import report

SIZES = {"desktop": 1200, "phone": 390}

pytestmark = [pytest.mark.browser, pytest.mark.long]


@pytest.fixture(scope="module")
def pages(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a run and one of several."""
    folder = tmp_path_factory.mktemp("pages")
    run = report([trained / "λ30-seed0"], folder / "run.html").out
    return {"run": run, "runs": report([trained], folder / "runs.html").out}


def opened(
    chromium: Any, path: Path, *, width: int = 1200, scheme: str = "light", script: bool = True
) -> tuple[Any, list[str]]:
    """The page, scrolled through once, and what it complained about or asked the network for."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else heard.append(request.url))
    page.goto(path.as_uri())
    if script:
        for place in page.locator(".panel").all():
            place.scroll_into_view_if_needed()
            place.locator(".view[data-rows]").wait_for(timeout=30_000)
    return page, heard


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["run", "runs"])
def test_a_page_is_whole_by_itself(
    chromium: Any, pages: dict[str, Path], name: str, size: str, scheme: str, tmp_path: Path
) -> None:
    page, heard = opened(chromium, pages[name], width=SIZES[size], scheme=scheme)
    assert heard == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]
    shot = tmp_path / f"{name}-{size}-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 30_000  # an empty page has less
    page.context.close()


@pytest.mark.parametrize("name", ["run", "runs"])
def test_every_plot_has_data_and_axes_with_titles_and_units(chromium: Any, pages: dict[str, Path], name: str) -> None:
    page, _ = opened(chromium, pages[name])
    views = page.locator(".view").all()
    assert len(views) > 3
    for view in views:
        assert int(view.get_attribute("data-rows")) > 0
        drawn = view.locator("svg").evaluate("svg => svg.querySelectorAll('.role-mark path, .role-mark line').length")
        assert drawn > 0
        titles = view.locator("svg .role-axis-title text").all_text_contents()
        assert len(titles) == 2
        assert any(re.search(r"\(.+\)$", title) or title in ("step", "gradient norm") for title in titles)
    page.context.close()


def test_a_study_s_pictures_of_every_kind_are_drawn(chromium: Any, study: Callable[..., Path], tmp_path: Path) -> None:
    arm = {"field": "arm", "label": "arm", "type": "nominal"}
    heat = {
        "x": {"field": "λ", "label": "λ", "type": "ordinal"},
        "y": arm | {"type": "ordinal"},
        "low": None,
        "high": None,
    }
    drawn = [picture(id=kind, kind=kind, color=arm) for kind in ("points", "lines", "scatter")]
    drawn.append(picture(id="bars", kind="bars", x=arm))
    drawn.append(picture(id="heat", kind="heatmap", color={"field": "loss", "label": "loss"}, **heat))
    drawn.append(picture(id="panels", facet={"field": "arm"}, rule={"y": 2.5, "label": "</script>"}))
    page, heard = opened(chromium, report([study(pictures=drawn)], tmp_path / "study.html").out)
    assert heard == []
    assert len(page.locator(".view svg").all()) == 5 + 4
    page.context.close()


def test_the_legend_works_with_the_keyboard_alone(chromium: Any, pages: dict[str, Path]) -> None:
    page, heard = opened(chromium, pages["run"])
    button = page.locator("#loss .legend button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    faded = "#loss .view .mark-line path[opacity='0.12'], #loss .view .mark-line path[stroke-opacity='0.12']"
    page.locator(faded).first.wait_for(state="attached", timeout=10_000)
    page.keyboard.press("Enter")
    page.locator(faded).first.wait_for(state="detached", timeout=10_000)
    assert heard == []
    page.context.close()


def test_the_pointer_is_told_the_numbers_under_their_titles(chromium: Any, pages: dict[str, Path]) -> None:
    page, heard = opened(chromium, pages["run"])
    page.locator("#loss .view").scroll_into_view_if_needed()
    box = page.locator("#loss .view").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    page.locator(".tip:not([hidden])").wait_for(timeout=10_000)
    assert "loss (nats a token)" in page.locator(".tip").inner_text()
    assert heard == []
    page.context.close()


def test_without_scripts_and_on_paper_the_plain_pictures_are_shown(chromium: Any, pages: dict[str, Path]) -> None:
    page, heard = opened(chromium, pages["run"], script=False)
    assert all(place.is_visible() for place in page.locator(".static").all())
    assert heard == []
    page.context.close()

    page, _ = opened(chromium, pages["run"])
    assert not page.locator(".static").first.is_visible()
    page.emulate_media(media="print")
    assert all(place.is_visible() for place in page.locator(".static").all())
    assert not page.locator(".view").first.is_visible()
    page.context.close()
