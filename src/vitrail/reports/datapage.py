"""What admission found, as one HTML page that needs nothing else."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vitrail.reports import plots
from vitrail.reports.content import Command, Picture
from vitrail.reports.html import environment, thumbnail
from vitrail.runtime.files import write_text

MAX_PAIRS: Final = 24
"""Pairs that are shown with their pictures."""
MAX_PICTURES: Final = 8
"""Pictures that are shown for each other finding."""
MAX_LABELS: Final = 48
"""Doubtful labels that are shown."""
MAX_ROWS: Final = 200
"""Lines of the tables of files."""


@dataclass(frozen=True, kw_only=True)
class ShownPicture:
    """A picture and what stands under it."""

    picture: Picture | None
    """None where it cannot be read."""
    name: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """Two pictures side by side."""

    first: ShownPicture
    second: ShownPicture
    verdict: str
    """Such as "near, 0.98"."""
    warning: str = ""
    """Such as "two labels" or "leak"."""


@dataclass(frozen=True, kw_only=True)
class ShownFinding:
    """One sentence, with some of the pictures that it is about."""

    text: str
    warning: bool
    kind: str
    pictures: tuple[ShownPicture, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShownLabels:
    """Labels that a quick model doubts."""

    text: str
    """What it is, and how far it is to be believed."""
    num: int
    pictures: tuple[ShownPicture, ...]
    """The most doubtful first."""


@dataclass(frozen=True, kw_only=True)
class DataPage:
    """Everything that the page shows."""

    title: str
    created_at: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    """Images of each class, for each split."""
    totals: Mapping[str, int]
    """Images of each split; one may count for several classes, or for none."""
    findings: tuple[ShownFinding, ...] = ()
    pairs: tuple[ShownPair, ...] = ()
    """The gravest first."""
    labels: ShownLabels | None = None
    """None where nobody looked."""
    num_pairs: int = 0
    num_leaks: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    """Files that cannot be used: path and reason."""
    dropped: tuple[tuple[str, str], ...] = ()
    """Pictures left out of val or test: path and reason."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    commands: tuple[Command, ...] = ()


def write_data_page(path: Path, page: DataPage) -> Path:
    """Write the page to ``path``; return it.

    Raises:
        StorageError: if the file cannot be written.
    """
    # Names of files and classes may hold bytes that are not UTF-8, which Python keeps as surrogates.
    write_text(path, render_data_page(page).encode("utf-8", "backslashreplace").decode())
    return path


def render_data_page(page: DataPage) -> str:
    """Return the page as HTML."""
    largest = max((max(counts, default=0) for counts in page.counts.values()), default=0) or 1
    return (
        environment()
        .get_template("data.html.j2")
        .render(
            page=page,
            glass=plots.stained_glass(zlib.crc32(page.title.encode("utf-8", "backslashreplace"))),
            tiles=_tiles(page),
            bars={split: [count / largest for count in counts] for split, counts in page.counts.items()},
            warnings=[finding for finding in page.findings if finding.warning],
            thumbnail=thumbnail,
            max_rows=MAX_ROWS,
        )
    )


def _tiles(page: DataPage) -> Sequence[tuple[str, str, str]]:
    splits = ", ".join(f"{num:,} {split}" for split, num in page.totals.items())
    return (
        ("Images", f"{sum(page.totals.values()):,}", splits),
        ("Refused files", f"{len(page.refused):,}", "broken, or of no known format"),
        ("Same images", f"{page.num_pairs:,}", "pairs of copies"),
        ("Leaks", f"{page.num_leaks:,}", f"{len(page.dropped):,} left out of val and test"),
    )
