"""The page of several labels per image: its own sections, the same frame, hostile names as text."""

import json

import numpy as np
import pytest
from test_html import HOSTILE, Page

from vitrail.evaluation.multilabel import multilabel_metrics
from vitrail.evaluation.thresholds import calibrate_labels
from vitrail.reports.content import DataSummary, EpochRow, LabelsCase, RunReport
from vitrail.reports.html import render, write_report

NAMES = ("cat", HOSTILE, "Äpfel", "苹果", "dog")


def report_of(num=300, names=NAMES, **changes):
    rng = np.random.default_rng(0)
    labels = rng.random((num, len(names))) < 0.3
    logits = rng.normal(0, 1.5, labels.shape) + np.where(labels, 2, -2)
    calibration = calibrate_labels(logits, labels)
    picture = rng.integers(256, size=(120, 80, 3), dtype=np.uint8)
    case = LabelsCase(
        picture=picture,
        name=f"{HOSTILE}.png",
        invented=(("dog", 0.91), *((f"extra {n}", 0.6) for n in range(6))),
        missed=((HOSTILE, 0.07),),
        found=("cat", HOSTILE),
    )
    given = {
        "title": "tags",
        "model": "vit_micro_patch8",
        "split": "test",
        "metrics": multilabel_metrics(logits, labels, names, calibration=calibration),
        "calibration": calibration,
        "data": DataSummary(
            name="tags", classes=names, counts={"test": (90,) * len(names)}, totals={"test": num, "val": 40}
        ),
        "history": tuple(EpochRow(epoch=e, train_loss=1 / e, val_accuracy=0.1, val_map=e / 10) for e in (1, 2, 3)),
        "best_epoch": 3,
        "errors": (case,),
    }
    return RunReport(**{**given, **changes})


def test_every_part_is_on_the_page():
    report = report_of()
    page, metrics = Page(render(report)), report.metrics
    expected = [
        "Mean average precision (mAP) on 300 test images",
        f"{100 * metrics.mean_average_precision.value:.1f}",
        f"On {metrics.num_correct} of the images all labels are right",
        "Macro F1",
        "Micro F1",
        f"{300 - metrics.num_correct} of 300 images have a label that is wrong, or miss one",
        "+ dog",
        "91",
        "right: cat, ",
        "and more",
        "Validation mAP",
        "300 test, 40 val",
        f"{report.calibration.temperature:.3f}",
        f"{100 * report.calibration.common_threshold:.1f}",
        "苹果",
    ]
    assert [each for each in expected if each not in page.text] == []
    assert "Validation accuracy" not in page.text
    assert page.text.count("+ extra") == 3  # four wrong labels at most
    assert page.handlers == []
    assert "misses <img src" in page.text


def test_a_report_of_an_evaluation_alone_has_no_empty_sections():
    labels = np.eye(3, dtype=bool)
    metrics = multilabel_metrics(np.where(labels, 2.0, -2.0), labels, ("a", "b", "c"))
    text = Page(render(RunReport(title="t", model="m", split="val", metrics=metrics))).text
    for heading in ("Training", "taken for what", "temperature of", "chosen on", "None"):
        assert heading not in text
    assert "does not make the model perfect: up to 56.1" in text  # Wilson's lower end of 3 of 3


def test_without_any_label_nothing_is_undefined_on_the_page():
    metrics = multilabel_metrics(np.full((4, 2), -2.0), np.zeros((4, 2)), ("a", "b"))
    text = Page(render(RunReport(title="t", model="m", split="test", metrics=metrics))).text
    assert "2 of 2 classes have no test image" in text
    assert "nan" not in text.lower()


def test_the_json_has_the_same_content(tmp_path):
    report = report_of()
    write_report(tmp_path / "report.html", report)
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert data["metrics"]["mean_average_precision"]["value"] == report.metrics.mean_average_precision.value
    assert data["errors"][0]["missed"] == [[HOSTILE, 0.07]]
    assert data["calibration"]["thresholds"] == list(report.calibration.thresholds)


@pytest.mark.parametrize("num_classes", [1, 200])
def test_any_number_of_classes_fits(num_classes):
    names = tuple(f"{'a very long name of a class ' * 8}{index}" for index in range(num_classes))
    text = render(report_of(names=names, history=(), errors=()))
    assert len(text.encode()) < 1.5e6  # Seen: 0.6 MB
    assert Page(text).tags.count("table") >= 2
