"""Pictures: every kind is drawn, with its records, titles and units; numbers, intervals and colours are right."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.reporting.conftest import picture
from weightdecay.errors import DamagedError
from weightdecay.reporting.comparing import mean_interval
from weightdecay.reporting.drawing import chart, document
from weightdecay.reporting.numbers import numbers_of
from weightdecay.reporting.palette import DARK, LIGHT, SERIES, color, fixed
from weightdecay.reporting.picture import Picture, read_picture, safe_id, span
from weightdecay.reporting.run_pictures import thinned
from weightdecay.reporting.svg import inline, standalone

KINDS = ("points", "lines", "bars", "heatmap", "scatter")
ARM: dict[str, Any] = {"field": "arm", "label": "arm", "type": "nominal"}


def drawn(kind: str, **changes: Any) -> Picture:
    more: dict[str, Any] = {}
    if kind == "heatmap":
        more = {
            "x": {"field": "λ", "label": "λ", "type": "ordinal"},
            "y": {"field": "arm", "label": "arm", "type": "ordinal"},
            "color": {"field": "loss", "label": "loss", "unit": "nats"},
            "low": None,
            "high": None,
        }
    return read_picture(picture(kind=kind, **(more | changes)), "here")


def records_in(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that a chart draws; its rule has its own."""
    found: list[dict[str, Any]] = document["data"].get("values") or document["datasets"][document["data"]["name"]]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_with_its_records_and_the_titles_of_its_axes(kind: str) -> None:
    found = drawn(kind, **({} if kind == "heatmap" else {"color": ARM}))
    for interactive in (True, False):
        assert len(records_in(document(chart(found, interactive=interactive), found.alt))) == 4
    svg = inline(found, [found], "place")
    assert found.x.title in svg
    assert found.y.title in svg


@pytest.mark.parametrize("kind", ["points", "heatmap"])
def test_pictures_are_drawn_in_panels_that_share_their_axes(kind: str) -> None:
    found = drawn(kind, facet={"field": "arm", "label": "arm"})
    panels = found.panels()
    assert [name for name, _ in panels] == ["λ = 0", "λ = 1", "λ = 3", "λ = 10"]
    among = [panel for _, panel in panels]
    scales = {str(document(chart(panel, among), "")["layer"][0]["encoding"]["y"]["scale"]) for panel in among}
    assert len(scales) == 1
    assert all(name in standalone(found) for name, _ in panels)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_none_have_no_place_and_stop_no_picture(kind: str) -> None:
    data = [{"λ": λ, "loss": loss, "arm": "a", "low": None, "high": None} for λ, loss in
            ((0, 1.0), (1, None), (3, math.inf), (10, "text"), (30, True))]  # fmt: skip
    found = drawn(kind, data=data)
    made = records_in(document(chart(found), ""))
    assert len(made) == (5 if kind == "heatmap" else 1)
    assert len(drawn(kind, data=[]).records()) == 0
    assert "<svg" in standalone(drawn(kind, data=[]))


def test_a_logarithm_has_no_place_for_zero_and_takes_one_that_has() -> None:
    x = {"field": "λ", "label": "λ", "scale": "log"}
    assert document(chart(drawn("points", x=x)), "")["layer"][0]["encoding"]["x"]["scale"]["type"] == "symlog"


def test_bars_begin_at_zero_and_values_that_bars_would_not_tell_apart_are_dots() -> None:
    nominal = {"field": "arm", "label": "arm", "type": "nominal"}
    alike = [{"arm": name, "loss": loss, "low": loss, "high": loss} for name, loss in (("a", 2.0), ("b", 2.1))]
    apart = [{"arm": name, "loss": loss, "low": loss, "high": loss} for name, loss in (("a", 0.2), ("b", 2.1))]
    marks = [
        {layer["mark"]["type"] for layer in document(chart(drawn("bars", x=nominal, data=data)), "")["layer"]}
        for data in (alike, apart)
    ]
    assert "bar" not in marks[0]
    assert "bar" in marks[1]


def test_the_names_within_a_page_s_pictures_are_apart() -> None:
    found = drawn("lines")
    ids = [set(re.findall(r'id="(\S+?)"', inline(found, [found], name))) for name in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_picture_of_no_known_form_is_refused_with_all_that_is_wrong() -> None:
    with pytest.raises(DamagedError) as raised:
        read_picture({"id": "x", "kind": "pie"}, "results.json: pictures[3]")
    told = str(raised.value)
    assert "results.json: pictures[3]" in told
    assert all(word in told for word in ("kind", "title", "data"))


@given(st.text(max_size=100))
def test_an_id_is_fit_for_files_and_anchors(text: str) -> None:
    assert set(safe_id(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 0 < len(safe_id(text)) <= 60


# --- numbers


rows = st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=700)


@given(rows)
def test_thinned_rows_keep_the_first_the_last_and_every_extreme(values: list[float | None]) -> None:
    known = [(step, value) for step, value in enumerate(values) if value is not None]
    found = thinned([{"step": step, "loss": value} for step, value in enumerate(values)], "loss", most=50)
    assert len(found) <= 50
    if known:
        assert (found[0]["loss"], found[-1]["loss"]) == (known[0][1], known[-1][1])
        assert found[-1]["step"] == known[-1][0]
        assert min(row["low"] for row in found) == min(value for _, value in known)
        assert max(row["high"] for row in found) == max(value for _, value in known)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9, unique=True))
def test_an_interval_is_that_of_the_paired_t_test(values: list[float]) -> None:
    mean, interval = mean_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert interval is not None
    assert interval == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    assert interval[0] <= mean <= interval[1]


def test_the_numbers_of_a_picture_are_a_table_that_says_when_rows_are_left_out() -> None:
    table, left_out = numbers_of(drawn("points"))
    assert list(table.columns) == ["weight decay λ", "held-out loss (bits per byte)", "from", "to"]
    assert len(table.rows) == 4
    assert not left_out
    many = [{"λ": n, "loss": 1.0 + n, "low": None, "high": None} for n in range(1000)]
    table, left_out = numbers_of(drawn("points", data=many))
    assert left_out
    assert table.rows[-1][0] == "999"
    assert "of 1,000 rows" in table.caption


def test_the_span_of_a_picture_holds_its_intervals() -> None:
    assert span([drawn("points")], "y") == (1.9, 2.6)


# --- colours


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_and_lines_stand_out_from_their_paper(colors: dict[str, str]) -> None:
    for paper in ("paper", "panel"):
        for text in ("ink", "quiet", "blue"):
            assert contrast(colors[text], colors[paper]) >= 4.5, (text, paper)
        for line in SERIES:
            assert contrast(colors[line], colors[paper]) >= 3, (line, paper)


def test_a_picture_by_itself_names_light_colours_and_has_a_style_for_the_dark() -> None:
    plain, dark = fixed(f'<path stroke="{color("blue")}" fill="{color("ink")}"/>')
    assert plain == f'<path stroke="{LIGHT["blue"]}" fill="{LIGHT["ink"]}"/>'
    assert f'[stroke="{LIGHT["blue"]}"] {{ stroke: {DARK["blue"]}; }}' in dark
    assert "var(" not in standalone(drawn("lines"))
