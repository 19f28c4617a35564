"""The drawings of a report, as SVG written by hand: small, sharp, and coloured by the page's own style sheet.

Colours are CSS classes, so that one drawing serves light and dark pages. Text goes through `Markup.format`, which
escapes it: class names come from folders that anybody may have named.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup

from vitrail.evaluation.calibration import ReliabilityBin
from vitrail.evaluation.intervals import Estimate, proportion
from vitrail.evaluation.metrics import ConfusionCell, Metrics
from vitrail.reports.content import EpochRow

MAX_MATRIX_CLASSES: Final = 120
"""With more classes a confusion matrix is a grey square that nobody can read."""

_WIDTH, _HEIGHT = 330, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 12, 26

# Larger matrices show shades alone, with the numbers in their tooltips.
_MAX_NUMBERED_CLASSES = 20
_LABEL_CHARACTERS = 18
_TOOLTIP_CHARACTERS = 60
_CHARACTER_PX = 6.4
# Above this strength of a cell its number is written in the colour of the paper.
_STRONG = 0.55

_GLASS_COLOURS = 7


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    style: str
    """Name of a colour class: "c1" to "c3"."""
    x: Sequence[float]
    y: Sequence[float | None]
    band: Sequence[Estimate] | None = None
    """Interval of each point, drawn as a band."""


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as "98.6 %"; "0 %" and "100 %" only where that is exact, and a dash where it is undefined."""
    if value is None:
        return "\u2013"
    if value in {0.0, 1.0}:
        return f"{100 * value:.0f}\u202f%"
    shown = f"{100 * value:.{digits}f}"
    smallest = 10.0**-digits
    if float(shown) == 0:
        return f"< {smallest:g}\u202f%"
    if float(shown) == 100:
        return f"> {100 - smallest:g}\u202f%"
    return f"{shown}\u202f%"


def shorten(text: str, limit: int) -> str:
    """Return ``text`` with its middle left out if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def curve_charts(history: Sequence[EpochRow], best_epoch: int | None, num_val: int | None) -> list[tuple[str, Markup]]:
    """Return the charts of a training, each with its title: loss, validation accuracy or mAP, learning rate.

    Args:
        history: the epochs; quantities that were never measured, and a single epoch, get no chart.
        best_epoch: marked by a vertical line.
        num_val: validation images, from which the band of the accuracy is computed; None for no band.
    """
    epochs = [row.epoch for row in history]
    train, val = [row.train_loss for row in history], [row.val_loss for row in history]
    accuracy, rate = [row.val_accuracy for row in history], [row.lr for row in history]
    band = None
    if num_val:
        band = [proportion(round((each or 0) * num_val), num_val) for each in accuracy]
    quality = ("Validation accuracy", [Series("accuracy", "c2", epochs, accuracy, band)], "percent")
    if any(row.val_map is not None for row in history):
        precision = Series("mean average precision", "c2", epochs, [row.val_map for row in history])
        quality = ("Validation mAP", [precision], "percent")
    charts = [
        ("Loss", [Series("training", "c1", epochs, train), Series("validation", "c2", epochs, val)], "plain"),
        quality,
        ("Learning rate", [Series("learning rate", "c3", epochs, rate)], "plain"),
    ]
    drawn = []
    for title, series, unit in charts:
        measured = [each for each in series if any(_is_number(value) for value in each.y)]
        if measured and len(epochs) > 1:
            drawn.append((title, line_chart(title, measured, unit=unit, mark=best_epoch)))
    return drawn


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "plain",
    mark: float | None = None,
    x_labels: Mapping[float, str] | None = None,
) -> Markup:
    """Return a chart of lines over epochs; points without a finite value are gaps.

    Args:
        title: what it shows, for those who listen to the page.
        series: at least one line with at least one finite value.
        unit: "plain" or "percent".
        mark: x of a vertical line.
        x_labels: what stands below the chart, by its x. Default: round numbers of epochs.
    """
    xs = [x for each in series for x in each.x]
    low_x, high_x = min(xs), max(xs)
    values = [float(y) for each in series for y in each.y if y is not None and _is_number(y)]
    ticks = nice_ticks(min(values), max(values), ceiling=1.0 if unit == "percent" else None)
    low_y, high_y = ticks[0], ticks[-1]

    def place_x(x: float) -> float:
        span = high_x - low_x
        share = (x - low_x) / span if span else 0.5
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def place_y(y: float) -> float:
        share = (min(max(y, low_y), high_y) - low_y) / (high_y - low_y)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [_grid_line(place_y(tick), tick_label(tick, ticks, unit)) for tick in ticks]
    if x_labels is None:
        epoch_ticks = {round(tick) for tick in nice_ticks(low_x, high_x) if low_x <= tick <= high_x} | {round(low_x)}
        x_labels = {tick: str(tick) for tick in sorted(epoch_ticks)}
    parts += [_x_label(place_x(x), text) for x, text in x_labels.items()]
    if mark is not None and low_x <= mark <= high_x:
        line = '<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
        parts.append(Markup(line).format(place_x(mark), _TOP, _HEIGHT - _BOTTOM))
    for each in series:
        points = [
            (place_x(x), place_y(y)) if y is not None and _is_number(y) else None
            for x, y in zip(each.x, each.y, strict=True)
        ]
        if each.band is not None:
            parts.append(_band(each, [place_x(x) for x in each.x], place_y))
        parts.append(_line(each, points))
    return _svg(_WIDTH, _HEIGHT, title, parts, style="chart")


def nice_ticks(low: float, high: float, *, ceiling: float | None = None) -> list[float]:
    """Return three to seven round numbers that enclose ``low`` and ``high``, the last at most ``ceiling``."""
    if high - low < 1e-12 * max(abs(high), 1e-3):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [float(f"{index * step:.10g}") for index in range(first, last + 1)]
    return ticks if ceiling is None else [tick for tick in ticks if tick <= ceiling + 1e-9]


def tick_label(value: float, ticks: Sequence[float], unit: str) -> str:
    """Return the text of one tick, with as many digits as its neighbours need."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    if unit == "percent":
        return f"{100 * value:.{max(0, -math.floor(math.log10(100 * step) + 1e-9))}f}\u202f%"
    if value == 0:
        return "0"
    if max(abs(tick) for tick in ticks) < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.10g}"


def confusion_matrix(metrics: Metrics) -> Markup | None:
    """Return the confusion matrix, rows the true classes; None for more than `MAX_MATRIX_CLASSES` of them.

    Right answers and errors differ in hue (blue and orange, which colour-blind people tell apart), and their share of
    the row sets the strength. Each cell's tooltip has the count, the share and its interval.
    """
    names = [each.name for each in metrics.classes]
    if len(names) > MAX_MATRIX_CLASSES:
        return None
    numbered = len(names) <= _MAX_NUMBERED_CLASSES
    size = min(max(300 / len(names), 26), 56) if numbered else max(640 / len(names), 8)
    font = 11 if numbered else min(max(size, 6.5), 10)
    margin = 22 + max(len(shorten(name, _LABEL_CHARACTERS)) for name in names) * _CHARACTER_PX * font / 11
    side = size * len(names)
    parts = [
        Markup('<rect class="cell-empty" x="{0:.1f}" y="{0:.1f}" width="{1:.1f}" height="{1:.1f}"/>').format(
            margin, side
        ),
        Markup('<text class="axis-title" x="{:.1f}" y="11">answered</text>').format(margin + side / 2),
        Markup('<text class="axis-title" transform="translate(11 {:.1f}) rotate(-90)">true</text>').format(
            margin + side / 2
        ),
    ]
    for index, name in enumerate(names):
        parts += _matrix_labels(name, margin + (index + 0.5) * size, margin - 6, font)
    for cell in metrics.confusion_cells():
        parts.append(_matrix_cell(metrics, cell, margin, size, numbered=numbered))
    return _svg(margin + side + 2, margin + side + 2, "Confusion matrix", parts, style="matrix", fixed=True)


def _matrix_labels(name: str, middle: float, edge: float, font: float) -> list[Markup]:
    """Return a class's name at the head of its row and, turned, at that of its column."""
    places = (
        ("row-label", f"translate({edge:.1f} {middle:.1f})"),
        ("column-label", f"translate({middle:.1f} {edge:.1f}) rotate(-90)"),
    )
    text = Markup('<text class="{}" style="font-size:{:.1f}px" transform="{}" dy="0.35em">{}<title>{}</title></text>')
    return [text.format(style, font, place, shorten(name, _LABEL_CHARACTERS), name) for style, place in places]


def _matrix_cell(metrics: Metrics, cell: ConfusionCell, margin: float, size: float, *, numbered: bool) -> Markup:
    rate, right = cell.rate.value or 0.0, cell.true == cell.predicted
    # Rare errors must stay visible, hence the root and the floor.
    strength = max(rate, 0.12) if right else min(1.0, 0.25 + 0.75 * math.sqrt(rate))
    x, y = margin + cell.predicted * size, margin + cell.true * size
    support = metrics.classes[cell.true].support
    true, answer = (shorten(metrics.classes[index].name, _TOOLTIP_CHARACTERS) for index in (cell.true, cell.predicted))
    tooltip = (
        f"{cell.count} of {support} “{true}” answered “{answer}”: "
        f"{percent(rate)} [{percent(cell.rate.low)}, {percent(cell.rate.high)}]"
    )
    shape = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"/>'
    style = "cell-right" if right else "cell-wrong"
    rect = Markup(shape).format(style, x + 0.5, y + 0.5, size - 1, size - 1, strength)
    text = Markup("")
    if numbered:
        style = "count on-strong" if strength > _STRONG else "count"
        place = '<text class="{}" x="{:.1f}" y="{:.1f}" dy="0.35em">{}</text>'
        text = Markup(place).format(style, x + size / 2, y + size / 2, cell.count)
    return Markup("<g><title>{}</title>{}{}</g>").format(tooltip, rect, text)


def reliability_chart(bins: Sequence[ReliabilityBin]) -> Markup:
    """Return the reliability diagram: how often what was said with each confidence is so, with intervals."""
    side = 250

    def place_x(value: float) -> float:
        return round(_LEFT + value * side, 1)

    def place_y(value: float) -> float:
        return round(_TOP + (1 - value) * side, 1)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        label = f"{100 * tick:.0f}\u202f%"
        parts.append(_grid_line(place_y(tick), label, right=_LEFT + side))
        parts.append(
            Markup('<text class="tick-x" x="{}" y="{}">{}</text>').format(place_x(tick), _TOP + side + 16, label)
        )
    line = '<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>'
    parts.append(Markup(line).format(place_x(0), place_y(0), place_x(1), place_y(1)))
    most = max(each.count for each in bins)
    for each in bins:
        low, value, high = each.accuracy.low, each.accuracy.value, each.accuracy.high
        if each.confidence is None or low is None or value is None or high is None:
            continue
        x, radius = place_x(each.confidence), 2.5 + 5 * math.sqrt(each.count / most)
        tooltip = f"{each.count} answers, {percent(each.confidence)} confident on average: {percent(value)} right"
        whisker = Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            x, place_y(low), place_y(high)
        )
        dot = Markup('<circle class="c1-fill" cx="{}" cy="{}" r="{:.1f}"/>').format(x, place_y(value), radius)
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(tooltip, whisker, dot))
    title = '<text class="axis-title" x="{}" y="{}">confidence of the answer</text>'
    parts.append(Markup(title).format(_LEFT + side / 2, _TOP + side + 33))
    title = "Reliability diagram: share of right answers at each confidence"
    return _svg(_LEFT + side + 24, _TOP + side + 38, title, parts, style="chart")


def interval_bar(estimate: Estimate, *, floor: float = 0.0) -> Markup:
    """Return a small bar: the interval as a line and the value as a dot, on a scale from ``floor`` to 1."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return Markup("")

    def place(value: float) -> float:
        return round(3 + 94 * (max(value, floor) - floor) / (1 - floor), 1)

    bar = (
        '<svg class="bar" viewBox="0 0 100 10" width="100" height="10" aria-hidden="true">'
        '<line class="bar-track" x1="3" x2="97" y1="5" y2="5"/>'
        '<line class="bar-interval" x1="{}" x2="{}" y1="5" y2="5"/><circle class="c1-fill" cx="{}" cy="5" r="3"/></svg>'
    )
    return Markup(bar).format(place(estimate.low), place(estimate.high), place(estimate.value))


def stained_glass(seed: int, *, columns: int = 60, rows: int = 3, pane: int = 24) -> Markup:
    """Return the band at the head of the page: panes of glass in lead, the same for the same ``seed``."""
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(np.arange(columns + 1), np.arange(rows + 1)), axis=-1).astype(float)  # (R, K, 2)
    corners += rng.uniform(-0.3, 0.3, corners.shape)
    corners[0, :, 1], corners[-1, :, 1] = 0, rows
    corners[:, 0, 0], corners[:, -1, 0] = 0, columns
    points = np.round(corners * pane, 1)
    panes = []
    previous = -1
    for row in range(rows):
        for column in range(columns):
            quad = [points[row, column], points[row, column + 1], points[row + 1, column + 1], points[row + 1, column]]
            cut = rng.random()
            shapes = (
                [quad]
                if cut < 0.45
                else [quad[:3], [*quad[2:], quad[0]]]
                if cut < 0.72
                else [quad[1:], [quad[0], quad[1], quad[3]]]
            )
            for shape in shapes:
                colour = int(rng.integers(_GLASS_COLOURS - 1))
                colour += colour >= previous  # never the colour of the pane before
                previous = colour
                outline = " ".join(f"{x:g},{y:g}" for x, y in shape)
                light = 0.72 + 0.28 * rng.random()
                panes.append(
                    Markup('<polygon class="g{}" points="{}" fill-opacity="{:.2f}"/>').format(colour, outline, light)
                )
    band = '<svg class="glass" viewBox="0 0 {} {}" preserveAspectRatio="xMidYMid slice" aria-hidden="true">{}</svg>'
    return Markup(band).format(columns * pane, rows * pane, Markup("").join(panes))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _svg(
    width: float, height: float, title: str, parts: Sequence[Markup], *, style: str, fixed: bool = False
) -> Markup:
    """Wrap ``parts``; a fixed drawing keeps its size (and scrolls), another one fills its column."""
    size = Markup(' width="{:.0f}" height="{:.0f}"').format(width, height) if fixed else Markup("")
    whole = '<svg class="{}" viewBox="0 0 {:.0f} {:.0f}"{} role="img" aria-label="{}">{}</svg>'
    return Markup(whole).format(style, width, height, size, title, Markup("").join(parts))


def _grid_line(y: float, label: str, *, right: float = _WIDTH - _RIGHT) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(_LEFT, right, y=y)
    return line + Markup('<text class="tick-y" x="{}" y="{}" dy="0.35em">{}</text>').format(_LEFT - 6, y, label)


def _x_label(x: float, text: str) -> Markup:
    return Markup('<text class="tick-x" x="{}" y="{}">{}</text>').format(x, _HEIGHT - _BOTTOM + 16, text)


def _line(series: Series, points: Sequence[tuple[float, float] | None]) -> Markup:
    """Return the line through ``points``, interrupted where one is missing; a lone point is a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    parts = []
    for run in runs:
        if len(run) == 1:
            parts.append(Markup('<circle class="{}-fill" cx="{}" cy="{}" r="3"/>').format(series.style, *run[0]))
        elif run:
            path = " ".join(f"{x:g},{y:g}" for x, y in run)
            parts.append(Markup('<polyline class="line {}" points="{}"/>').format(series.style, path))
    return Markup("<g><title>{}</title>{}</g>").format(series.name, Markup("").join(parts))


def _band(series: Series, xs: Sequence[float], place_y: Callable[[float], float]) -> Markup:
    bounds = [(x, each) for x, each in zip(xs, series.band or [], strict=True)]
    above = [f"{x:g},{place_y(each.high):g}" for x, each in bounds if each.high is not None]
    below = [f"{x:g},{place_y(each.low):g}" for x, each in reversed(bounds) if each.low is not None]
    return Markup('<polygon class="band {}-fill" points="{}"/>').format(series.style, " ".join(above + below))
