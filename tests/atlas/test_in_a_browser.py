"""The atlas in a real headless Chromium, from disk: search, a dropped config.json, no network, no complaint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_atlas
import pytest

DESK, PHONE = 1200, 390

pytestmark = [pytest.mark.browser, pytest.mark.long]


class Visit:
    """A page of the atlas, and all that it said or asked for."""

    def __init__(self, browser: Any, fragment: str = "", width: int = DESK, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(make_atlas.PAGE.as_uri() + fragment)
        self.page.wait_for_selector("table[data-whole], #tensors", state="attached")

    def search(self, text: str) -> list[str]:
        self.page.fill("#search", text)
        self.page.wait_for_selector("table[data-whole], #nothing")
        return [link.inner_text() for link in self.page.query_selector_all(".list tbody a")]

    def drop(self, text: str, name: str = "config.json") -> str:
        """Drop a file on the page, as a mouse does, and what is said then."""
        transfer = self.page.evaluate_handle(
            "([text, name]) => { const t = new DataTransfer(); t.items.add(new File([text], name)); return t; }",
            [text, name],
        )
        self.page.dispatch_event("main", "drop", {"dataTransfer": transfer})
        # Not wait_for_function, which asks again by eval, and that the page's own policy forbids.
        self.page.wait_for_selector("#message:not(:empty)")
        return str(self.page.inner_text("#message"))

    @property
    def heading(self) -> str:
        found = self.page.query_selector("h2")
        return str(found.inner_text()) if found else ""

    def wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@pytest.fixture
def visit(chromium: Any) -> Iterator[Any]:
    """Opens the atlas; in the end nothing may have been complained of or asked of a network."""
    visits: list[Visit] = []

    def opened(*arguments: Any, **named: Any) -> Visit:
        visits.append(Visit(chromium, *arguments, **named))
        return visits[-1]

    yield opened
    for one in visits:
        assert one.complaints == []
        assert [url for url in one.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        one.page.context.close()


def test_all_architectures_are_listed_and_a_search_finds_names_and_tensors(visit: Any) -> None:
    atlas = visit()
    assert len(atlas.search("")) == len(make_atlas.read_data()["architectures"])
    assert atlas.search("mambaforc")[0] == "MambaForCausalLM"
    assert "MambaForCausalLM" in atlas.search("A_log")
    assert "GptOssForCausalLM" in atlas.search("sinks")
    assert atlas.search("no such thing") == []
    atlas.search("gptossforcausal")
    atlas.page.press("#search", "Enter")
    atlas.page.wait_for_selector("#tensors", state="attached")
    assert atlas.heading == "GptOssForCausalLM"
    atlas.page.go_back()
    atlas.page.wait_for_selector("#count")


def test_an_architecture_shows_what_a_policy_decays_wrongly_and_the_tensors_story(visit: Any) -> None:
    atlas = visit("#MambaForCausalLM")
    atlas.page.click(".card:has(strong:text-is('transformers'))")
    shown = [one.get_attribute("data-pattern") for one in atlas.page.query_selector_all("details")]
    assert any(str(pattern).endswith("mixer.A_log") for pattern in shown)
    assert any(str(pattern).endswith("norm_f.weight") for pattern in shown)
    atlas.page.click("details[data-pattern$='A_log'] summary")
    story = atlas.page.inner_text("details[data-pattern$='A_log'] .story")
    assert "time constants" in story
    assert "transformers@5.23" in story
    link = atlas.page.get_attribute("details[data-pattern$='A_log'] .story a", "href")
    there = visit(link)
    assert there.heading == "MambaForCausalLM"
    assert there.page.query_selector("details[open][data-pattern$='A_log'] .story") is not None
    atlas.page.click(".card:has(strong:text-is('all tensors'))")
    assert len(atlas.page.query_selector_all("details")) > len(shown)


def test_a_dropped_configuration_lands_at_its_architecture(visit: Any) -> None:
    atlas = visit()
    assert "as config.json says" in atlas.drop(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert atlas.heading == "LlamaForCausalLM"
    said = atlas.drop(json.dumps({"architectures": ["BertForMaskedLM"], "model_type": "bert"}))
    assert "same model type bert" in said
    assert atlas.heading.startswith("Bert")
    atlas.page.go_back()
    assert atlas.heading == "LlamaForCausalLM"
    assert atlas.page.inner_text("#message") == "", "what was said of a file is not said of another page"


def test_a_configuration_is_opened_by_its_button_too(visit: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "mamba"}), encoding="utf-8")
    atlas = visit()
    atlas.page.set_input_files("#file", str(file))
    atlas.page.wait_for_selector("#tensors", state="attached")
    assert atlas.heading.startswith("Mamba")


@pytest.mark.parametrize("text", ["{", "[1]", "null", "{}", '{"architectures": ["<img src=x onerror=alert(1)>"]}',
                                  '{"architectures": 7, "model_type": {"a": 1}}'])  # fmt: skip
def test_what_is_no_known_configuration_is_told_and_changes_nothing(visit: Any, text: str) -> None:
    atlas = visit("#LlamaForCausalLM")
    said = atlas.drop(text)
    assert said
    assert atlas.heading == "LlamaForCausalLM"
    assert atlas.page.query_selector("img") is None


def test_an_unknown_place_shows_the_list_and_says_so(visit: Any) -> None:
    atlas = visit("#NoSuchModel/%E0%A4%A")
    assert "NoSuchModel" in atlas.page.inner_text("#message")
    assert len(atlas.search("")) > 500


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("fragment", ["", "#GptOssForCausalLM"])
def test_it_fits_a_desk_and_a_phone_in_light_and_dark(visit: Any, fragment: str, width: int, scheme: str) -> None:
    atlas = visit(fragment, width=width, scheme=scheme)
    if fragment:
        atlas.page.click("details summary")
    assert not atlas.wide()
    ground = atlas.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
