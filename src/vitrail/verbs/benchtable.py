"""What `vitrail bench` measured, as tables for a terminal and for a page in Markdown."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vitrail.data import display_name
from vitrail.evaluation.bench import BenchRow, Noise

COLUMNS: Final = ("model", "p50 ms", "p90 ms", "images/s", "MiB", "of peak", "vs first")

LEGEND: Final = (
    "p50, p90: time of one batch, median over the rounds. MiB: most memory beyond the process without the model. "
    "of peak: multiply-adds in a second as a share of PyTorch's in a large matrix product. vs first: times faster than "
    "the first model, median of the rounds [lowest, highest]."
)


def print_table(rows: Sequence[BenchRow], console: Console) -> None:
    """Print one table per setting."""
    for title, group in _settings(rows):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for number, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in group:
            table.add_row(*(cell.replace("[", r"\[") for cell in _cells(row)))
        console.print(table)
    console.print(LEGEND, markup=False)


def to_markdown(rows: Sequence[BenchRow], noise: Noise, skipped: Sequence[str]) -> str:
    """Return the page: tables, what was left out, and how steady the machine was."""
    parts = ["# vitrail bench", ""]
    for title, group in _settings(rows):
        parts += [f"## {title}", "", _line(COLUMNS), "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
        parts += [*(_line(_cells(row)) for row in group), ""]
    parts += [LEGEND, ""]
    if skipped:
        parts += ["## Left out", "", *(f"- {sentence}" for sentence in skipped), ""]
    parts += ["## The machine", "", _steadiness(noise), ""]
    return "\n".join(parts)


def _settings(rows: Sequence[BenchRow]) -> Iterator[tuple[str, list[BenchRow]]]:
    def title(row: BenchRow) -> str:
        threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
        return f"{row.runtime}, {row.precision}, {threads}, batch {row.batch_size}"

    for name, group in itertools.groupby(rows, title):
        yield name, list(group)


def _cells(row: BenchRow) -> list[str]:
    memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.0f}"
    peak = "" if row.peak_share is None else f"{row.peak_share:.0%}"
    ratio = ""
    if row.speedup is not None:
        ratio = f"{row.speedup.median:.2f} [{row.speedup.low:.2f}, {row.speedup.high:.2f}]"
    times = (f"{row.p50_ms.median:.3g}", f"{row.p90_ms:.3g}", f"{row.images_per_s:.4g}")
    return [display_name(row.model), *times, memory, peak, ratio]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _steadiness(noise: Noise) -> str:
    probe = noise.probe_ms
    said = (
        f"A small matrix product before every turn took {probe.median:.2f} ms [{probe.low:.2f}, {probe.high:.2f}], "
        f"variation {noise.variation:.0%}."
    )
    if noise.load_before is not None and noise.load_after is not None:
        said += f" Load average {noise.load_before:.2f} before and {noise.load_after:.2f} after."
    return f"{said} {noise.warning}" if noise.warning else said
