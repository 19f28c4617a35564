"""What people get wrong, through the command line: one clear sentence, the right exit code, nothing half-written."""

import errno
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitrail
from vitrail.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    StorageError,
    TrainingError,
    UnknownNameError,
)
from vitrail.runtime import files

FLAGS = ("--model", "vit_micro_patch8", "--image-size", 16, "--batch-size", 8, "--workers", 1, "--epochs", 1, "--quiet")


@pytest.fixture
def train(command, tmp_path):
    """Run `train` with quick options into tmp_path/runs."""

    def run(source, *more):
        return command("train", source, *FLAGS, "--out", tmp_path / "runs", *more)

    return run


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture
def untouched(tmp_path):
    """Afterwards there is no run, and nothing temporary."""
    yield
    assert list((tmp_path / "runs").glob("*/*")) == []
    assert temporary_files(tmp_path) == []


def source_without_pictures(folder, pictures):
    folder.mkdir()


def source_of_one_class(folder, pictures):
    pictures(folder, {"red": 4})


def source_with_one_picture_of_a_class(folder, pictures):
    pictures(folder, {"red": 4, "blue": 1, "green": 1})


def source_of_broken_files(folder, pictures):
    for path in pictures(folder, {"red": 2, "blue": 2}).rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")


def source_with_a_class_of_broken_files(folder, pictures):
    pictures(folder, {"red": 4, "blue": 4})
    for path in (folder / "blue").iterdir():
        path.write_bytes(b"")


def source_that_is_a_picture(folder, pictures):
    shutil.copy(pictures(folder.with_name("other"), {"red": 1}) / "red" / "00.png", folder)


def source_with_a_class_that_is_not_in_train(folder, pictures):
    pictures(folder / "train", {"red": 4, "blue": 4})
    pictures(folder / "val", {"red": 2, "green": 2})


def source_with_two_folders_for_a_split(folder, pictures):
    pictures(folder / "train", {"red": 4, "blue": 4})
    pictures(folder / "val", {"red": 2})
    pictures(folder / "validation", {"red": 2})


@pytest.mark.parametrize("verb", ["train", "data"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (source_without_pictures, "has no pictures in class folders"),
        (source_of_one_class, "has one class only, red. A classifier needs at least two"),
        (source_with_one_picture_of_a_class, "train and val in: blue, green. Each class needs at least 2"),
        (source_of_broken_files, "None of the 4 pictures"),
        (source_with_a_class_of_broken_files, "No picture of these classes in source can be used: blue"),
        (source_that_is_a_picture, "source is a file that is no source. A source is a folder"),
        (source_with_a_class_that_is_not_in_train, "no usable picture in train: green"),
        (source_with_two_folders_for_a_split, "val and validation, which both mean val"),
    ],
)
def test_images_that_nothing_can_be_learned_from(monkeypatch, command, pictures, untouched, tmp_path, verb, make, says):
    make(tmp_path / "source", pictures)
    monkeypatch.chdir(tmp_path)
    answer = command(verb, "source", "--out", "runs", *(FLAGS if verb == "train" else ()))
    assert answer.code == 1
    assert says in answer.sentence()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("flowrs", "There is no file or folder flowrs. Did you mean 'flowers'?"),
        ("digit", "Did you mean 'digits'?"),
        ("", "The source is an empty name"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_source_that_does_not_exist(monkeypatch, train, untouched, tmp_path, source, says):
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path)
    answer = train(source)
    assert answer.code == 1
    assert says in answer.sentence()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model", "vit_mikro_patch8"), "There is no model 'vit_mikro_patch8'. Did you mean 'vit_micro_patch8'"),
        (("--image-size", 20), "20 x 20 pixels is not a whole number of patches of 8 x 8"),
        (("--optimizer", "adam"), "There is no optimizer 'adam'. Did you mean 'adamw'"),
        (("--optimizer", "adam", "--lr", 0.1, "--weight-decay", 0), "Did you mean 'adamw'"),
        (("--device", "gpu"), "device is 'gpu'; it takes auto, cpu, cuda"),
        (("--name", "a/b"), "name is 'a/b'; it takes the name of one folder"),
    ],
)
def test_choices_that_do_not_fit(train, colours, untouched, flags, says):
    answer = train(colours, *flags)
    assert answer.code == 2
    assert says in answer.sentence()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--epocs", 3), "vitrail train has no flag --epocs. Did you mean '--epochs'"),
        (("--epochs",), "Missing value for argument '--epochs'"),
        (("more",), "does not know what to do with 'more'"),
        (("--augment", "mediun"), "medium"),
        (("--epochs", 0), "epochs is 0; it takes a number from 1"),
        (("--epochs", "many"), "many"),
        (("--lr", "nan"), "lr is nan"),
        (("--time-budget", "-3m"), "is not a time"),
    ],
)
def test_flags_that_do_not_exist_or_have_no_such_value(train, colours, untouched, flags, says):
    answer = train(colours, *flags)
    assert answer.code == 2
    assert says in answer.sentence()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epocs": 3}, "There is no option 'epocs'. Did you mean 'epochs'"),
        ({"epochs": "3"}, "epochs is '3', of the type str; it takes int"),
        ({"epochs": 2.5}, "epochs is 2.5, of the type float; it takes int"),
        ({"local": "no"}, "local is 'no', of the type str; it takes bool"),
        ({"lr": True}, "lr is True, of the type bool; it takes float or 'find'"),
        ({"augment": 3}, "augment is 3; it takes 'auto'"),
        ({"seed": -1}, "seed is -1"),
        ({"val_fraction": 0}, "val_fraction is 0; it takes a number above 0"),
    ],
)
def test_python_refuses_options_with_the_same_error(colours, untouched, tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        vitrail.train(colours, **options, out=tmp_path / "runs")


def pickled(path: Path, run: Path) -> Path:
    torch.save({"weight": torch.zeros(2)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def pickled_by_another_name(path: Path, run: Path) -> Path:
    torch.save({"weight": torch.zeros(2)}, path)
    return path


def pickle_of_old(path: Path, run: Path) -> Path:
    path.with_suffix(".bin").write_bytes(pickle.dumps({"weight": [0.0]}))
    return path.with_suffix(".bin")


def cut_off(path: Path, run: Path) -> Path:
    data = (run / "model.safetensors").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def changed(path: Path, run: Path) -> Path:
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return path


def empty(path: Path, run: Path) -> Path:
    path.touch()
    return path


def a_picture(path: Path, run: Path) -> Path:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" * 9)
    return path


def with_a_value_that_is_not_finite(path: Path, run: Path) -> Path:
    tensors = load_file(run / "model.safetensors")
    tensors["head.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    return path


def of_another_patch(path: Path, run: Path) -> Path:
    vitrail.save_checkpoint(path, vitrail.create_model("vit_micro_patch4", image_size=16, num_classes=3))
    return path


def of_another_depth(path: Path, run: Path) -> Path:
    tensors = load_file(run / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.5.")}, path)
    return path


def of_something_else(path: Path, run: Path) -> Path:
    save_file({"encoder.weight": torch.zeros(3)}, path)
    return path


def missing(path: Path, run: Path) -> Path:
    path.with_name("weights.safetensors").touch()
    return path.with_name("wieghts.safetensors")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (pickled, "looks like a pickle, which can run any code when it is loaded"),
        (pickled_by_another_name, "looks like a pickle"),
        (pickle_of_old, "looks like a pickle"),
        (cut_off, "is cut off, damaged or no safetensors file"),
        (changed, "was changed or damaged after it was written"),
        (empty, "is empty or cut off: it has 0 bytes"),
        (a_picture, "is cut off, damaged or no safetensors file"),
        (with_a_value_that_is_not_finite, "head.weight has values that are not finite"),
        (of_another_patch, "is of another architecture: patch_embed.proj.weight has the shape (128, 3, 4, 4)"),
        (of_another_depth, "Likely cause: another number of blocks"),
        (of_something_else, "file"),
        (missing, "Did you mean 'weights.safetensors'"),
    ],
)
def test_weights_that_cannot_be_started_from(train, colours, trained, untouched, tmp_path, make, says):
    path = make(tmp_path / "file.safetensors", trained.path)
    answer = train(colours, "--pretrained", path)
    assert answer.code == 1
    assert says in answer.sentence()
    assert path.name in answer.sentence()
    with pytest.raises(CheckpointError):
        vitrail.evaluate(path, data=colours, out=tmp_path / "runs")


def test_another_size_of_model_is_refused_with_both_sizes(train, colours, trained, untouched):
    answer = train(colours, "--model", "vit_tiny_patch8", "--pretrained", trained.path)
    assert answer.code == 1
    assert "is of a model with 4 attention heads; this one has 3" in answer.sentence()


def test_a_run_is_not_taken_for_images(train, trained, untouched):
    answer = train(trained.path)
    assert answer.code == 2
    assert "is a run, not images. Add --resume to go on with it." in answer.sentence()


def test_only_a_run_of_train_can_be_resumed(command, trained, colours, contents, tmp_path):
    """The folders of the other verbs are runs by their looks, with a configuration and an environment."""
    admission = vitrail.admit(colours, out=tmp_path / "other")
    evaluation = vitrail.evaluate(trained.path, out=tmp_path / "other")
    before = contents(tmp_path)
    for folder in (admission.path, evaluation.path, colours, tmp_path):
        answer = command("train", folder, "--resume")
        assert answer.code == 1
        assert f"{folder} is not a run" in answer.sentence()
        for verb, more in (("predict", [colours]), ("evaluate", []), ("export", [])):
            answer = command(verb, folder, *more)
            assert answer.code == 1
            assert f"There is no model.safetensors in {folder}" in answer.sentence()
    answer = command("train", trained.path.with_name("colors"), "--resume")
    assert answer.code == 1
    assert "Did you mean 'colours'" in answer.sentence()
    assert contents(tmp_path) == before


def test_a_place_that_cannot_hold_runs(command, colours, tmp_path):
    (tmp_path / "file").write_text("mine")
    for verb, more in (("train", FLAGS), ("data", ())):
        for out in (tmp_path / "file", "/proc/nowhere"):
            answer = command(verb, colours, *more, "--out", out)
            assert answer.code == 1
            assert "cannot be written" in answer.sentence()
    assert (tmp_path / "file").read_text() == "mine"


def fill_the_disk_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when the file of this name is flushed to it."""
    flush = files._flush_to_disk

    def full(path):
        if name in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(files, "_flush_to_disk", full)


@pytest.mark.parametrize("name", ["config.json", "manifest.csv", "environment.json"])
def test_a_disk_that_is_full_at_the_start_leaves_no_run(monkeypatch, train, colours, untouched, name):
    fill_the_disk_at(monkeypatch, name)
    answer = train(colours)
    assert answer.code == 1
    assert answer.sentence().startswith("The disk is full: ")
    assert name in answer.sentence()


@pytest.mark.parametrize("name", ["metrics.csv", "model.safetensors", "state.safetensors", "report.html"])
def test_a_disk_that_fills_while_training_leaves_whole_files_and_no_look_of_success(
    monkeypatch, train, command, colours, tmp_path, name
):
    with monkeypatch.context() as patch:
        fill_the_disk_at(patch, name)
        answer = train(colours)
    assert answer.code == 1
    assert answer.sentence().startswith("The disk is full: ")
    assert temporary_files(tmp_path) == []
    run = tmp_path / "runs" / "train" / "vit_micro_patch8"
    assert not (run / name).exists()
    assert not (run / "report.html").exists()
    answer = command("train", run, "--resume", "--quiet")
    if (run / "state.safetensors").exists():
        assert (answer.code, answer.err) == (0, "")
        assert (run / "report.html").exists()
    else:
        assert answer.code == 1
        assert "There is no saved training" in answer.sentence()


@pytest.mark.parametrize("name", ["evaluation.json", "predictions.csv", "report.html", "manifest.csv"])
def test_a_full_disk_leaves_no_part_of_an_evaluation_or_a_manifest(
    monkeypatch, command, trained, colours, tmp_path, name
):
    fill_the_disk_at(monkeypatch, name)
    words = ("data", colours) if name == "manifest.csv" else ("evaluate", trained.path)
    answer = command(*words, "--out", tmp_path)
    assert answer.code == 1
    assert answer.sentence().startswith("The disk is full: ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture
def _files_up_to_a_megabyte():
    """Let the system itself refuse to write more; the weights are three times as large."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_files_up_to_a_megabyte")
def test_a_write_that_the_system_refuses_is_told_too(train, colours, tmp_path):
    answer = train(colours)
    assert answer.code == 1
    assert "model.safetensors cannot be written" in answer.sentence()
    assert temporary_files(tmp_path) == []
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_loss_that_is_not_finite_stops_the_training_with_its_step(train, command, colours, tmp_path):
    answer = train(colours, "--lr", 1000, "--precision", "fp32", "--epochs", 60)
    assert answer.code == 1
    assert "Training stopped at step " in answer.sentence()
    assert "Try a tenth of that rate (--lr)" in answer.sentence()
    assert temporary_files(tmp_path) == []
    run = tmp_path / "runs" / "train" / "vit_micro_patch8"
    assert not (run / "report.html").exists()
    assert not (run / "evaluation.json").exists()
    answer = command("train", run, "--resume", "--quiet")
    assert answer.code == 1
    assert "There is no saved training" in answer.sentence()


def test_python_raises_the_classes_that_the_command_line_turns_into_sentences(colours, trained, tmp_path):
    calls = {
        DataError: lambda: vitrail.train(tmp_path / "nowhere"),
        UnknownNameError: lambda: vitrail.train(colours, model="vgg", out=tmp_path / "runs"),
        ConfigError: lambda: vitrail.train(trained.path, out=tmp_path / "runs"),
        CheckpointError: lambda: vitrail.predict(tmp_path / "nowhere", colours),
        StorageError: lambda: vitrail.admit(colours, out="/proc/nowhere"),
        TrainingError: lambda: vitrail.train(
            colours,
            model="vit_micro_patch8",
            image_size=16,
            epochs=60,
            lr=1000,
            precision="fp32",
            quiet=True,
            out=tmp_path / "runs",
        ),
    }
    for kind, call in calls.items():
        with pytest.raises(kind):
            call()
        assert issubclass(kind, vitrail.VitrailError)
    assert issubclass(BundleError, vitrail.VitrailError)


def test_models_that_do_not_exist_are_told_with_the_nearest(command):
    answer = command("models", "vit_tiny_pach16")
    assert answer.code == 2
    assert "No model matches vit_tiny_pach16. Did you mean 'vit_tiny_patch16'" in answer.sentence()


def test_a_misspelt_verb_shows_the_verbs_and_the_nearest(command):
    answer = command("tarin", "x")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("vitrail: There is no verb 'tarin'. Did you mean 'train'?")
