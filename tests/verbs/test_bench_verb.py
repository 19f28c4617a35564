"""`vitrail bench`: everybody gets a turn in every round, what fails is told, and what was measured is kept."""

import json
import signal
from pathlib import Path

import pytest

import vitrail
from vitrail.errors import ConfigError
from vitrail.evaluation.bench import Spread, Turn, Worker, WorkerError, measure_noise, rotated, speed_ratios
from vitrail.verbs import bench as bench_verb
from vitrail.verbs import rounds

SMALL = ("vit_micro_patch32", "vit_micro_patch16")
QUICK = ("--image-size", 32, "--batch-size", 1, "--threads", 1, "--time-budget", "1s", "--quiet", "--device", "cpu")
NO_MODULE = "vitrail.verbs.no_such_contestant"


def test_each_begins_as_often_as_the_others():
    orders = [rotated(["a", "b", "c"], number) for number in range(6)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert sorted(order[0] for order in orders) == ["a", "a", "b", "b", "c", "c"]


def test_ratios_are_taken_within_a_round_and_above_one_for_the_faster():
    slow = {1: Turn(10, 11, 5), 2: Turn(30, 33, 5), 3: Turn(10, 11, 5)}
    fast = {1: Turn(5, 6, 5), 2: Turn(10, 11, 5)}  # the machine was three times slower in round 2
    assert speed_ratios(slow, fast) == Spread(median=2.5, low=2.0, high=3.0)
    assert speed_ratios({3: Turn(1, 1, 1)}, fast) is None


def test_a_steady_and_idle_machine_gives_no_warning():
    assert measure_noise([1.0, 1.01, 0.99], 0.1, 1.0, cores=2).warning is None
    assert measure_noise([1.0], None, None, cores=2).variation == 0


def test_an_unsteady_or_a_busy_machine_does():
    assert "1.00 to 2.00 ms" in measure_noise([1.0, 2.0, 1.0], 0.1, 1.0, cores=2).warning
    assert "load average was 1.5 on 2 cores" in measure_noise([1.0, 1.0], 1.5, 1.0, cores=2).warning


def test_a_process_that_ends_tells_why():
    worker = Worker(NO_MODULE)
    try:
        with pytest.raises(WorkerError, match="No module named"):
            worker.ask(job="torch")
    finally:
        worker.close()


def test_a_request_to_stop_ends_the_waiting():
    worker = Worker("vitrail.verbs.contestant", stop=lambda: True)
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.ask(job="probe", device="cpu", threads=1)
    finally:
        worker.close()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return vitrail.bench(
        *SMALL,
        image_size=32,
        runtimes="eager",
        precision=("fp32", "bf16"),
        batch_size=(1, 2),
        threads=1,
        rounds=2,
        time_budget="1s",
        device="cpu",
        quiet=True,
        out=str(tmp_path_factory.mktemp("bench")),
    )


def test_every_setting_has_a_row_for_every_model(measured):
    settings = {(row.runtime, row.precision, row.batch_size) for row in measured.rows}
    pairs = [("eager", "fp32"), ("eager", "bf16")]
    assert settings == {(*pair, batch) for pair in pairs for batch in (1, 2)}
    assert len(measured.rows) == 2 * len(settings)
    assert not measured.skipped
    assert not measured.interrupted


def test_figures_agree_with_one_another(measured):
    for row in measured.rows:
        assert 0 < row.p50_ms.low <= row.p50_ms.median <= row.p50_ms.high
        assert row.images_per_s == pytest.approx(1e3 * row.batch_size / row.p50_ms.median)
        assert row.num_runs >= row.num_rounds >= 1
        assert row.peak_share > 0
        if row.model == SMALL[0]:
            assert row.speedup == Spread(median=1.0, low=1.0, high=1.0)


def test_memory_is_that_of_the_model_and_not_of_the_libraries(measured):
    known = [row.memory_bytes for row in measured.rows if row.memory_bytes is not None]
    if known:  # elsewhere than on Linux nobody tells
        weights = 4 * 1.05e6
        assert all(each > weights / 2 for each in known)  # Seen: 21 to 52 MiB, with 150 MiB for the libraries.
        assert max(known) < 150 * 2**20


def test_the_folder_has_the_figures_and_a_page(measured):
    assert {path.name for path in measured.path.iterdir()} == {
        "bench.json",
        "bench.md",
        "config.json",
        "environment.json",
    }
    told = json.loads((measured.path / "bench.json").read_text())
    assert len(told["rows"]) == len(measured.rows)
    assert set(told["peak_macs_per_s"]) == {"fp32, 1 threads", "bf16, 1 threads"}
    page = (measured.path / "bench.md").read_text()
    assert page.count("## eager, bf16, 1 thread, batch 2") == 1
    assert page.count("| vit_micro_patch32 |") == 4


@pytest.mark.slow
def test_a_run_and_its_bundle_are_measured_in_the_runtimes_they_have(command, trained, bundle, tmp_path):
    runtimes = ("--runtimes", "eager", "onnx-int8", "onnx")
    answer = command("bench", bundle.path, trained.path, *runtimes, "--out", tmp_path, "--rounds", 1, *QUICK[2:])
    assert answer.code == 0
    assert f"{bundle.path}, eager, fp32 was left out: a bundle runs in onnxruntime alone." in answer.err
    rows = json.loads(next(tmp_path.glob("bench/*/bench.json")).read_text())["rows"]
    assert [(row["runtime"], row["precision"], Path(row["model"]) == trained.path) for row in rows] == [
        ("onnx-int8", "int8", False),
        ("onnx-int8", "int8", True),
        ("onnx", "fp32", False),
        ("onnx", "fp32", True),
        ("eager", "fp32", True),
    ]
    assert [row["peak_share"] is None for row in rows] == [True, True, True, False, False]  # a bundle tells no work


@pytest.mark.slow
def test_a_contestant_that_fails_is_left_out_with_its_reason(command, monkeypatch, tmp_path):
    real = rounds.Measurement._build

    def build(self, each):
        if each.label == SMALL[1]:
            raise WorkerError("no C++ compiler was found")
        real(self, each)

    monkeypatch.setattr(rounds.Measurement, "_build", build)
    answer = command("bench", *SMALL, "--runtimes", "eager", "--rounds", 1, "--out", tmp_path, *QUICK)
    assert answer.code == 0
    assert "vit_micro_patch16, eager, fp32 was left out: no C++ compiler was found." in answer.err
    assert "Traceback" not in answer.err


def test_when_all_fail_nothing_is_left(command, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_verb, "_MODULE", NO_MODULE)
    answer = command("bench", SMALL[0], "--runtimes", "eager", "--out", tmp_path, *QUICK)
    assert answer.code == 1
    assert "No module named" in answer.sentence()
    assert not list(tmp_path.glob("bench/*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["vit_tiny_pach16"], "Did you mean 'vit_tiny_patch16'"),
        (["runs/nope"], "There is no run, bundle or checkpoint runs/nope"),
        (["vit_micro_patch8", "--image-size", "20"], "not a whole number of patches"),
        (["vit_micro_patch8", "--device", "cuda:77"], "cuda:77"),
        (["vit_micro_patch8", "--time-budget", "soon"], "is not a time"),
    ],
)
def test_a_wrong_call_is_one_sentence(command, words, says):
    answer = command("bench", *words)
    assert answer.code == 2
    assert says in answer.sentence()


def test_python_refuses_what_the_command_line_refuses():
    with pytest.raises(ConfigError, match="runtimes is 'onx'"):
        vitrail.bench(SMALL[0], runtimes="onx")
    with pytest.raises(ConfigError, match="No model was named"):
        vitrail.bench()


@pytest.mark.slow
def test_an_interruption_keeps_what_was_measured(process, tmp_path):
    script = """
import sys
from vitrail.cli import main
from vitrail.verbs import rounds
real = rounds.Measurement._turn
def turn(self, each, cell, number, limit_s):
    real(self, each, cell, number, limit_s)
    if number == 2:
        open("second", "w").close()
rounds.Measurement._turn = turn
sys.exit(main(sys.argv[1:]))
"""
    words = ["bench", SMALL[0], "--runtimes", "eager", "--rounds", 10000, "--name", "cut", *QUICK[:6], "--quiet"]
    running = process(*words, script=script)
    running.wait_until((tmp_path / "second").exists)
    running.signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130
    assert "what was measured until then is kept" in done.err
    assert "Traceback" not in done.err
    told = json.loads((tmp_path / "runs" / "bench" / "cut" / "bench.json").read_text())
    assert told["interrupted"]
    assert told["rows"][0]["num_rounds"] >= 2
