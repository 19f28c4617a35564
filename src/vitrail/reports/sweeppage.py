"""What a learning-rate range test saw, as one HTML page that needs nothing else, and as JSON."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vitrail.reports import plots
from vitrail.reports.html import environment
from vitrail.runtime.files import write_json, write_text

_HIGHEST_SHOWN: Final = 1.1
"""Of the first loss; higher ones are drawn as if they were that high."""


@dataclass(frozen=True, kw_only=True)
class SweepPage:
    """Everything that the page shows."""

    title: str
    subtitle: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    """The losses averaged over neighbouring steps."""
    suggestion: float | None
    """None where the loss falls at none of the rates."""


def write_sweep_page(path: Path, page: SweepPage) -> Path:
    """Write the page to ``path`` and the same as JSON beside it; return the page's path.

    Raises:
        StorageError: if the files cannot be written.
    """
    # Names may hold bytes that are not UTF-8, which Python keeps as surrogates.
    write_text(path, render_sweep_page(page).encode("utf-8", "backslashreplace").decode())
    write_json(path.with_suffix(".json"), asdict(page))
    return path


def render_sweep_page(page: SweepPage) -> str:
    """Return the page as HTML."""
    places = [math.log10(rate) for rate in page.rates]
    # What comes after is of no interest but that it is high; drawn whole, it would flatten the fall before it.
    highest = _HIGHEST_SHOWN * page.smooth[0]
    series = [
        plots.Series("each batch", "c3", places, [min(loss, highest) for loss in page.losses]),
        plots.Series("smoothed", "c1", places, [min(loss, highest) for loss in page.smooth]),
    ]
    mark = None if page.suggestion is None else math.log10(page.suggestion)
    chart = plots.line_chart("Loss over the learning rate", series, mark=mark, x_labels=_decades(places))
    glass = plots.stained_glass(zlib.crc32(page.title.encode("utf-8", "backslashreplace")))
    return environment().get_template("sweep.html.j2").render(page=page, chart=chart, glass=glass)


def _decades(places: Sequence[float]) -> dict[float, str]:
    """Return what stands at each power of ten within the rates."""
    return {float(place): f"1e{place}" for place in range(math.ceil(places[0]), math.floor(places[-1]) + 1)}
