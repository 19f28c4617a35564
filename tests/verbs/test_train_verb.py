"""`train`: what it leaves, that it learns, that it does the same twice, and that each flag reaches its place."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import vitrail
from vitrail.config import Preprocess, TrainConfig, from_options
from vitrail.data import open_manifest
from vitrail.errors import ConfigError
from vitrail.training import Run, read_metrics

MEASURED_TIMES = {"images_per_s", "wait_share", "elapsed_s"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return vitrail.load_checkpoint(run).model.state_dict()


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def rows(run: Path) -> list[dict[str, str]]:
    """The metrics without what a clock decides."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in row.keys() - MEASURED_TIMES} for row in csv.DictReader(file)]


def test_the_result_tells_where_everything_is_and_how_good_it_is(trained):
    assert trained.path.name == "colours"
    assert trained.path.parent.name == "train"
    assert trained.report_path == trained.path / "report.html"
    assert list(trained.metrics) == ["val", "test"]
    assert trained.metrics["test"].num_images == 12
    assert trained.elapsed_s > 0
    assert not trained.interrupted


def test_it_learns_what_is_easy_to_tell_apart(trained):
    assert trained.metrics["test"].accuracy.value > 0.9
    assert trained.metrics["val"].accuracy.value > 0.9


def test_the_folder_of_a_run_explains_itself(trained, colours):
    run = Run.open(trained.path)
    assert run.read_labels() == ("blue", "green", "red")
    assert run.read_preprocess() == Preprocess(image_size=(16, 16))
    environment = json.loads(run.environment_path.read_text())
    assert environment["versions"]["torch"] == str(torch.__version__)
    assert run.read_config(TrainConfig).source == str(colours)
    manifest = open_manifest(run.manifest_path, colours)
    assert {name: len(split) for name, split in manifest.splits.items()} == {"train": 36, "val": 6, "test": 12}
    assert {record.path for record in manifest.records} == {
        str(path.relative_to(colours)) for path in colours.rglob("*.png")
    }
    assert all(re.fullmatch("[0-9a-f]{64}", record.sha256) for record in manifest.records)
    assert [row.epoch for row in read_metrics(run.metrics_path)] == list(range(6))
    measured = {name: metrics.to_dict() for name, metrics in trained.metrics.items()}
    assert json.loads(run.evaluation_path.read_text()) == json.loads(json.dumps(measured))
    checkpoint = vitrail.load_checkpoint(run.model_path)
    assert checkpoint.classes == ("blue", "green", "red")
    assert checkpoint.preprocess == run.read_preprocess()
    assert checkpoint.calibration["temperature"] > 0
    assert not [path.name for path in trained.path.iterdir() if path.name.startswith(".")]


def test_the_configuration_of_a_run_has_nothing_undecided(trained):
    config = json.loads((trained.path / "config.json").read_text())
    means_of_the_machine = {"cache", "compile"}  # and the device, which is given here
    of_tables = {"path_column", "label_column", "split_column", "label_separator", "root"}
    not_asked_for = {"channels", "group_by", "pretrained", "teacher", "time_budget", "patience"} | of_tables
    assert {name for name, value in config.items() if value == "auto"} == means_of_the_machine
    assert {name for name, value in config.items() if value is None} == not_asked_for
    assert config["name"] == "colours"
    assert (config["augment"], config["flip"], config["mixup"], config["cutmix"]) == ("medium", True, 0.0, 1.0)


@pytest.mark.parametrize(
    ("model", "name"), [("vit_micro_patch16", "muon8"), ("lucarne_xs", "adamw"), ("resnet18", "adamw")]
)
def test_the_optimizer_is_the_one_that_suits_the_model(colours, tmp_path, model, name):
    result = vitrail.train(colours, model=model, image_size=32, epochs=1, out=tmp_path, quiet=True)
    config = json.loads((result.path / "config.json").read_text())
    assert config["optimizer"] == name
    # Fine-tuning its weights is another matter: steps that suit random weights do not suit them.
    tuned = vitrail.train(colours, model=str(result.path / "model.safetensors"), epochs=1, out=tmp_path, quiet=True)
    assert json.loads((tuned.path / "config.json").read_text())["optimizer"] == "adamw"


def test_the_report_is_one_page_that_needs_no_network(trained):
    page = trained.report_path.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*['\"]?http", page)
    assert f"vitrail predict {trained.path}" in page
    assert "12" in page
    assert json.loads((trained.path / "report.json").read_text())


@pytest.fixture(scope="module")
def twin(trained, tmp_path_factory):
    """The same training again, from the configuration that the first one left."""
    options = json.loads((trained.path / "config.json").read_text())
    out = tmp_path_factory.mktemp("twin")
    return vitrail.train(**{**options, "out": out, "workers": 3, "cache": "off"})


def test_the_configuration_of_a_run_makes_the_same_weights_again_bit_for_bit(trained, twin):
    """In another number of threads and without the cache, so neither decides anything."""
    assert_same_weights(trained.path, twin.path)
    assert rows(trained.path) == rows(twin.path)
    assert twin.metrics["test"].to_dict() == trained.metrics["test"].to_dict()


def test_another_seed_makes_other_weights(trained, colours, quick, tmp_path):
    other = vitrail.train(colours, **quick, epochs=1, seed=1, out=tmp_path)
    ours, theirs = weights(trained.path), weights(other.path)
    assert not torch.equal(ours["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"])
    assert Run(trained.path).manifest_path.read_text() != Run(other.path).manifest_path.read_text()


def test_a_run_is_never_written_over(run_copy, colours, quick, contents, tmp_path):
    taken = tmp_path / "out" / "train" / "mine"
    taken.parent.mkdir(parents=True)
    run_copy.rename(taken)
    before = contents(taken)
    second = vitrail.train(colours, **quick, epochs=1, out=tmp_path / "out", name="mine")
    assert second.path == tmp_path / "out" / "train" / "mine-2"
    assert contents(taken) == before


def test_all_splits_share_one_class_index_though_val_lacks_a_class(pictures, quick, tmp_path):
    """The folders of val number its classes 0 and 1; with an index of its own its red would be called green."""
    source = tmp_path / "source"
    pictures(source / "train", {"blue": 12, "green": 12, "red": 12})
    pictures(source / "val", {"blue": 4, "red": 4})
    pictures(source / "test", {"red": 4})
    result = vitrail.train(source, **quick, epochs=6, lr=1e-3, out=tmp_path)
    assert result.metrics["val"].accuracy.value == 1
    assert result.metrics["test"].accuracy.value == 1
    assert result.metrics["val"].absent_classes == ("green",)
    assert "No image of test shows blue, green" in result.report_path.read_text(encoding="utf-8")


def test_a_time_budget_ends_the_training_with_the_schedule_at_its_end(colours, quick, tmp_path):
    result = vitrail.train(colours, **quick, time_budget="3s", lr=1e-3, out=tmp_path)
    assert not result.interrupted
    assert result.elapsed_s >= 3
    history = read_metrics(result.path / "metrics.csv")
    assert max(row.lr for row in history) > 5e-4
    assert history[-1].lr < 1e-4
    assert result.metrics["val"].num_images == 6


@pytest.fixture(scope="module")
def without_progress(colours, quick, tmp_path_factory):
    """A training that cannot get better, because nothing moves, and is not waited for."""
    return vitrail.train(colours, **quick, epochs=50, lr=0.0, patience=2, out=tmp_path_factory.mktemp("patience"))


def test_patience_ends_a_training_that_gets_no_better(without_progress):
    assert not without_progress.interrupted
    assert len(rows(without_progress.path)) == 3
    assert without_progress.report_path.exists()


def test_resuming_a_training_that_was_stopped_early_trains_no_further(without_progress):
    state = Run(without_progress.path).state_path
    before = state.read_bytes()
    again = vitrail.train(without_progress.path, resume=True, quiet=True)
    assert not again.interrupted
    assert len(rows(again.path)) == 3
    assert state.read_bytes() == before


def test_resuming_a_finished_training_changes_nothing(run_copy, trained, contents):
    before = contents(run_copy)
    again = vitrail.train(run_copy, resume=True, quiet=True)
    assert again.path == run_copy
    assert again.metrics["test"].to_dict() == trained.metrics["test"].to_dict()
    assert_same_weights(run_copy, trained.path)
    after = contents(run_copy)
    assert after.keys() == before.keys()
    kept = ("config.json", "metrics.csv", "manifest.csv", "evaluation.json", "labels.json", "state.safetensors")
    assert [name for name in kept if after[name] != before[name]] == []


def test_a_resumed_run_refuses_options_that_it_would_pass_over(trained):
    with pytest.raises(ConfigError, match="epochs, lr cannot be given with resume"):
        vitrail.train(trained.path, resume=True, epochs=9, lr=0.1)


def test_local_enhancement_and_fusion_reach_the_model(trained, colours, quick, tmp_path):
    result = vitrail.train(colours, **quick, epochs=1, local=True, fusion=True, drop_path=0.0, out=tmp_path)
    options = vitrail.load_checkpoint(result.path).model.spec.options
    assert (options["local"], options["fusion"], options["drop_path"]) == (True, True, 0.0)
    names, plain = weights(result.path), weights(trained.path)
    assert any(".local." in name for name in names)
    assert any(name.startswith("fusion.") for name in names)
    assert not any(".local." in name or name.startswith("fusion.") for name in plain)


def test_pretrained_takes_over_all_weights_of_a_run_with_the_same_classes(trained, colours, quick, tmp_path):
    # A learning rate of 0 leaves the weights as they were loaded.
    result = vitrail.train(colours, **quick, epochs=1, lr=0.0, pretrained=str(trained.path), seed=5, out=tmp_path)
    assert_same_weights(result.path, trained.path)


def test_pretrained_leaves_the_head_fresh_where_the_classes_differ(trained, pictures, quick, tmp_path):
    source = pictures(tmp_path / "others", {"blue": 6, "red": 6, "white": 6})
    result = vitrail.train(source, **quick, epochs=1, lr=0.0, pretrained=str(trained.path), seed=5, out=tmp_path)
    ours, theirs = weights(result.path), weights(trained.path)
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {"head.weight", "head.bias"}
    assert vitrail.load_checkpoint(result.path).classes == ("blue", "red", "white")


def test_sgd_trains_with_its_own_defaults(colours, quick, tmp_path):
    result = vitrail.train(colours, **quick, epochs=2, optimizer="sgd", out=tmp_path)
    config = json.loads((result.path / "config.json").read_text())
    assert config["weight_decay"] == 1e-4
    assert config["lr"] == pytest.approx(0.1 * 8 / 256)
    with safe_open(result.path / "state.safetensors", framework="pt") as state:
        assert any(name.endswith("/momentum_buffer") for name in state.keys())  # noqa: SIM118 - no mapping
    history = read_metrics(result.path / "metrics.csv")
    assert history[1].train_loss < history[0].train_loss


def test_accumulated_batches_are_one_large_batch(colours, quick, tmp_path):
    """36 images: three steps of twelve, or of three fours; the gradient is the mean over the same images."""
    plain = {"epochs": 2, "optimizer": "sgd", "lr": 0.01, "augment": "none", "drop_path": 0.0, "precision": "fp32"}
    large = vitrail.train(colours, **{**quick, **plain, "batch_size": 12}, out=tmp_path, name="large")
    small = vitrail.train(colours, **{**quick, **plain, "batch_size": 4}, accumulate=3, out=tmp_path, name="small")
    assert [row["step"] for row in rows(large.path)] == [row["step"] for row in rows(small.path)] == ["3", "6"]
    ours, theirs = weights(large.path), weights(small.path)
    # Measured: 1.5e-8, from sums in another order; with two batches per step instead of three 6e-3.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-6


def test_a_batch_larger_than_the_data_becomes_all_of_it(colours, quick, tmp_path):
    result = vitrail.train(colours, **{**quick, "batch_size": 500}, epochs=2, out=tmp_path)
    assert json.loads((result.path / "config.json").read_text())["batch_size"] == 36
    assert [row["step"] for row in rows(result.path)] == ["1", "2"]


def test_the_smallest_source_that_can_be_divided_is_trained_on(pictures, quick, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 2, "red": 2})
    result = vitrail.train(source, **quick, epochs=1, out=tmp_path)
    assert list(result.metrics) == ["val"]
    assert "There are no test images" in result.report_path.read_text(encoding="utf-8")


def test_model_auto_is_written_down_by_its_name(pictures, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 4, "red": 4}, side=40)
    result = vitrail.train(source, epochs=1, quiet=True, out=tmp_path)
    config = json.loads((result.path / "config.json").read_text())
    assert (config["model"], config["image_size"], config["batch_size"]) == ("lucarne_s", 64, 4)
    assert result.path.name == "lucarne_s"


def test_names_of_classes_may_be_any_that_a_file_system_holds(quick, pictures, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 4, "red": 4})
    (source / "blue").rename(source / "[bold]bl\\ü")
    (source / "red").rename(str(source) + "/r\udced\n")  # a byte that is not UTF-8, and a line break
    result = vitrail.train(source, **quick, epochs=1, out=tmp_path)
    assert vitrail.load_checkpoint(result.path).classes == ("[bold]bl\\ü", "r\udced\n")
    assert Run(result.path).read_labels() == ("[bold]bl\\ü", "r\udced\n")
    answers = vitrail.predict(result.path, [source])
    assert len(answers) == 8
    assert vitrail.evaluate(result.path, out=tmp_path).metrics.num_images == result.metrics["test"].num_images


def test_the_python_call_and_the_flags_make_the_same_run(command, trained, colours, tmp_path):
    flags = ("--model", "vit_micro_patch8", "--image-size", 16, "--batch-size", 8, "--workers", 1, "--device", "cpu")
    more = ("--epochs", 6, "--lr", "1e-3", "--out", tmp_path, "--name", "colours", "--quiet")
    answer = command("train", colours, *flags, *more)
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert_same_weights(tmp_path / "train" / "colours", trained.path)
    ours, theirs = (Run(path).read_config(TrainConfig) for path in (tmp_path / "train" / "colours", trained.path))
    assert from_options(TrainConfig, {**vars(ours), "out": theirs.out}) == theirs


def test_what_is_shown_while_training_has_the_numbers_and_whole_commands(command, colours, quick, tmp_path):
    out = tmp_path / "a-folder-of-runs-whose-name-does-not-fit-into-one-line-of-a-narrow-terminal-of-80-columns"
    answer = command(
        *("train", colours, "--model", quick["model"], "--image-size", 16, "--epochs", 2, "--out", out, "--name", "r")
    )
    assert (answer.code, answer.out) == (0, "")
    assert "36 train, 6 val, 12 test" in answer.err
    for epoch, row in enumerate(read_metrics(out / "train" / "r" / "metrics.csv"), start=1):
        assert f"epoch {epoch}/2  train loss {row.train_loss:.3f}  val loss {row.val_loss:.3f}" in answer.err
    lines = answer.err.splitlines()
    assert f"report   {out}/train/r/report.html" in lines
    assert any(line.endswith(f"vitrail export {out}/train/r") for line in lines)
    accuracy = json.loads((out / "train" / "r" / "evaluation.json").read_text())["test"]["accuracy"]
    assert any(line.startswith(f"test accuracy {accuracy['value']:.1%}") for line in lines)


def test_the_kept_weights_are_those_of_the_best_epoch(trained):
    history = read_metrics(trained.path / "metrics.csv")
    assert trained.metrics["val"].accuracy.value == max(row.val_accuracy for row in history)
    assert all(math.isfinite(row.train_loss) for row in history)
    page = json.loads((trained.path / "report.json").read_text())
    best = max(history, key=lambda row: (row.val_accuracy, -row.val_loss))
    assert page["best_epoch"] == best.epoch + 1
    assert np.isclose(page["timings_s"]["training"], trained.elapsed_s)
    assert re.fullmatch(r"[\d.]+% of the first epoch, [\d.]+% of the last", page["details"]["waiting for images"])
