"""`train` with a teacher: what it records, what it leaves behind, how it is resumed, and which teachers it refuses."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import vitrail
from vitrail.config import TrainConfig
from vitrail.errors import CheckpointError, ConfigError
from vitrail.models.checkpoint import load_checkpoint, save_checkpoint
from vitrail.training import Run, TrainProgress, read_metrics
from vitrail.verbs.teacher import period_that_pays


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums over several threads may be rounded otherwise on a busy machine; what is tested here is resuming."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher(trained, tmp_path_factory):
    """The weights of a trained run, with the mean and the size of another preprocessing, in a file of their own."""
    known = load_checkpoint(trained.path)
    path = tmp_path_factory.mktemp("teachers") / "teacher.safetensors"
    other = replace(known.preprocess, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    save_checkpoint(path, known.model, classes=known.classes, preprocess=other)
    return path


@pytest.fixture(scope="module")
def options(quick, teacher):
    """Everything random is on, and the features are compared."""
    random = {"augment": "strong", "drop_path": 0.3, "lr": 1e-3}
    return {**quick, **random, "epochs": 3, "teacher": str(teacher), "distill_features": 0.5}


@pytest.fixture(scope="module", params=["off", 2])
def whole(request, colours, options, tmp_path_factory):
    """A training that nobody interrupted, with fresh answers or kept ones."""
    return vitrail.train(colours, **options, distill_cache=request.param, out=tmp_path_factory.mktemp("whole"))


def weights(path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).model.state_dict()


def test_the_configuration_records_the_teacher_and_the_weights_hold_nothing_of_it(whole, trained, teacher):
    config = json.loads((whole.path / "config.json").read_text())
    assert (config["teacher"], config["distill"], config["distill_weight"]) == (str(teacher), "soft", 0.5)
    assert weights(whole.path).keys() == weights(trained.path).keys()
    with safe_open(whole.path / "state.safetensors", framework="pt") as state:
        names = set(state.keys())
    assert "companion/weight" in names  # the projection: a training goes on with it
    kept = {"model", "ema", "optimizer", "rng", "companion"}
    assert {name.split("/")[0] for name in names} == kept


@pytest.mark.parametrize("call", [2, 4, 10])
def test_interrupted_and_resumed_is_the_same_as_one_go_bit_for_bit(
    monkeypatch, whole, colours, options, tmp_path, call
):
    """In the first epoch, at its end, and in the third, whose batches are those of the first if answers are kept."""
    original, calls = TrainProgress.step, []

    def interrupting(self, *arguments):
        original(self, *arguments)
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)

    cache = Run(whole.path).read_config(TrainConfig).distill_cache
    with monkeypatch.context() as patch:
        patch.setattr(TrainProgress, "step", interrupting)
        stopped = vitrail.train(colours, **options, distill_cache=cache, out=tmp_path)
    assert stopped.interrupted
    resumed = vitrail.train(stopped.path, resume=True, quiet=True)
    ours, theirs = weights(resumed.path), weights(whole.path)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    losses = [[row.train_loss for row in read_metrics(r.path / "metrics.csv")] for r in (resumed, whole)]
    assert losses[0] == losses[1]


def test_a_teacher_changes_what_is_learnt(trained, colours, quick, tmp_path):
    plain = vitrail.train(colours, **quick, epochs=1, out=tmp_path)
    taught = [
        vitrail.train(colours, **quick, epochs=1, teacher=str(trained.path), out=tmp_path, **more)
        for more in ({}, {"distill": "hard"}, {"distill_temperature": 1.0})
    ]
    heads = [weights(result.path)["head.weight"] for result in (plain, *taught)]
    assert all(not torch.equal(one, other) for i, one in enumerate(heads) for other in heads[:i])


def test_a_teacher_whose_share_is_nothing_changes_nothing(trained, colours, quick, tmp_path):
    plain = vitrail.train(colours, **quick, epochs=2, lr=1e-3, out=tmp_path)
    taught = vitrail.train(
        colours, **quick, epochs=2, lr=1e-3, teacher=str(trained.path), distill_weight=0.0, out=tmp_path
    )
    ours, theirs = weights(taught.path), weights(plain.path)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_what_is_kept_repeats_order_augmentation_and_mixtures(colours, quick, trained, tmp_path):
    """With no learning, the loss of an epoch is that of its images alone."""
    still = {**quick, "lr": 0.0, "drop_path": 0.0, "epochs": 4, "teacher": str(trained.path), "augment": "strong"}
    kept = vitrail.train(colours, **still, distill_cache=2, out=tmp_path)
    losses = [row.train_loss for row in read_metrics(kept.path / "metrics.csv")]
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)
    fresh = vitrail.train(colours, **still, out=tmp_path)
    fresh_losses = [row.train_loss for row in read_metrics(fresh.path / "metrics.csv")]
    assert len(set(fresh_losses)) == 4
    assert fresh_losses[:2] == pytest.approx(losses[:2], rel=1e-3)  # the answers are kept as fp16


def test_the_classes_of_a_teacher_may_stand_in_another_order(trained, colours, quick, tmp_path):
    known = load_checkpoint(trained.path)
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in (known.model.head.weight, known.model.head.bias):
            parameter.copy_(parameter[order].clone())
    classes = tuple(known.classes[place] for place in order)
    save_checkpoint(tmp_path / "t.safetensors", known.model, classes=classes, preprocess=known.preprocess)
    straight, reordered = (
        vitrail.train(colours, **quick, epochs=2, lr=1e-3, teacher=str(path), distill_weight=1.0, out=tmp_path)
        for path in (trained.path, tmp_path / "t.safetensors")
    )
    ours, theirs = weights(reordered.path), weights(straight.path)
    # Seen: 0 on the machine of this test; AdamW's first steps enlarge what is rounded otherwise.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-4


def test_a_teacher_that_is_not_there_is_one_sentence(command, colours, quick, tmp_path):
    answer = command("train", colours, "--teacher", tmp_path / "gone", "--out", tmp_path / "out", "--quiet")
    assert answer.code == 1
    assert "The teacher cannot be opened" in answer.sentence()
    assert str(tmp_path / "gone") in answer.sentence()
    assert not (tmp_path / "out").exists()


def test_a_resumed_training_says_when_its_teacher_has_gone(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "teacher": str(tmp_path / "gone.safetensors")}))
    with pytest.raises(CheckpointError, match=r"The teacher cannot be opened, .*gone\.safetensors"):
        vitrail.train(run, resume=True, quiet=True)


def test_a_teacher_that_has_learnt_the_images_of_the_test_is_told_of(trained, colours, quick, tmp_path):
    taught = {**quick, "epochs": 1, "teacher": str(trained.path), "out": tmp_path}
    same_split, other_split = (vitrail.train(colours, **taught, seed=seed) for seed in (0, 1))
    sentence = "validation and test images, so the student's accuracy on them is too high"
    caveats = [
        " ".join(json.loads((run.path / "report.json").read_text())["caveats"]) for run in (same_split, other_split)
    ]
    assert sentence not in caveats[0]
    assert sentence in caveats[1]


def test_a_bundle_is_no_teacher(bundle, colours, quick, tmp_path):
    with pytest.raises(ConfigError, match="is a bundle; name the run"):
        vitrail.train(colours, **quick, teacher=str(bundle.path), out=tmp_path)


def test_a_teacher_of_other_classes_is_refused_before_anything_is_made(trained, pictures, quick, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 6, "white": 6})
    with pytest.raises(ConfigError, match=r"3 classes and the images show 2: 'white' only the images"):
        vitrail.train(source, **quick, teacher=str(trained.path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"distill": "hard"}, "distill says how to learn from a teacher, and none is given"),
        ({"distill_weight": 0.1, "distill_cache": 3}, "distill_weight, distill_cache says"),
        ({"teacher": "t", "distill": "mild"}, "distill is 'mild'; it takes 'soft', 'hard'"),
        ({"teacher": "t", "distill_weight": 1.5}, "distill_weight is 1.5; it takes a number from 0 to 1"),
        ({"teacher": "t", "distill_temperature": 0.0}, "distill_temperature is 0.0; it takes a number from 0.1"),
        ({"teacher": "t", "distill_cache": 0}, "distill_cache is 0; it takes 'auto', 'off' or a number of epochs"),
        ({"teacher": "t", "distill_cache": 2.5}, "distill_cache is 2.5; it takes"),
        ({"teacher": "t", "distill_cache": "on"}, "distill_cache is 'on'; it takes"),
    ],
)
def test_options_outside_their_range_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(source="x", **given)


def test_answers_are_kept_only_where_that_halves_the_work():
    # From 50 epochs on the period is a fifth of them, and five times a step's cost is where it begins to pay:
    # (T / 5 + S) <= (T + S) / 2 where T >= 5 S / 3, with S three forward passes of the student.
    assert period_that_pays(100, teacher_macs=5000, step_macs=3000) == 20
    assert period_that_pays(100, teacher_macs=4999, step_macs=3000) is None
    assert period_that_pays(50, teacher_macs=5000, step_macs=3000) == 10
    assert period_that_pays(20, teacher_macs=10**9, step_macs=1) is None  # no more than twice the fewest views
    assert period_that_pays(21, teacher_macs=10**9, step_macs=1) == 10


@pytest.mark.parametrize(("pays", "cache"), [(2, 2), (None, "off")])
def test_auto_writes_down_what_it_decided(monkeypatch, colours, quick, trained, tmp_path, pays, cache):
    monkeypatch.setattr("vitrail.verbs.teacher.period_that_pays", lambda *_: pays)
    result = vitrail.train(colours, **quick, epochs=1, teacher=str(trained.path), distill_cache="auto", out=tmp_path)
    assert Run(result.path).read_config(TrainConfig).distill_cache == cache
