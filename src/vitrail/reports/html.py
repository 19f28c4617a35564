"""The report as one HTML page that needs nothing else, and as JSON.

Everything shown goes through Jinja's escaping: names of classes and files are whatever somebody called them.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vitrail.evaluation.intervals import Estimate
from vitrail.evaluation.kinds import Scores
from vitrail.evaluation.metrics import Metrics
from vitrail.evaluation.multilabel import MultiLabelMetrics
from vitrail.evaluation.thresholds import FEWEST_FOR_OWN_THRESHOLD
from vitrail.reports import plots
from vitrail.reports.content import Picture, RunReport
from vitrail.runtime.files import write_json, write_text

THUMBNAIL_PX: Final = 160
"""Longest side of a picture in the page."""
MAX_ERRORS: Final = 24
MAX_AUGMENTED: Final = 12
MAX_CONFUSED: Final = 10
MAX_LABELS: Final = 4
"""Wrong labels, and missed ones, under one picture."""
MAX_REFUSED: Final = 200

_TEMPLATES = Path(__file__).parent / "templates"
# Below this size a picture has fewer bytes as PNG than as JPEG, and every pixel counts.
_PNG_MAX_PX = 64
_JPEG_QUALITY = 82


def write_report(path: Path, report: RunReport) -> Path:
    """Write the page to ``path`` and the same content as JSON beside it; return the page's path.

    Args:
        path: a new file such as ``report.html``; the JSON takes its name with ``.json``.
        report: what it says.

    Raises:
        StorageError: if the files cannot be written.
    """
    path = Path(path)
    # Names of files and classes may hold bytes that are not UTF-8, which Python keeps as surrogates.
    write_text(path, render(report).encode("utf-8", "backslashreplace").decode())
    write_json(path.with_suffix(".json"), report.to_dict())
    return path


def render(report: RunReport) -> str:
    """Return the page."""
    template, parts = _PAGES[type(report.metrics)](report)
    num_val = report.data.totals.get("val") if report.data else None
    return (
        environment()
        .get_template(template)
        .render(
            report=report,
            metrics=report.metrics,
            glass=plots.stained_glass(zlib.crc32(report.title.encode())),
            charts=plots.curve_charts(report.history, report.best_epoch, num_val),
            reliability=plots.reliability_chart(report.metrics.reliability),
            num_errors=report.metrics.num_images - report.metrics.num_correct,
            errors=[(each, thumbnail(each.picture)) for each in report.errors[:MAX_ERRORS]],
            augmented=[thumbnail(picture) for picture in report.augmented[:MAX_AUGMENTED]],
            max_refused=MAX_REFUSED,
            **parts,
        )
    )


def thumbnail(picture: Picture) -> Markup:
    """Return ``picture`` as an image element that holds its own bytes, its longest side at most `THUMBNAIL_PX`."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small = max(image.size) <= _PNG_MAX_PX
    stream = io.BytesIO()
    if small:
        image.save(stream, "PNG", optimize=True)
    else:
        image.save(stream, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"
    element = '<img class="{}" src="{}" width="{}" height="{}" alt="" loading="lazy">'
    return Markup(element).format("pixels" if small else "photo", source, *image.size)


def duration(seconds: float) -> str:
    """Return a time as it is said: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def quantity(value: float) -> str:
    """Return a large number with three digits and its unit's letter: "1.25 G", "5.72 M", "960"."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:  # 999,999 is 1 M, not 1000 k
            return f"{value / limit:.3g} {letter}"
    return f"{value:.3g}"


def interval(estimate: Estimate) -> str:
    """Return "[96.8, 99.4]" in percent, or nothing where the score is undefined."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _classification(report: RunReport) -> tuple[str, dict[str, Any]]:
    """Return the template of one label per image, and the parts of the page that are its own."""
    metrics = report.metrics
    assert isinstance(metrics, Metrics), metrics
    tiles = [
        ("Balanced accuracy", plots.percent(metrics.balanced_accuracy.value), interval(metrics.balanced_accuracy)),
        ("Macro F1", plots.percent(metrics.macro_f1.value), interval(metrics.macro_f1)),
    ]
    if metrics.top5 is not None and len(metrics.classes) > 20:
        tiles.append(("Top 5", plots.percent(metrics.top5.value), interval(metrics.top5)))
    return "report.html.j2", {
        "matrix": plots.confusion_matrix(metrics),
        "confused": metrics.most_confused(MAX_CONFUSED),
        "scale_floor": _scale_floor([each.recall for each in metrics.classes]),
        "tiles": [*tiles, *_common_tiles(report)],
    }


def _multilabel(report: RunReport) -> tuple[str, dict[str, Any]]:
    """Return the template of several labels per image, and the parts of the page that are its own."""
    metrics = report.metrics
    assert isinstance(metrics, MultiLabelMetrics), metrics
    named = {
        "Macro F1": metrics.macro_f1,
        "Micro F1": metrics.micro_f1,
        "All labels right": metrics.exact_match,
        "Wrong decisions": metrics.hamming_loss,
    }
    tiles = [(name, plots.percent(estimate.value), interval(estimate)) for name, estimate in named.items()]
    return "multilabel.html.j2", {
        "swaps": metrics.swaps[:MAX_CONFUSED],
        "scale_floor": _scale_floor([each.average_precision for each in metrics.classes]),
        "tiles": [*tiles, *_common_tiles(report)],
        "max_labels": MAX_LABELS,
        "fewest_for_own": FEWEST_FOR_OWN_THRESHOLD,
    }


_PAGES: Final = {Metrics: _classification, MultiLabelMetrics: _multilabel}


def _scale_floor(estimates: Sequence[Estimate]) -> float:
    """Return where the scale of the classes' bars begins: at 0, or at a half if all lie above."""
    lows = [each.low for each in estimates if each.low is not None]
    return 0.5 if lows and min(lows) >= 0.5 else 0.0


def _common_tiles(report: RunReport) -> list[tuple[str, str, str]]:
    """Return key figures that every page has below the headline: label, value, and what is said under it."""
    tiles = [("Calibration error", plots.percent(report.metrics.calibration_error), _temperature_note(report.metrics))]
    if report.cost is not None:
        tiles.append(
            ("Parameters", quantity(report.cost.parameters), f"{quantity(report.cost.weights_bytes)}B of weights")
        )
        tiles.append(("Multiply-adds", quantity(report.cost.macs), "per image, attention included"))
    for runtime, latency in list(report.latency.items())[:1]:
        threads = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
        tiles.append(("Latency", f"{latency.p50_ms:.3g} ms", f"one image, {runtime}, {threads}"))
    return tiles


def _temperature_note(metrics: Scores) -> str:
    return "uncalibrated" if metrics.temperature == 1 else f"at temperature {metrics.temperature:.2f}"


@cache
def environment() -> Environment:
    """Return where the templates are rendered."""
    # `trim_blocks` keeps the page small; undefined names raise, so that a misspelt one cannot become an empty cell.
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "percent": plots.percent,
        "interval": interval,
        "bar": plots.interval_bar,
        "duration": duration,
        "quantity": quantity,
        "shorten": plots.shorten,
    }
    templates.filters.update(filters)
    # Our own style sheet and script, the only text of the page that is not escaped.
    for name in ("report.css", "report.js"):
        templates.globals[name.replace(".", "_")] = Markup((_TEMPLATES / name).read_text(encoding="utf-8"))
    return templates
