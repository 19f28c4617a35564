"""Ctrl-C, a kill, and what comes after: nothing is lost, nothing is torn, and the numbers are those of one go."""

import csv
import shlex
import signal
from pathlib import Path

import pytest
import torch

import vitrail
from vitrail.cli import main
from vitrail.data import dataset
from vitrail.errors import CheckpointError
from vitrail.training import Run, TrainProgress
from vitrail.verbs import train

MEASURED_TIMES = {"images_per_s", "wait_share", "elapsed_s"}
EPOCHS = 3
STEPS_PER_EPOCH = 4  # 36 images in batches of 8; the last 4 are left out


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums over several threads may be rounded otherwise on a busy machine; what is tested here is resuming."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def options(quick):
    """Everything random is on: augmentation, mixing, stochastic depth, the moving average."""
    return {**quick, "epochs": EPOCHS, "lr": 1e-3, "augment": "strong", "drop_path": 0.3}


@pytest.fixture(scope="module")
def whole(one_thread, colours, options, tmp_path_factory):
    """The training that nobody interrupted."""
    return vitrail.train(colours, **options, out=tmp_path_factory.mktemp("whole"))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in row.keys() - MEASURED_TIMES} for row in csv.DictReader(file)]


def assert_same_training(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    ours, theirs = (vitrail.load_checkpoint(path) for path in (one, other))
    weights, expected = ours.model.state_dict(), theirs.model.state_dict()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    # Fitted to fp32 answers after the training; seen once in a busy process: a difference of 6e-9.
    for name in ("temperature", "reject_threshold", "error_before", "error_after"):
        assert ours.calibration[name] == pytest.approx(theirs.calibration[name], abs=1e-6)
    assert not list(one.glob(".*"))


def interrupt_in(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """Send a real SIGINT in the given call (from 1) of a method of the progress that the training reports to."""
    original, calls = getattr(TrainProgress, method), []

    def interrupting(self, *arguments):
        original(self, *arguments)
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainProgress, method, interrupting)


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("step", 1),
        ("step", STEPS_PER_EPOCH - 1),  # the next step, the last of its epoch, is the last
        ("step", STEPS_PER_EPOCH),  # after the last step of an epoch, before it is measured
        ("epoch", 1),  # while the epoch is measured
        ("step", EPOCHS * STEPS_PER_EPOCH),  # after the last step of all
    ],
)
def test_interrupted_and_resumed_is_the_same_as_one_go_bit_for_bit(
    monkeypatch, whole, colours, options, tmp_path, where, call
):
    with monkeypatch.context() as patch:
        interrupt_in(patch, where, call)
        stopped = vitrail.train(colours, **options, out=tmp_path)
    assert stopped.interrupted
    assert stopped.metrics == {}
    assert not stopped.report_path.exists()
    resumed = vitrail.train(stopped.path, resume=True, quiet=True)
    assert not resumed.interrupted
    assert resumed.path == stopped.path
    assert resumed.report_path.exists()
    assert resumed.metrics["test"].to_dict() == whole.metrics["test"].to_dict()
    assert_same_training(resumed.path, whole.path)


def test_an_interruption_while_the_result_is_measured_is_resumed_there(
    monkeypatch, whole, colours, options, tmp_path, command
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_report", interrupted)
        stopped = vitrail.train(colours, **options, out=tmp_path)
    assert stopped.interrupted
    assert not stopped.report_path.exists()
    answer = command("train", stopped.path, "--resume", "--quiet")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert stopped.report_path.exists()
    assert_same_training(stopped.path, whole.path)


def test_an_interruption_while_the_images_are_checked_leaves_nothing(monkeypatch, command, colours, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "admit", interrupted)
    answer = command("train", colours, "--out", tmp_path / "runs", "--quiet")
    assert (answer.code, answer.err) == (130, "vitrail: interrupted.\n")
    assert not (tmp_path / "runs").exists()


INTERRUPTED = """
import sys, time
from pathlib import Path
from vitrail.cli import main
from vitrail.training import TrainProgress

show = TrainProgress.epoch

def show_and_wait(self, row):
    show(self, row)
    print("epoch", flush=True)
    while not Path("signalled").exists():
        time.sleep(0.005)

TrainProgress.epoch = show_and_wait
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_with_130_and_the_command_that_it_prints_goes_on(process, colours, tmp_path):
    out = tmp_path / "a folder of runs whose name does not fit into one line of eighty columns of a terminal"
    running = process(
        *("train", colours, "--model", "vit_micro_patch8", "--image-size", 16, "--batch-size", 8, "--epochs", 3),
        *("--out", out, "--name", "stopped"),
        script=INTERRUPTED,
    )
    running.wait_until(lambda: (tmp_path / "stdout").read_text() == "epoch\n")
    running.signal(signal.SIGINT)
    (tmp_path / "signalled").touch()
    ended = running.end()
    assert ended.code == 130
    assert ended.out == "epoch\n"
    assert "Traceback" not in ended.err
    (told,) = [line for line in ended.err.splitlines() if "Interrupted" in line]
    run = out / "train" / "stopped"
    assert not (run / "report.html").exists()
    program, *words = shlex.split(told.split("To go on: ")[1])
    assert program == "vitrail"
    assert words == ["train", str(run), "--resume"]
    assert len(rows(run)) == 1
    assert main([*words, "--quiet"]) == 0
    assert len(rows(run)) == 3
    assert (run / "report.html").exists()


KILLED_IN_A_SAVE = """
import sys, time
from vitrail.cli import main
from vitrail.runtime import files
from vitrail.verbs import session

session._SAVE_EVERY_S = 0.0
flush, saves = files._flush_to_disk, []

def flush_and_wait(path):
    flush(path)
    if "state.safetensors" in path.name:
        saves.append(path)
        if len(saves) == 2:  # written in full, and not yet in its place
            print("saving", flush=True)
            time.sleep(60)

files._flush_to_disk = flush_and_wait
sys.exit(main(sys.argv[1:]))
"""


def test_a_process_killed_in_the_middle_of_a_save_is_resumed_from_the_save_before(
    process, whole, colours, options, tmp_path
):
    flags = [
        word for name, value in options.items() if name != "quiet" for word in (f"--{name.replace('_', '-')}", value)
    ]
    running = process("train", colours, *flags, "--quiet", "--out", tmp_path, "--name", "run", script=KILLED_IN_A_SAVE)
    running.wait_until(lambda: (tmp_path / "stdout").read_text() == "saving\n")
    running.signal(signal.SIGKILL)
    assert running.end().code == -signal.SIGKILL
    run = tmp_path / "train" / "run"
    assert len(list(run.glob(".state.safetensors.*.tmp"))) == 1
    assert len(rows(run)) == 2
    vitrail.load_checkpoint(run)  # the best weights so far are whole
    resumed = vitrail.train(run, resume=True, quiet=True)
    assert not resumed.interrupted
    assert_same_training(run, whole.path)


def test_a_run_killed_before_its_first_save_says_that_there_is_nothing_to_go_on_from(run_copy, command):
    for name in ("state.safetensors", "model.safetensors", "report.html", "evaluation.json"):
        (run_copy / name).unlink()
    answer = command("train", run_copy, "--resume", "--quiet")
    assert answer.code == 1
    assert "There is no saved training" in answer.sentence()
    assert "Start a new run" in answer.sentence()
    answer = command("predict", run_copy, "x.jpg")
    assert answer.code == 1
    assert "has no trained model yet. Train anew" in answer.sentence()


def test_a_run_without_weights_but_with_a_state_says_how_to_get_them(run_copy, command):
    (run_copy / "model.safetensors").unlink()
    answer = command("export", run_copy)
    assert answer.code == 1
    assert f"Finish it with `vitrail train {run_copy} --resume`" in answer.sentence()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_state_is_refused_and_nothing_is_written(run_copy, contents, damage):
    state = Run(run_copy).state_path
    data = bytearray(state.read_bytes())
    if damage == "changed":
        data[20] ^= 0xFF  # in the header
    state.write_bytes({"cut": data[: len(data) // 2], "changed": data, "empty": b""}[damage])
    before = contents(run_copy)
    with pytest.raises(CheckpointError, match="is damaged or is no saved training"):
        vitrail.train(run_copy, resume=True, quiet=True)
    assert contents(run_copy) == before
