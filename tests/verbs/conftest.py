"""Tiny pictures that are easy to tell apart, a run trained on them, a bundle of it, and the command line at hand."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail.cli import main
from vitrail.evaluation.cost import measure_latency
from vitrail.verbs import train
from vitrail.verbs.export import Export
from vitrail.verbs.train import TrainResult

SIDE = 16
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 50), "red": (210, 50, 40), "white": (230, 230, 230)}
QUICK = {
    "model": "vit_micro_patch8",
    "image_size": SIDE,
    "batch_size": 8,
    "workers": 1,
    "device": "cpu",
    "quiet": True,
}
"""Four tokens and a few steps: a training of a second, where sums have one order on every machine."""


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """Return the one line that a failed command may leave on the standard error, without the program's name."""
        assert "Traceback" not in self.err
        assert self.err.startswith("vitrail: "), self.err
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("vitrail: ").rstrip("\n")


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    code: int
    out: str
    err: str


def write_pictures(root: Path, counts: dict[str, int], *, side: int = SIDE) -> Path:
    """Write PNG files of noise around the colour that gives each class its name: root/label/00.png and so on."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            split = root.name if root.name in {"val", "test"} else ""  # the same picture in two splits would be dropped
            random = np.random.default_rng([number, *label.encode(), *split.encode()])
            pixels = np.array(COLOURS[label]) + random.normal(0, 15, (side, side, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / label / f"{number:02}.png")
    return root


def everything_in(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session", autouse=True)
def _short_latency() -> Iterator[None]:
    """Time three answers for a report and not sixty: how long they take is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "measure_latency", partial(measure_latency, num_warmup=1, num_runs=2))
        yield


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Path]:
    return write_pictures


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return everything_in


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Options of a training that takes about a second, without its length."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat source of three classes; 36 train, 6 val, 12 test."""
    return write_pictures(tmp_path_factory.mktemp("verbs") / "colours", {"blue": 18, "green": 18, "red": 18})


@pytest.fixture(scope="session")
def trained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that knows the colours. Not to be written to."""
    return vitrail.train(colours, **QUICK, epochs=6, lr=1e-3, out=tmp_path_factory.mktemp("runs"), name="colours")


@pytest.fixture(scope="session")
def bundle(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Its export. Not to be written to."""
    return vitrail.export(trained.path, out=tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def run_copy(trained: TrainResult, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained.path, tmp_path / "copied-run"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command of the command line in this process."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # the parser of flags ends so
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


class Process:
    """A Python process that runs the command line, or a script around it."""

    def __init__(self, words: Sequence[object], folder: Path, *, script: str | None = None) -> None:
        head = ["-m", "vitrail"] if script is None else ["-c", script]
        self._streams = [(folder / name).open("w+b") for name in ("stdout", "stderr")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, *head, *map(str, words)],
            stdout=self._streams[0],
            stderr=self._streams[1],
            cwd=folder,
            env=environment,
        )

    def wait_until(self, condition: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Wait until something has become true while the process runs."""
        give_up_at = time.monotonic() + limit_s
        while not condition():
            assert self._process.poll() is None, f"ended before its time: {self._texts()}"
            assert time.monotonic() < give_up_at, f"too slow: {self._texts()}"
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> Done:
        return Done(self._process.wait(), *self._texts())

    def _texts(self) -> tuple[str, str]:
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read().decode())
        return texts[0], texts[1]


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Process]:
    """Start the command line in a process of its own, in the test's folder; the words are its arguments."""

    def start(*words: object, script: str | None = None) -> Process:
        return Process(words, tmp_path, script=script)

    return start
