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
from vitrail.evaluation.metrics import ClassMetrics, Metrics
from vitrail.reports import plots
from vitrail.reports.content import Picture, RunReport
from vitrail.runtime.files import write_json, write_text

THUMBNAIL_PX: Final = 160
"""Longest side of a picture in the page."""
MAX_ERRORS: Final = 24
MAX_AUGMENTED: Final = 12
MAX_CONFUSED: Final = 10
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
    metrics = report.metrics
    num_val = report.data.totals.get("val") if report.data else None
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            metrics=metrics,
            glass=plots.stained_glass(zlib.crc32(report.title.encode())),
            charts=plots.curve_charts(report.history, report.best_epoch, num_val),
            matrix=plots.confusion_matrix(metrics),
            confused=metrics.most_confused(MAX_CONFUSED),
            reliability=plots.reliability_chart(metrics),
            scale_floor=_scale_floor(metrics.classes),
            num_errors=metrics.num_images - metrics.num_correct,
            errors=[(each, thumbnail(each.picture)) for each in report.errors[:MAX_ERRORS]],
            augmented=[thumbnail(picture) for picture in report.augmented[:MAX_AUGMENTED]],
            tiles=_tiles(report),
            max_refused=MAX_REFUSED,
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


def _scale_floor(classes: Sequence[ClassMetrics]) -> float:
    """Return where the scale of the classes' bars begins: at 0, or at a half if all lie above."""
    lows = [each.recall.low for each in classes if each.recall.low is not None]
    return 0.5 if lows and min(lows) >= 0.5 else 0.0


def _tiles(report: RunReport) -> list[tuple[str, str, str]]:
    """Return the key figures below the headline: label, value, and what is said under it."""
    metrics = report.metrics
    tiles = [
        ("Balanced accuracy", plots.percent(metrics.balanced_accuracy.value), interval(metrics.balanced_accuracy)),
        ("Macro F1", plots.percent(metrics.macro_f1.value), interval(metrics.macro_f1)),
    ]
    if metrics.top5 is not None and len(metrics.classes) > 20:
        tiles.append(("Top 5", plots.percent(metrics.top5.value), interval(metrics.top5)))
    tiles.append(("Calibration error", plots.percent(metrics.calibration_error), _temperature_note(metrics)))
    if report.cost is not None:
        tiles.append(
            ("Parameters", quantity(report.cost.parameters), f"{quantity(report.cost.weights_bytes)}B of weights")
        )
        tiles.append(("Multiply-adds", quantity(report.cost.macs), "per image, attention included"))
    for runtime, latency in list(report.latency.items())[:1]:
        threads = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
        tiles.append(("Latency", f"{latency.p50_ms:.3g} ms", f"one image, {runtime}, {threads}"))
    return tiles


def _temperature_note(metrics: Metrics) -> str:
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
