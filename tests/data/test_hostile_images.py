"""The odd, broken and fuzzed files of the shared folder: no crash, no hang, no gigabytes, and the expected answer."""

import csv
import resource
from pathlib import Path

import pytest

from vitrail.config import DataConfig
from vitrail.data import open_dataset
from vitrail.data.images import ImageRefusedError, inspect_image, open_image

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "hostile_images"

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there"),
    pytest.mark.filterwarnings("ignore:::PIL"),
]


def rows() -> list[dict[str, str]]:
    if not FOLDER.is_dir():
        return []
    with (FOLDER / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["file"])
def test_each_file_opens_or_is_refused_as_expected(row: dict[str, str]) -> None:
    path = FOLDER / row["file"]
    image = reason = None
    try:
        image = open_image(path)
    except ImageRefusedError as error:
        reason = error.reason
    if image is None:
        assert reason
        # A format beyond the common ones may be refused; of these only JPEG 2000 is.
        assert row["expected"] != "opens" or row["format"] == "JPEG2000"
        with pytest.raises(ImageRefusedError):
            inspect_image(path)
        return
    assert row["expected"] != "refuses"
    assert image.mode == "RGB"
    assert {image.width, image.height} == {int(row["width"]), int(row["height"])}
    found = inspect_image(path)
    assert (found.width, found.height) == image.size


def test_a_source_with_all_of_them_between_good_files_is_admitted(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for good in ("made/UPPER.JPG", "made/with space.jpg"):
            (tmp_path / label / Path(good).name).symlink_to(FOLDER / good)
    for number, row in enumerate(rows()):
        file = FOLDER / row["file"]
        (tmp_path / "ab"[number % 2] / f"{number}_{file.name}").symlink_to(file)
    dataset = open_dataset(tmp_path, DataConfig())
    refused = {int(path.split("/")[1].split("_")[0]) for path, _ in dataset.refused}
    used = {int(path.split("/")[1].split("_")[0]) for s in dataset.splits.values() for path in s.paths if "_" in path}
    for number, row in enumerate(rows()):
        assert row["expected"] != "refuses" or number not in used
        assert row["expected"] != "opens" or row["core_format"] == "no" or number not in refused
    assert all(reason for _, reason in dataset.refused)
    assert len(refused) + len(used) + sum(dataset.ignored.values()) == len(rows())
    # Measured: 290 MiB, most of it torch. The bomb decoded would add 2.7 GiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 < 1200
