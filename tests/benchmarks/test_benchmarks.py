"""The arithmetic of the benchmarks: ratios, turns and intervals. Nothing here measures time."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from contestants import write_name
from scipy.stats import ttest_rel

from vitrail.layers.attention import attend

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def test_a_ratio_compares_the_turns_of_one_round(script):
    ours = [{"speed": 10.0}, {"speed": 40.0}, {"speed": 100.0}]
    theirs = [{"speed": 5.0}, {"speed": 10.0}, {"speed": 100.0}]
    assert script("alternate").ratios(ours, theirs, "speed") == (2.0, 1.0, 4.0)
    with pytest.raises(ValueError, match="shorter"):
        script("alternate").ratios(ours, theirs[:2], "speed")


def test_a_table_names_every_contestant_and_compares_all_but_ours(script):
    figures = {"ours": [{"speed": 6.0}, {"speed": 9.0}], "theirs": [{"speed": 4.0}, {"speed": 3.0}]}
    rows = script("alternate").table("title", figures, "ours", "speed").splitlines()
    assert rows[0] == "| title | speed (median) | ours / it, median [lowest, highest] |"
    assert rows[2:] == ["| ours | 7.5 |  |", "| theirs | 3.5 | 2.25 [1.50, 3.00] |"]


def test_contestants_take_turns_in_an_order_that_turns_and_the_warm_up_does_not_count(script, tmp_path):
    alternate, log = script("alternate"), tmp_path / "log"
    contestants = {name: alternate.Contestant(write_name, {"name": name, "log": log}) for name in "ab"}
    figures = alternate.take_turns(contestants, 2)
    assert log.read_text(encoding="utf-8") == "ab" + "ba" + "ab"
    assert figures == {name: [{"turns so far": 2}, {"turns so far": 3}] for name in "ab"}


def test_all_contestants_do_a_part_before_any_does_the_next(script, tmp_path):
    alternate, log = script("alternate"), tmp_path / "log"
    contestants = {name: alternate.Contestant(write_name, {"name": name, "log": log}) for name in "ab"}
    with alternate.started(contestants) as pipes:
        figures = alternate.rounds_of(pipes, 1, parts=[("1",), ("2",)])
    assert log.read_text(encoding="utf-8") == "a1b1a2b2" + "b1a1b2a2"
    assert figures == {name: [{"turns so far": 4}] for name in "ab"}


def test_a_contestant_that_fails_is_named(script, tmp_path):
    alternate = script("alternate")
    contestants = {"peer": alternate.Contestant(write_name, {"name": "a", "log": tmp_path / "log", "fail": True})}
    with pytest.raises(RuntimeError, match=r"peer: ValueError\('no such library'\)"):
        alternate.take_turns(contestants, 1)


def test_results_say_what_they_were_measured_on(script, tmp_path):
    script("alternate").save(tmp_path / "new", "name", {"figures": [1]})
    document = json.loads((tmp_path / "new" / "name.json").read_text(encoding="utf-8"))
    assert (document["benchmark"], document["figures"]) == ("name", [1])
    assert document["machine"]["cores"] >= 1


def test_the_ablation_gives_the_paired_t_interval_of_scipy(script):
    accuracy = {"plain": [0.61, 0.64, 0.60, 0.70], "local": [0.69, 0.66, 0.71, 0.72], "fusion": [0.50, 0.68]}
    trials = [
        {"dataset": "cifar10", "arm": arm, "seed": seed, "accuracy": value}
        for arm, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    lines = {row.split(" | ")[1]: row for row in script("ablation").summary(trials[::-1]).splitlines()[2:]}
    assert set(lines) == {"plain", "local", "fusion"}
    assert lines["plain"].endswith("|  |")
    for arm in ("local", "fusion"):
        pairs = [100 * value for value in accuracy[arm]], [100 * value for value in accuracy["plain"]]
        expected = ttest_rel(pairs[0], pairs[1][: len(pairs[0])]).confidence_interval(0.95)
        gain, low, high = (float(number) for number in re.findall(r"[+-]\d+\.\d", lines[arm]))
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.051)  # printed with one decimal
        assert gain == pytest.approx((low + high) / 2, abs=0.11)


def test_the_attention_that_is_timed_is_the_one_that_vitrail_computes(script):
    q, k, v = torch.randn(3, 2, 3, 65, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(script("attention").explicit(q, k, v), attend(q, k, v))
    assert not torch.equal(script("attention").FORMS["fused"](q, k, v), attend(q, k, v))


def test_the_cost_of_local_enhancement_is_what_its_formula_says(script):
    count = script("module_cost").count
    plain, local = count("vit_tiny_patch16", 224), count("vit_tiny_patch16", 224, local=True)
    blocks, dim, patches = 6, 192, 14 * 14  # the first half of twelve
    assert local["parameters"] - plain["parameters"] == blocks * (12 * dim + 1)
    assert local["macs"] - plain["macs"] == blocks * patches * (9 * dim + dim)  # the filter and the gate
