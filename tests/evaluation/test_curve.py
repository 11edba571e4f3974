from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.evaluation.curve import _ticks, loss_curve, write_loss_curve
from weightdecay.runs import MetricsWriter, Run

SVG = "{http://www.w3.org/2000/svg}"
losses = st.lists(st.floats(0, 100), min_size=1, max_size=40)


def points(of: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    line = next(each for each in of.iter(f"{SVG}polyline") if each.get("class") == name)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in (line.get("points") or "").split())]


@given(training=losses, held_out=losses)
def test_every_point_is_inside_in_order_and_higher_for_a_higher_loss(
    training: list[float], held_out: list[float]
) -> None:
    picture = ElementTree.fromstring(loss_curve(list(enumerate(training, 1)), list(enumerate(held_out, 1)), "a run"))
    seen = points(picture, "train") + points(picture, "held-out")
    assert len(seen) == len(training) + len(held_out)
    assert all(0 <= x <= 720 and 0 <= y <= 360 for x, y in seen)
    for line, values in ((points(picture, "train"), training), (points(picture, "held-out"), held_out)):
        assert [x for x, _ in line] == sorted(x for x, _ in line)
        for (_, y), (_, other_y), loss, other in zip(line, line[1:], values, values[1:], strict=False):
            assert (y >= other_y) if loss < other else (y <= other_y)


def test_many_points_become_means_and_the_last_stays() -> None:
    training = [(step, 5.0 - step / 4_000) for step in range(1, 10_001)]
    picture = ElementTree.fromstring(loss_curve(training, [], "long"))
    line = points(picture, "train")
    assert len(line) <= 1_202
    assert line[-1][0] == max(x for x, _ in line)
    assert "training 2.500" in "".join(picture.itertext())


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_ticks_are_a_few_round_numbers_within(low: float, width: float) -> None:
    ticks = _ticks(low, low + width)
    assert len(ticks) <= 6
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


@pytest.mark.parametrize("title", ["<script>", 'a "run" & more', "\x1b[31m\x00", "λ"])
def test_a_runs_name_is_text_whatever_it_holds(title: str) -> None:
    text = loss_curve([(1, 2.0)], [], title)
    assert "\x1b" not in text
    assert "prefers-color-scheme: dark" in text
    assert not list(ElementTree.fromstring(text).iter(f"{SVG}script"))


def test_a_run_without_a_step_has_no_picture_and_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert write_loss_curve(run) is None
    assert list(tmp_path.iterdir()) == []
    with MetricsWriter(run) as metrics:
        for step, loss in enumerate((3.0, math.nan, 2.0), 1):
            metrics.write({"kind": "train", "step": step, "loss": loss})
    assert write_loss_curve(run) == tmp_path / "loss.svg"
    assert len(points(ElementTree.fromstring((tmp_path / "loss.svg").read_text()), "train")) == 2
