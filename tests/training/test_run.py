import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from vitrail.config import Preprocess
from vitrail.errors import ConfigError, DataError, StorageError
from vitrail.runtime.files import write_json
from vitrail.training import Run, graceful_interrupt, is_run


@dataclass(frozen=True)
class Knobs:
    epochs: int = 0
    source: str = "digits"


def finished(run):
    run.write_config(Knobs(epochs=3))
    run.write_preprocess(Preprocess(image_size=(32, 32)))
    write_json(run.environment_path, {})
    return run


def test_a_taken_name_gets_a_number(tmp_path):
    names = [Run.create(tmp_path, "train", "vit").path for _ in range(3)]
    assert names == [tmp_path / "train" / name for name in ("vit", "vit-2", "vit-3")]


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: Run.create(tmp_path, "train", "vit"), range(32)))
    assert len({run.path for run in runs}) == 32


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="name is"):
        Run.create(tmp_path, "train", name)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_hold_runs_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").write_text("")
    for out in (tmp_path / "file", tmp_path / "out"):
        with pytest.raises(StorageError, match="cannot be written"):
            Run.create(out, "train", "vit")


def test_a_run_is_opened_and_gives_back_its_knobs_and_labels(tmp_path):
    run = finished(Run.create(tmp_path, "train", "vit"))
    run.write_labels(["cat", "dög"])
    opened = Run.open(str(run.path))
    assert opened == run
    assert opened.read_config(Knobs) == Knobs(epochs=3)
    assert opened.read_labels() == ("cat", "dög")


def test_a_misspelt_run_gets_a_hint(tmp_path):
    finished(Run.create(tmp_path, "train", "flowers"))
    with pytest.raises(DataError, match=r"no run .*Did you mean 'flowers'.*beside it: flowers"):
        Run.open(tmp_path / "train" / "flwers")
    with pytest.raises(DataError, match="There is no run"):
        Run.open(tmp_path / "nowhere" / "x")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {})  # as in Hugging Face's layout
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not is_run(tmp_path)
    with pytest.raises(DataError, match="is not a run"):
        Run.open(tmp_path)


@dataclass
class Other:
    epoch: int = 0


def test_damaged_or_foreign_files_of_a_run_are_refused(tmp_path):
    run = finished(Run.create(tmp_path, "train", "vit"))
    with pytest.raises(ConfigError, match="no option 'epochs'"):
        run.read_config(Other)
    with pytest.raises(DataError, match="missing or damaged"):
        run.read_labels()
    run.labels_path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="no list of classes"):
        run.read_labels()
    run.config_path.write_text("[1")
    with pytest.raises(DataError, match="missing or damaged"):
        run.read_config(Other)
    run.config_path.write_text("[1]")
    with pytest.raises(DataError, match="no configuration"):
        run.read_config(Other)


INTERRUPTED = """
import os, signal, sys
from vitrail.training import graceful_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background is born deaf to it
with graceful_interrupt() as stop:
    assert not stop()
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    assert stop()
    print("first", flush=True)
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    except KeyboardInterrupt:
        print("second", flush=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("restored", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_asks_and_the_second_interrupts(name):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, name], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["first", "second", "restored"]


def test_another_thread_gets_a_request_without_signals():
    def work():
        with graceful_interrupt() as stop:
            return stop()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is False
