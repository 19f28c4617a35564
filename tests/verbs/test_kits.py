"""What the verbs do otherwise from task to task, on answers made by hand."""

import numpy as np
import pytest
from PIL import Image

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Split
from vitrail.errors import ConfigError
from vitrail.evaluation.predict import Outputs
from vitrail.evaluation.thresholds import LabelCalibration
from vitrail.tasks import Classification, MultiLabel, balanced_pairs, balanced_weights
from vitrail.verbs.kits import KITS

PREPROCESS = Preprocess(image_size=(8, 8))
CALIBRATION = LabelCalibration(
    temperature=2.0, thresholds=(0.5, 0.3, 0.6), common_threshold=0.5, error_before=0, error_after=0, num_images=9
)


class GreyPictures:
    def open(self, path, min_side):
        return Image.new("RGB", (8, 8), (int(path),) * 3)


def split_of(labels):
    labels = np.asarray(labels)
    paths = [str(place) for place in range(len(labels))]
    return Split(
        name="test",
        classes=("a", "b", "c"),
        paths=paths,
        labels=labels,
        sizes=np.full((len(labels), 2), 8, np.int32),
        pictures=GreyPictures(),
    )


def outputs_of(logits, split):
    return Outputs(np.asarray(logits, np.float32), split.labels, np.arange(len(split)))


LABELS = np.array([[True, False, False], [False, True, True], [False, False, False], [True, True, False]])
# Probabilities at temperature 2: 0.88 where the logit is 4, 0.27 at -2, 0.38 at -1, 0.73 at 2.
LOGITS = [[4, -2, -2], [2, -2, 4], [-2, -2, -2], [-4, -1, 2]]


def test_a_split_tells_its_task_and_counts_what_each_picture_shows():
    several, one = split_of(LABELS), split_of(np.array([0, 2, 2, 0]))
    assert (several.task, several.counts) == ("multilabel", (2, 2, 1))
    assert (one.task, one.counts) == ("classification", (2, 0, 2))


def test_each_task_completes_what_the_configuration_leaves_open():
    config = TrainConfig(source="x")
    assert KITS["classification"].complete(config).label_smoothing == 0.1
    assert KITS["multilabel"].complete(config).label_smoothing == 0
    for kit in KITS.values():
        assert kit.complete(TrainConfig(source="x", label_smoothing=0.3)).label_smoothing == 0.3
    balanced = TrainConfig(source="x", sampling="balanced")
    assert KITS["classification"].complete(balanced).sampling == "balanced"
    with pytest.raises(ConfigError, match=r"sampling is balanced.*class_weights balanced"):
        KITS["multilabel"].complete(balanced)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_tasks_are_made_of_the_configuration_and_the_training_images(weights):
    config = TrainConfig(source="x", label_smoothing=0.2, class_weights=weights)
    one, several = split_of(np.array([0, 2, 2, 0])), split_of(LABELS)
    expected = balanced_weights(one.labels, 3) if weights == "balanced" else None
    assert KITS["classification"].make_task(config, one) == Classification(3, 0.2, expected)
    expected = balanced_pairs(LABELS) if weights == "balanced" else None
    assert KITS["multilabel"].make_task(config, several) == MultiLabel(3, 0.2, expected)


def test_mean_average_precision_decides_and_then_the_loss():
    kit = KITS["multilabel"]
    good, better, surer = (
        kit.epoch_scores(kit.measure(logits, LABELS, ("a", "b", "c"), None))
        for logits in (LOGITS, np.where(LABELS, 1, -1), np.where(LABELS, 3, -3))
    )
    assert good.map < better.map == surer.map == 1
    assert good.best_by < better.best_by < surer.best_by
    assert (better.accuracy, good.accuracy) == (1, 0.5)
    # Perfectly ranked but with every label given, against half of the sets right.
    ranked = kit.epoch_scores(kit.measure(np.where(LABELS, 9, 1), LABELS, ("a", "b", "c"), None))
    assert ranked.accuracy < good.accuracy
    assert ranked.best_by > good.best_by
    assert kit.headline(kit.measure(LOGITS, LABELS, ("a", "b", "c"), None))[0] == "mAP"


def test_every_label_from_its_threshold_on_is_given_the_most_probable_first():
    kit = KITS["multilabel"]
    answer = kit.answer(np.array([1.0, -1.0, 4.0], np.float32), ("a", "b", "c"), CALIBRATION, None)
    assert answer.labels == ("c", "a", "b")
    assert answer.probabilities == pytest.approx((0.8808, 0.6225, 0.3775), abs=1e-4)
    assert answer.accepted is None
    nothing = kit.answer(np.array([-1.0, -3.0, 0.0], np.float32), ("a", "b", "c"), CALIBRATION, None)
    assert nothing == ((), (), None)
    with pytest.raises(ConfigError, match="top_k is 3, and this model gives every label"):
        kit.answer(np.zeros(3, np.float32), ("a", "b", "c"), CALIBRATION, 3)


def test_one_label_is_given_unless_more_are_asked_for():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    kit = KITS["classification"]
    assert kit.answer(logits, ("a", "b", "c"), None, None).labels == ("b",)
    assert kit.answer(logits, ("a", "b", "c"), None, 2).labels == ("b", "c")


def test_the_worst_errors_are_the_surest_with_what_is_wrong_missed_and_right():
    split = split_of(LABELS)
    cases = KITS["multilabel"].worst_errors(split, outputs_of(LOGITS, split), PREPROCESS, CALIBRATION)
    # 3 misses a with a probability of 0.12; 1 is wrongly given a with 0.73 and misses b with 0.27.
    assert [case.name for case in cases] == ["3", "1"]
    assert [name for name, _ in cases[0].missed] == ["a"]
    assert [name for name, _ in cases[0].invented] == ["c"]
    assert cases[0].found == ("b",)
    assert cases[1].missed == (("b", pytest.approx(0.2689, abs=1e-4)),)
    assert (cases[1].invented[0][0], cases[1].found) == ("a", ("c",))
    assert cases[1].picture.shape == (8, 8, 3)


def test_rows_of_answers_hold_sets_as_json_and_every_probability():
    split = split_of(LABELS)
    header, *rows = KITS["multilabel"].answer_rows(split, outputs_of(LOGITS, split), CALIBRATION)
    assert header[:4] == ["path", "labels", "given", "correct"]
    assert header[4:] == [f"probability: {name}" for name in "abc"]
    assert rows[0][:4] == ["0", '["a"]', '["a"]', "true"]
    assert rows[1][:4] == ["1", '["b", "c"]', '["a", "c"]', "false"]
    assert rows[2][1:4] == ["[]", "[]", "true"]
    assert [float(share) for share in rows[0][4:]] == pytest.approx([0.880797, 0.268941, 0.268941])


def test_a_calibration_is_read_where_one_was_fitted():
    assert KITS["multilabel"].read_calibration(CALIBRATION.to_dict()) == CALIBRATION
    assert KITS["multilabel"].read_calibration({"temperature": 1.0, "thresholds": [0.5] * 3}) is None
    assert KITS["classification"].read_calibration({"temperature": 1.0}) is None


def test_tables_name_every_class_and_every_total():
    scores = KITS["multilabel"].measure(LOGITS, LABELS, ("a", "b", "c"), CALIBRATION)
    table = KITS["multilabel"].table(scores, "title")
    assert [str(cell) for cell in table.columns[0].cells] == ["a", "b", "c", "mean of classes", "all decisions"]
    assert list(table.columns[3].cells)[:3] == ["50.0", "100.0", "50.0"]
    assert "all labels are right" in table.caption
