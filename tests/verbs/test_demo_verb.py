"""`demo`: the whole way, shortened to one epoch."""

import json
import signal

import pytest

import vitrail
from vitrail.training import TrainProgress


@pytest.mark.slow
def test_the_demo_makes_a_run_a_bundle_and_a_report_that_agree(tmp_path):
    made = vitrail.demo(epochs=1, out=tmp_path)
    assert made.training.path == tmp_path / "train" / "demo"
    assert made.training.report_path.is_file()
    assert made.bundle == tmp_path / "export" / "demo"
    assert vitrail.check(made.bundle).ok
    # One epoch is little, and yet more than a guess among ten. Measured: 0.22 [0.18, 0.27].
    assert made.training.metrics["test"].accuracy.low > 0.1
    description = json.loads((made.bundle / "bundle.json").read_text())
    assert description["verification"]["parity"]["num_images"] == made.training.metrics["val"].num_images
    options = vitrail.load_checkpoint(made.training.path).model.spec.options
    assert options["local"]
    assert options["fusion"]


def test_an_interrupted_demo_ships_nothing(monkeypatch, command, tmp_path):
    def interrupt(self, report):
        if report.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainProgress, "step", interrupt)
    answer = command("demo", "--epochs", 1, "--out", tmp_path)
    assert answer.code == 130
    assert f"To go on: vitrail train {tmp_path}/train/demo --resume" in answer.err
    with pytest.raises(KeyboardInterrupt):
        vitrail.demo(epochs=1, out=tmp_path)
    assert not (tmp_path / "export").exists()
