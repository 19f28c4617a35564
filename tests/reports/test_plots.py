"""Drawings are well-formed, in proportion to their numbers, and survive what a training can produce."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from vitrail.evaluation.intervals import UNDEFINED, Estimate
from vitrail.evaluation.metrics import classification_metrics
from vitrail.reports import plots
from vitrail.reports.content import EpochRow


def elements(drawing, tag, style=None):
    root = ElementTree.fromstring(drawing)
    return [each for each in root.iter(tag) if style is None or style in each.get("class", "").split()]


def confusion_of(matrix, names=None):
    pairs = [(true, answer) for true, row in enumerate(matrix) for answer, n in enumerate(row) for _ in range(n)]
    labels, answers = map(list, zip(*pairs, strict=True))
    names = names or tuple(f"c{index}" for index in range(len(matrix)))
    return classification_metrics(np.eye(len(matrix))[answers], labels, names)


def test_the_confusion_matrix_has_one_cell_for_each_kind_of_answer():
    drawing = plots.confusion_matrix(confusion_of([[8, 2, 0], [0, 5, 0], [1, 0, 4]]))
    right, wrong = elements(drawing, "rect", "cell-right"), elements(drawing, "rect", "cell-wrong")
    assert (len(right), len(wrong)) == (3, 2)
    assert [each.text for each in elements(drawing, "text", "count")] == ["8", "2", "5", "1", "4"]
    # Row 2, column 0: below the diagonal, in the first column.
    assert float(wrong[1].get("x")) == float(right[0].get("x"))
    assert float(wrong[1].get("y")) == float(right[2].get("y"))
    assert float(right[1].get("fill-opacity")) > float(right[0].get("fill-opacity"))
    titles = [each.text for each in elements(drawing, "title")]
    assert any(each.startswith("2 of 10 “c0” answered “c1”: 20.0\u202f% [5.7") for each in titles)


def test_names_in_drawings_are_text():
    drawing = plots.confusion_matrix(confusion_of([[1, 1], [0, 2]], ("<script>", 'a"&b')))
    assert elements(drawing, "script") == []
    assert "<script>" in [each.text for each in elements(drawing, "text", "row-label")]


def test_a_matrix_of_too_many_classes_is_not_drawn():
    assert plots.confusion_matrix(confusion_of(np.eye(plots.MAX_MATRIX_CLASSES, dtype=int))) is not None
    assert plots.confusion_matrix(confusion_of(np.eye(plots.MAX_MATRIX_CLASSES + 1, dtype=int))) is None


def rows(*losses):
    return [EpochRow(epoch=epoch, train_loss=loss) for epoch, loss in enumerate(losses, 1)]


def test_charts_are_drawn_for_what_was_measured():
    history = [EpochRow(epoch=e, train_loss=1 / e, val_loss=2 / e, val_accuracy=0.5, lr=0.1) for e in (1, 2, 3)]
    charts = dict(plots.curve_charts(history, 2, 50))
    assert list(charts) == ["Loss", "Validation accuracy", "Learning rate"]
    assert len(elements(charts["Loss"], "polyline")) == 2
    assert len(elements(charts["Validation accuracy"], "polygon", "band")) == 1
    assert len(elements(charts["Loss"], "line", "mark")) == 1
    assert [title for title, _ in plots.curve_charts(rows(3.0, 2.0), None, None)] == ["Loss"]
    assert plots.curve_charts([], None, None) == []
    assert plots.curve_charts(rows(1.0), None, None) == []


def test_lower_values_lie_lower_and_later_epochs_to_the_right():
    (_, drawing), *_ = plots.curve_charts(rows(4.0, 2.0, 1.0), None, None)
    points = [tuple(map(float, pair.split(","))) for pair in elements(drawing, "polyline")[0].get("points").split()]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x1 < x2 < x3
    assert y1 < y2 < y3  # SVG counts downwards
    assert (y2 - y1) / (y3 - y2) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_what_is_not_a_number_leaves_a_gap(broken):
    (_, drawing), *_ = plots.curve_charts(rows(3.0, 2.5, broken, 1.0), None, None)
    assert len(elements(drawing, "polyline")) == 1
    assert len(elements(drawing, "circle")) == 1  # the lone point behind the gap
    assert "nan" not in drawing
    assert "inf" not in drawing


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.3, 0.301), (1e-5, 3e-3), (2.0, 2.0), (0.0, 0.0), (-1, 1e6), (1, 60), (1e-30, 2e-30)]
)
def test_ticks_are_few_even_and_enclose_the_values(low, high):
    ticks = plots.nice_ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= high * (1 - 1e-9)
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
    assert len({plots.tick_label(tick, ticks, "plain") for tick in ticks}) == len(ticks)


def test_ticks_of_an_accuracy_end_at_one():
    assert plots.nice_ticks(0.981, 0.999, ceiling=1.0)[-1] == 1.0
    assert len(plots.nice_ticks(1.0, 1.0, ceiling=1.0)) >= 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9861, "98.6"), (1.0, "100"), (0.99999, "> 99.9"), (0.00001, "< 0.1"), (0.0, "0"), (0.5, "50.0")],
)
def test_only_what_is_exact_is_called_all_or_nothing(value, text):
    assert plots.percent(value) == f"{text}\u202f%"


def test_what_is_undefined_is_a_dash_and_has_no_bar():
    assert plots.percent(None) == "–"  # noqa: RUF001
    assert plots.interval_bar(UNDEFINED) == ""


def test_the_bar_is_in_proportion_and_clipped_at_its_floor():
    bar = plots.interval_bar(Estimate(0.75, 0.25, 1.0), floor=0.5)
    interval = elements(bar, "line", "bar-interval")[0]
    assert (interval.get("x1"), interval.get("x2")) == ("3.0", "97.0")
    assert elements(bar, "circle")[0].get("cx") == "50.0"


@pytest.mark.parametrize("text", ["", "short", "x" * 18, "a" * 500, "苹果" * 40])
def test_shortened_names_fit_and_keep_both_ends(text):
    short = plots.shorten(text, 18)
    assert len(short) <= 18
    assert (short[:1], short[-1:]) == (text[:1], text[-1:])


def test_the_reliability_diagram_has_a_dot_for_each_filled_bin():
    metrics = confusion_of([[8, 2], [0, 10]])
    filled = [each for each in metrics.reliability if each.count]
    drawing = plots.reliability_chart(metrics.reliability)
    assert len(elements(drawing, "circle")) == len(filled)
    ideal = elements(drawing, "line", "ideal")[0]
    assert float(ideal.get("y1")) > float(ideal.get("y2"))  # SVG counts downwards: the line rises
    assert float(ideal.get("x1")) < float(ideal.get("x2"))


def test_each_seed_has_its_own_glass():
    assert plots.stained_glass(1) == plots.stained_glass(1)
    assert plots.stained_glass(1) != plots.stained_glass(2)
    assert len(plots.stained_glass(1)) < 30_000
