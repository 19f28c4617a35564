"""The page holds its content, whatever names it is made of, and needs nothing but itself."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vitrail.errors import StorageError
from vitrail.evaluation.calibration import calibrate
from vitrail.evaluation.cost import Cost, Latency
from vitrail.evaluation.metrics import classification_metrics
from vitrail.reports.content import Command, DataSummary, EpochRow, ErrorCase, RunReport
from vitrail.reports.html import duration, quantity, render, thumbnail, write_report

HOSTILE = '<img src=x onerror="alert(1)">{{ 7 * 7 }}&amp;'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects text and attributes, and refuses elements that are closed in another order than they were opened."""

    def __init__(self, text):
        super().__init__()
        self.text, self.addresses, self.tags, self.handlers, self.open = "", [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text += data


def metrics_of(num_classes, names, seed=0, num_images=200, calibration=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_images)
    logits = rng.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 2
    calibration = calibrate(logits, labels) if calibration else None
    return classification_metrics(logits, labels, names, calibration=calibration), calibration


def full_report(names=("cat", HOSTILE, "Äpfel", "苹果")):
    metrics, calibration = metrics_of(len(names), names, calibration=True)
    picture = np.random.default_rng(0).integers(256, size=(300, 200, 3), dtype=np.uint8)
    return RunReport(
        title=HOSTILE,
        model="vit_micro_patch4",
        split="test",
        metrics=metrics,
        created_at="23 November 2026",
        data=DataSummary(
            name=HOSTILE,
            classes=names,
            counts={"train": (1,) * len(names), "val": (2,) * len(names)},
            totals={"train": len(names), "val": 2 * len(names)},
            refused=((f"{HOSTILE}.jpg", "image file is truncated"),),
        ),
        history=tuple(EpochRow(epoch=e, train_loss=1 / e, val_accuracy=1 - 1 / e, lr=1e-3 / e) for e in range(1, 6)),
        best_epoch=4,
        errors=(
            ErrorCase(
                picture=picture, name=HOSTILE, true="cat", predicted=HOSTILE, probability=0.9, true_probability=0.05
            ),
        ),
        augmented=(picture[:32, :32],),
        calibration=calibration,
        cost=Cost(5_717_416, 1_253_500_000, 8_000_000, 22_869_664),
        latency={HOSTILE: Latency(1.25, 2.5, 50, 2)},
        timings_s={"Training": 84.2},
        details={"gates": HOSTILE},
        caveats=(HOSTILE,),
        commands=(Command(HOSTILE, "vitrail predict run 'a b' <x>"),),
        config={"source": HOSTILE, "lr": 1e-3, "image_size": (32, 32)},
        environment={"cpu": "EPYC", "versions": {"torch": "2.13.0"}},
    )


def test_hostile_names_are_text_everywhere():
    page = Page(render(full_report()))
    assert page.handlers == []
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 2  # the error's picture and the augmented one
    assert HOSTILE in page.text
    assert "49" not in re.findall(r"onerror=\S+>(\d+)", page.text)


def test_the_page_refers_to_nothing_outside_itself():
    text = render(full_report())
    page = Page(text)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text


def test_every_part_of_the_report_is_on_the_page():
    report = full_report()
    text = Page(render(report)).text
    metrics = report.metrics
    expected = [
        f"{metrics.num_correct} of 200 test images right",
        f"{100 * metrics.accuracy.value:.1f}",
        f"{100 * metrics.accuracy.low:.1f}",
        f"{100 * metrics.accuracy.high:.1f}",
        "image file is truncated",
        "5,717,416",
        "1.25 G",
        "1.25 ms",
        "1 min 24 s",
        "vitrail predict run 'a b' <x>",
        "epoch 4",
        "torch 2.13.0",
        f"{report.calibration.temperature:.3f}",
        "Äpfel",
        "苹果",
        "4 train, 8 val; 1 refused",
    ]
    missing = [each for each in expected if each not in text]
    assert missing == []


def test_a_report_of_an_evaluation_alone_has_no_empty_sections():
    metrics, _ = metrics_of(3, ("a", "b", "c"))
    page = Page(render(RunReport(title="t", model="m", split="val", metrics=metrics)))
    for heading in ("Training", "What it costs", "Go on", "How it was made", "Images of each class", "None"):
        assert heading not in page.text
    assert "Each class" in page.text


def test_a_perfect_result_still_says_what_is_not_known():
    metrics = classification_metrics(np.eye(2)[[0, 1] * 20], [0, 1] * 20, ("a", "b"))
    text = Page(render(RunReport(title="t", model="m", split="test", metrics=metrics))).text
    assert "does not make the model perfect" in text
    assert "8.8" in text  # 1 - Wilson's lower end of 40 out of 40
    assert "Commonest errors" not in text


def test_classes_without_images_are_named_and_have_no_numbers():
    metrics = classification_metrics(np.eye(3)[[0, 1]], [0, 0], ("a", "b", "never seen"))
    text = Page(render(RunReport(title="t", model="m", split="test", metrics=metrics))).text
    assert "2 of 3 classes have no test image (b, never seen)" in text
    assert "nan" not in text.lower().replace("nanosecond", "")


@pytest.mark.parametrize("num_classes", [100, 130])
def test_many_classes_with_long_names_stay_below_the_size_limit(num_classes):
    names = tuple(f"{'a very long name of a class ' * 8}{index}" for index in range(num_classes))
    metrics, _ = metrics_of(num_classes, names, num_images=3_000)
    picture = np.random.default_rng(0).integers(256, size=(160, 160, 3), dtype=np.uint8)
    case = ErrorCase(picture=picture, name="x", true="a", predicted="b", probability=0.9, true_probability=0.1)
    text = render(RunReport(title="t", model="m", split="val", metrics=metrics, errors=(case,) * 40))
    assert len(text.encode()) < 1.5e6  # measured: 1.375 MB, noise being the worst case for JPEG
    assert ('class="matrix"' in text) == (num_classes == 100)
    assert Page(text).tags.count("img") == 24


def test_the_json_has_the_same_content_and_no_nan(tmp_path):
    report = full_report()
    history = (*report.history, EpochRow(epoch=6, train_loss=float("nan")))
    page = write_report(tmp_path / "report.html", replace(report, history=history))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert data["metrics"]["accuracy"]["value"] == report.metrics.accuracy.value
    assert data["history"][5]["train_loss"] is None
    assert data["errors"][0]["name"] == HOSTILE
    assert data["calibration"]["accepted_accuracy"]["low"] == report.calibration.accepted_accuracy.low
    assert data["latency"][HOSTILE]["p50_ms"] == 1.25
    assert data["config"]["image_size"] == [32, 32]


def test_the_same_report_gives_the_same_page():
    assert render(full_report()) == render(full_report())


def test_a_page_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", full_report())


@pytest.mark.parametrize(("height", "width", "kind", "size"), [(8, 8, "png", (8, 8)), (600, 300, "jpeg", (80, 160))])
def test_thumbnails_are_small_and_keep_their_shape(height, width, kind, size):
    import base64

    source = re.search(r'src="data:image/(\w+);base64,([^"]+)"', thumbnail(np.zeros((height, width, 3), np.uint8)))
    assert source[1] == kind
    assert Image.open(BytesIO(base64.b64decode(source[2]))).size == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.97, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.8, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_as_they_are_said(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(960, "960"), (999_999, "1 M"), (1_253_500_000, "1.25 G"), (5_717_416, "5.72 M"), (68_400, "68.4 k")],
)
def test_quantities_have_three_digits(value, text):
    assert quantity(value) == text
