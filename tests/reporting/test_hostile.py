"""Names and texts of runs are data: a page is the same page whatever they hold, and shows them as they are."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.reporting.conftest import copied, picture
from weightdecay.errors import printable
from weightdecay.reporting.drawing import chart, document
from weightdecay.reporting.html import html, in_script
from weightdecay.reporting.markdown import markdown, plain, prose
from weightdecay.reporting.page import Figure, Finding, Page, Section, Table
from weightdecay.reporting.picture import read_picture
from weightdecay.reporting.report import page_of, report
from weightdecay.reporting.svg import converter, standalone

HOSTILE = [
    "</script><script>alert(1)</script><!--",
    "\"><svg onload=alert(1)><img src=x onerror='alert(1)'>",
    "[/red][link=http://a] $\\frac{a}{b}$ {{ 7 * 7 }}{% raw %} ../../../etc/passwd",
    "\x1b[2J\x1b]0;title\x07\u2028\u202ereversed",
    "`](javascript:alert(1)) `",
    "| a | b |\n| --- | --- |\n# title",
    '\\", evil: datum.x || warn(1), "',
    "long " * 60,
    "",
]


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, frozenset[str]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self._script: dict[str, str | None] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, frozenset(name for name, _ in attrs if name != "class")))
        self._script = dict(attrs) if tag in ("script", "style") else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts.append((self._script, data))
            self._script = None
        else:
            self.texts.append(data)


def page_with(text: str) -> Page:
    """A page that says a text everywhere where one can come from outside."""
    axis = {"field": text or "x", "label": text, "unit": text, "type": "nominal", "sort": [text]}
    drawn = picture(
        title=text, subtitle=text, alt=text, x=axis, low=None, high=None, detail="by",
        color={"field": "by", "label": text, "type": "nominal"}, rule={"y": 1.0, "label": text},
        data=[{text or "x": text, "loss": 1.0, "by": text}, {text or "x": "b", "loss": 2.0, "by": "b"}],
    )  # fmt: skip
    figure = Figure(read_picture(drawn, "here"), text)
    table = Table((text, "b"), [(text, text)], caption=text)
    return Page(
        title=text, asked=text, answer=text, made=text, kicker=text, key_figures=[(text, text)],
        findings=[Finding("warning", text, text)], sections=[Section("plots", text, [figure, table])],
    )  # fmt: skip


@pytest.fixture(scope="module")
def harmless() -> Elements:
    return Elements(html(page_with("a word")))


# An empty text has no element of its own, one with backticks a <code>, and a plot as many as fit it.
_VARYING = {
    "p",
    "figcaption",
    "caption",
    "h3",
    "h4",
    "code",
    "g",
    "path",
    "text",
    "tspan",
    "line",
    "defs",
    "clippath",
    "rect",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_has_the_same_elements_whatever_its_texts_are_and_shows_them(text: str, harmless: Elements) -> None:
    found = Elements(html(page_with(text)))
    kept, expected = ([tag for tag in page.tags if tag[0] not in _VARYING] for page in (found, harmless))
    assert kept == expected
    assert {tag for tag, _ in found.tags} - {tag for tag, _ in harmless.tags} <= {"code", "tspan"}
    assert not [name for _, names in found.tags for name in names if name.startswith("on")]
    run = [[code for attributes, code in page.scripts if "type" not in attributes] for page in (found, harmless)]
    assert run[0] == run[1]

    shown = " ".join(" ".join(found.texts).split())
    assert " ".join(printable(text).replace("`", "").split()) in shown
    (spec,) = [json.loads(code) for attributes, code in found.scripts if attributes.get("type") == "application/json"]
    assert spec["data"]["values"][0]["x"] == printable(text)


def test_a_page_lets_run_its_own_scripts_alone_and_loads_nothing(run: Path) -> None:
    text = report([run]).out.read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    for name, kind in (("script-src", "script"), ("style-src", "style")):
        codes = [code.encode() for code in re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)]
        assert rules[name].split() == [
            f"'sha256-{base64.b64encode(hashlib.sha256(c).digest()).decode()}'" for c in codes
        ]
    assert not [tag for tag in Elements(text).tags if {"src", "srcset", "style", "onclick", "onload"} & tag[1]]
    outside = {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert {tag for tag, _ in Elements(text).tags} & outside == {"script"}


@pytest.mark.parametrize("text", HOSTILE[:4])
def test_a_picture_by_itself_has_neither_scripts_nor_addresses(text: str) -> None:
    tree = ElementTree.fromstring(standalone(page_with(text).figures()[0].picture))
    known = {"svg", "g", "path", "text", "line", "rect", "defs", "clipPath", "style", "tspan"}
    for element in tree.iter():
        assert element.tag.rpartition("}")[2] in known
        assert not [name for name in element.attrib if name.startswith("on") or name.endswith("href")]


@given(st.text(max_size=80) | st.sampled_from(HOSTILE))
def test_json_within_a_script_ends_no_script_and_comes_back_whole(text: str) -> None:
    written = in_script({"text": text})
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == {"text": text}


@given(st.text(max_size=60) | st.sampled_from(HOSTILE))
@settings(max_examples=200)
def test_markdown_shows_a_text_as_a_text(text: str) -> None:
    for written in (plain(text), prose(text.replace("`", ""))):
        tokens = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(f"word {written}")
        assert [token.type for token in tokens] in (["paragraph_open", "inline", "paragraph_close"],)
        kinds = {child.type for child in tokens[1].children or ()}
        assert kinds <= {"text", "text_special", "softbreak"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_in_markdown_has_the_same_blocks_whatever_its_texts_are(text: str) -> None:
    def blocks(content: str) -> list[str]:
        page = markdown(page_with(content), lambda picture: f"pictures/{picture.id}.svg")
        return [token.type for token in MarkdownIt("commonmark").enable("table").parse(page)]

    if text.strip():
        assert blocks(text) == blocks("a word")
    assert "html_block" not in blocks(text)


def test_runs_and_studies_with_hostile_names_have_their_page(
    trained: Path, tmp_path: Path, study: Callable[..., Path]
) -> None:
    name = "<script>alert(1)<∕script>[/red]$\\frac{ \x1b[2J" + "x" * 150
    runs = [copied(trained / "λ0-seed0", tmp_path / name), copied(trained / "λ30-seed0", tmp_path / "b")]
    settings = (runs[0] / "run.toml").read_text()
    (runs[0] / "run.toml").write_text(settings.replace('rule = "decoupled"', 'rule = "</script><b>"'))
    text = report(runs, tmp_path / "page.html").out.read_text()
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "<b>" not in text

    folder = study({"question": "</title><script>alert(1)</script>", "study": "<b>"}, answer="<img src=x onerror=y>")
    page = html(page_of([folder]))
    assert "<img src=x" not in page
    assert "<script>alert" not in page


def expressions(value: object) -> list[str]:
    """What Vega evaluates, anywhere in its document."""
    if isinstance(value, list):
        return [found for item in value for found in expressions(item)]
    if not isinstance(value, dict):
        return []
    own = [
        item
        for key, item in value.items()
        if key in ("signal", "expr", "test", "update", "init") and isinstance(item, str)
    ]
    return own + [found for item in value.values() for found in expressions(item)]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_a_part_of_what_vega_evaluates(text: str) -> None:
    def compiled(content: str) -> list[str]:
        found = page_with(content).figures()[0].picture
        return expressions(converter().vegalite_to_vega(document(chart(found, interactive=True), found.alt)))

    assert compiled("a word") == compiled(text or " ")
    assert len(compiled("a word")) > 5
