"""`--lr find`: the rate comes from a sweep that leaves nothing behind but the rate and its page."""

import json

import pytest
import torch
from safetensors.torch import load_file

import vitrail
from vitrail.cli import main
from vitrail.errors import ConfigError


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over several threads may be rounded otherwise on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def options(quick):
    return {**quick, "epochs": 1, "drop_path": 0.2}


def test_a_training_with_the_rate_that_was_found_is_the_same(colours, options, tmp_path):
    found = vitrail.train(colours, **options, lr="find", out=tmp_path / "found")
    seen = json.loads((found.path / "rates.json").read_text(encoding="utf-8"))
    rate = json.loads((found.path / "config.json").read_text(encoding="utf-8"))["lr"]
    assert rate == seen["suggestion"]
    assert seen["rates"][0] < rate < seen["rates"][-1]
    assert len(seen["rates"]) == len(seen["losses"]) == len(seen["smooth"])
    page = (found.path / "rates.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert f"Suggested: {rate:.2g}" in page
    assert "1e-3" in page
    plain = vitrail.train(colours, **options, lr=rate, out=tmp_path / "plain")
    assert not (plain.path / "rates.html").exists()
    ours, theirs = (load_file(run.path / "model.safetensors") for run in (found, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_where_the_loss_does_not_fall_the_default_stays(colours, options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vitrail.training.sweep._SMALLEST_FALL", 1.0)
    result = vitrail.train(colours, **{**options, "quiet": False}, optimizer="sgd", lr="find", out=tmp_path)
    config = json.loads((result.path / "config.json").read_text(encoding="utf-8"))
    assert config["lr"] == pytest.approx(0.1 * 8 / 256)
    assert "fell at no rate" in " ".join(capsys.readouterr().err.split())
    assert "falls at none of these rates" in (result.path / "rates.html").read_text(encoding="utf-8")


def test_an_interrupted_sweep_leaves_nothing(colours, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrail.training.sweep.smoothed", interrupt)
    flags = ["--model", "vit_micro_patch8", "--image-size", "16", "--batch-size", "8", "--device", "cpu"]
    assert main(["train", str(colours), *flags, "--lr", "find", "--out", str(tmp_path / "runs")]) == 130
    assert not (tmp_path / "runs").exists()
    assert "interrupted" in capsys.readouterr().err


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match="lr is 'fnd'; it takes a number or 'find'"):
        vitrail.train("digits", lr="fnd")
    assert main(["train", "digits", "--lr", "fnd"]) == 2
