"""`vitrail models`: what fits a limit, in the order and the format that was asked for, as in Python."""

import csv
import io
import json

import pytest

import vitrail
from vitrail.config import ModelsConfig
from vitrail.errors import ConfigError
from vitrail.models import MODELS
from vitrail.options import parse_count

FEW = ("vit_micro_patch16", "vit_micro_patch32", "vit_tiny_patch16")


@pytest.mark.parametrize(
    ("text", "count"), [("500000", 5e5), ("5M", 5e6), ("0.5G", 5e8), ("800k", 8e5), (" 2 m ", 2e6)]
)
def test_counts_are_read_with_their_letter(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "-5M", "5T", "0", "5 million"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ConfigError, match="is not a count"):
        parse_count(text)


def test_limits_leave_what_is_within_them():
    within = vitrail.describe_models(*FEW, max_params="2M", max_macs="0.1G")
    assert [each.name for each in within] == ["vit_micro_patch32"]
    edge = within[0].parameters
    assert vitrail.describe_models("vit_micro_patch32", max_params=str(edge))
    assert not vitrail.describe_models("vit_micro_patch32", max_params=str(edge - 1))


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("name", lambda each: each.name),
        ("params", lambda each: each.parameters),
        ("macs", lambda each: each.macs),
        ("accuracy", lambda each: -(each.published_top1 or 0)),
    ],
)
def test_models_come_in_the_order_that_was_asked_for(sort, key):
    found = vitrail.describe_models("vit_*_patch16", "vit_*_patch32", sort=sort)
    assert len({key(each) for each in found}) > 1
    assert found == sorted(found, key=key)


def test_accuracy_and_size_are_those_of_the_publication():
    (tiny,) = vitrail.describe_models("vit_tiny_patch16")
    published = MODELS["vit_tiny_patch16"].published
    assert (tiny.published_top1, tiny.published_image_size, tiny.source) == (published.top1, 224, published.source)
    assert tiny.image_size == MODELS["vit_tiny_patch16"].image_size
    assert abs(tiny.parameters / 1e6 - published.params_m) < 0.01
    (micro,) = vitrail.describe_models("vit_micro_patch8")
    assert (micro.published_top1, micro.published_image_size, micro.source) == (None, None, "")


def test_another_image_size_changes_the_work_and_not_what_is_published(command):
    small, whole = (
        vitrail.describe_models("vit_tiny_patch16", image_size=96),
        vitrail.describe_models("vit_tiny_patch16"),
    )
    assert small[0].macs < whole[0].macs
    assert small[0].published_top1 == whole[0].published_top1
    assert "at 224" in command("models", "vit_tiny_patch16", "--image-size", 96).out


def test_csv_and_json_say_what_python_says(command):
    found = vitrail.describe_models(*FEW)
    told = json.loads(command("models", *FEW, "--format", "json").out)
    assert told == [vars(each) for each in found]
    rows = list(csv.DictReader(io.StringIO(command("models", *FEW, "--format", "csv").out)))
    assert [(row["name"], int(row["parameters"]), row["source"]) for row in rows] == [
        (each.name, each.parameters, each.source) for each in found
    ]


def test_models_that_cannot_take_the_size_are_named(command):
    answer = command("models", *FEW, "--image-size", 48)
    assert answer.code == 0
    assert "vit_micro_patch32" not in answer.out
    assert answer.sentence() == "left out, as they do not take 48 pixels: vit_micro_patch32."


def test_a_source_is_printed_once_below_the_table(command):
    out = command("models", "vit_tiny_patch16", "vit_small_patch16").out
    assert out.count("DeiT, arXiv 2012.12877") == 1
    assert out.count("[1]") == 3


def test_wrong_options_are_one_sentence(command):
    assert command("models", "--max-params", "many").code == 2
    with pytest.raises(ConfigError, match="sort is 'size'"):
        vitrail.describe_models(sort="size")
    with pytest.raises(ConfigError, match="Did you mean 'max_params'"):
        vitrail.describe_models(max_param="5M")
    assert ModelsConfig(patterns=()).sort == "family"
