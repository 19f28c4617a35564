"""What is kept of an admission saves the second one the decoding, and never makes it wrong."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.config import DataConfig
from vitrail.data import open_dataset
from vitrail.data.inspections import InspectionCache, cache_folder
from vitrail.data.sources.folder import FolderPictures


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitrail"


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return the names of the files that were decoded since the last call."""
    names: list[str] = []
    before = FolderPictures.inspect

    def inspect(pictures: FolderPictures, path: str) -> object:
        names.append(Path(path).name)
        return before(pictures, path)

    monkeypatch.setattr(FolderPictures, "inspect", inspect)

    def take() -> list[str]:
        taken = sorted(names)
        names.clear()
        return taken

    return take


def picture(path: Path, seed: int, size: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(8):
        picture(tmp_path / "source" / "ab"[number % 2] / f"{number}.png", number)
    (tmp_path / "source" / "a" / "broken.png").write_bytes(b"?")
    return tmp_path / "source"


def test_the_second_time_only_what_changed_or_was_refused_is_decoded(
    source: Path, inspected: Callable[[], list[str]]
) -> None:
    first = open_dataset(source, DataConfig())
    assert len(inspected()) == 9
    second = open_dataset(source, DataConfig())
    assert inspected() == ["broken.png"]
    assert second.records == first.records
    picture(source / "a" / "2.png", 50)
    picture(source / "b" / "new.png", 51)
    (source / "b" / "1.png").unlink()
    third = open_dataset(source, DataConfig())
    assert inspected() == ["2.png", "broken.png", "new.png"]
    assert len(third.records) == 9


def test_another_picture_with_the_times_of_the_old_one_is_noticed(source: Path) -> None:
    path = source / "a" / "0.png"
    before = {record.path: record.sha256 for record in open_dataset(source, DataConfig()).records}
    status, data = path.stat(), bytearray(path.read_bytes())
    picture(source / "a" / "0.png", 99)
    path.write_bytes(path.read_bytes().ljust(len(data), b"\0")[: max(len(data), path.stat().st_size)])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = {record.path: record.sha256 for record in open_dataset(source, DataConfig()).records}
    assert before.pop("a/0.png") != after.pop("a/0.png")
    assert before == after


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no zip",
        lambda data: data[: len(data) // 2],
        lambda data: data[:200] + bytes(50) + data[250:],
        lambda data: data[:-300] + bytes(300),
    ],
)
def test_a_damaged_cache_is_none(
    source: Path, cache: Path, inspected: Callable[[], list[str]], damage: Callable[[bytes], bytes]
) -> None:
    first = open_dataset(source, DataConfig())
    inspected()
    for path in cache.rglob("*.npz"):
        path.write_bytes(damage(path.read_bytes()))
    assert open_dataset(source, DataConfig()).records == first.records
    assert len(inspected()) == 9
    open_dataset(source, DataConfig())
    assert inspected() == ["broken.png"]


def test_a_full_disk_only_costs_the_next_time(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, inspected: Callable[[], list[str]]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        dataset = open_dataset(source, DataConfig())
    assert any(item.kind == "cache" and "disk is full" in item.text for item in dataset.findings.items)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    inspected()
    assert not any(item.kind == "cache" for item in open_dataset(source, DataConfig()).findings.items)
    assert len(inspected()) == 9


def test_what_was_inspected_before_an_interruption_is_kept(source: Path, inspected: Callable[[], list[str]]) -> None:
    def interrupt(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_dataset(source, DataConfig(), progress=interrupt)
    inspected()
    open_dataset(source, DataConfig())
    assert len(inspected()) <= 4


def test_names_of_any_bytes_come_back(source: Path, inspected: Callable[[], list[str]]) -> None:
    odd = os.fsdecode(b'caf\xe9 "x"\n.png')
    (source / "a" / "0.png").rename(source / "a" / odd)
    open_dataset(source, DataConfig())
    inspected()
    open_dataset(source, DataConfig())
    assert inspected() == ["broken.png"]


def test_the_folder_is_where_the_user_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert InspectionCache(str(tmp_path)).path.is_relative_to(tmp_path / "cache" / "vitrail")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vitrail"
