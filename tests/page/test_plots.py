"""Plots are drawings of numbers: every model is in them, axes begin at zero, names stay words."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from app.live.view import ModelView, Sample, View
from app.page.plots import Line, ceiling, figure, number, plots, seconds, ticks

OWN = ModelView("Vamba (x)", "cpu", samples=(Sample(1.0, 20.0, 1_000, 2_000_000), Sample(9.0, 30.0, 1_000, 4_000_000)))
RIVAL = ModelView("Twin", "cpu", first_tokens=((4.0, 0.5),))


def test_both_models_are_drawn_and_said():
    drawn = plots(View(comparing=True, models=(OWN, RIVAL)))
    root = ElementTree.fromstring(drawn)
    said = [svg.get("aria-label") for svg in root.iter("svg")]
    assert said[0] == "Time per frame: Vamba 30 ms at 0:09; Twin nothing yet"
    assert said[2] == "First word of an answer after: Vamba nothing yet; Twin 0.5 s at 0:04"
    assert len(list(root.iter("polyline"))) == 2 and len(list(root.iter("circle"))) == 1


def test_nothing_is_drawn_of_one_model():
    assert plots(View(models=(OWN,))) == ""


def test_a_larger_value_is_drawn_higher_and_every_point_lies_within():
    svg = ElementTree.fromstring(figure("t", "s", [Line("a", ((0.0, 0.0), (3_600.0, 5.0), (7_200.0, 2.5)))])).find(
        "svg"
    )
    points = [tuple(map(float, pair.split(","))) for pair in svg.find("polyline").get("points").split()]
    width, height = map(float, svg.get("viewBox").split()[2:])
    assert points[1][1] < points[2][1] < points[0][1] and points[0][0] < points[1][0] < points[2][0]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


@pytest.mark.parametrize("words", ["<img src=x>", '" onload="x', "</svg><script>"])
def test_names_are_never_markup(words):
    drawn = figure("t", "s", [Line(words, ((1.0, 1.0),))])
    assert not re.search(r"<img|<script|[^;]\" onload", drawn.replace("&quot;", ";"))
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize("end", [1e-4, 0.05, 1.0, 9.9, 82.0, 3_599.0, 7_200.0, 36_000.0])
def test_ticks_are_few_round_and_begin_at_zero(end):
    for marks in (ticks(end), seconds(end)):
        assert marks[0] == 0 and marks[-1] <= end and len(marks) <= 7
    assert len(ticks(end)) >= 2 and ceiling([]) == 1.0


def test_numbers_have_no_exponents():
    values = (0, 2e-5, 0.125, 12.5, 1_500, 12_345, 5e6)
    assert [number(value) for value in values] == ["0", "0.00002", "0.125", "12.5", "1,500", "12,300", "5,000,000"]
    drawn = figure("Time per frame", "ms", [Line("a", ((0.0, 900.0), (9.0, 1_500.0)))])
    assert ">1,500<" in drawn and "1,500 ms at 0:09" in drawn and "e+" not in drawn
