"""The odd, broken and fuzzed files of the shared folder through `data` and `predict`, in measured processes."""

import csv
import json
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "hostile_images"
MAX_BYTES = 1.5e9
"""Measured: 0.28e9 for `data`, 0.44e9 for `predict`, most of it libraries. The bomb decoded would add 2.7e9."""

MEASURED = """
import re, sys
from pathlib import Path
from vitrail.cli import main

code = main(sys.argv[1:])
# Of this program alone: the resource usage that the system keeps begins with that of the process which started it.
(peak,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
Path("peak").write_text(peak)
sys.exit(code)
"""

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it"),
]


def manifest() -> list[dict[str, str]]:
    with (FOLDER / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def peak_bytes(folder: Path) -> int:
    return int((folder / "peak").read_text()) * 1024


def test_data_refuses_what_is_broken_with_a_reason_and_uses_the_rest(process, pictures, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 4, "red": 4})
    expected = {}
    for number, row in enumerate(manifest()):
        name = f"{('blue', 'red')[number % 2]}/{number:03}_{Path(row['file']).name}"
        shutil.copy(FOLDER / row["file"], source / name)
        expected[name] = row
    ended = process("data", source, "--out", tmp_path / "runs", script=MEASURED).end()
    assert ended.code == 0
    assert "Traceback" not in ended.err
    assert peak_bytes(tmp_path) < MAX_BYTES
    with (tmp_path / "runs" / "data" / "source" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        became = {row["path"]: row for row in csv.DictReader(file)}
    num_refused = 0
    for name, row in expected.items():
        if name not in became:  # passed over by its extension, such as .pdf
            assert row["expected"] != "opens" or row["core_format"] == "no"
            continue
        refused = became[name]["status"] == "refused"
        num_refused += refused
        assert bool(became[name]["reason"]) == refused
        assert row["expected"] != "refuses" or refused, name
        assert row["expected"] != "opens" or row["core_format"] == "no" or not refused, name
    assert num_refused > 30
    assert f"refused: {num_refused} files" in ended.out
    assert sum(became[f"{label}/{number:02}.png"]["status"] == "ok" for label in ("blue", "red") for number in range(4))


def test_predict_answers_or_refuses_each_and_goes_on(process, trained, tmp_path):
    target = tmp_path / "answers.json"
    words = ("predict", trained.path, FOLDER, "--format", "json", "--output", target, "--top-k", 2)
    ended = process(*words, script=MEASURED).end()
    assert ended.code == 1, "some are refused"
    assert "Traceback" not in ended.err
    assert peak_bytes(tmp_path) < MAX_BYTES
    answers = {str(Path(each["path"]).relative_to(FOLDER)): each for each in json.loads(target.read_text())}
    for row in manifest():
        answer = answers.get(row["file"])
        if answer is None:
            assert row["expected"] != "opens" or row["core_format"] == "no"
            continue
        assert bool(answer["error"]) != bool(answer["labels"])
        assert row["expected"] != "refuses" or answer["error"], row["file"]
        assert row["expected"] != "opens" or row["core_format"] == "no" or answer["labels"], row["file"]
    num_refused = sum(bool(each["error"]) for each in answers.values())
    assert f"{num_refused} of {len(answers)} files were refused" in ended.err
