"""Which calls count, how models are compared, and what int8 changed: arithmetic, on clocks that the tests hold."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


class Clocks:
    """A wall clock and a processor clock; a call moves them by what it is told to take, in turn."""

    def __init__(self, calls):
        self.wall_s = self.used_s = 0.0
        self._calls = iter(calls)

    def call(self):
        wall_s, used_s = next(self._calls)
        self.wall_s, self.used_s = self.wall_s + wall_s, self.used_s + used_s

    def perf_counter(self):
        return self.wall_s

    def process_time(self):
        return self.used_s


def burst(script, monkeypatch, calls, threads, **options):
    module, clocks = script("onnx_latency"), Clocks([(0.1, 0.0)] * script("onnx_latency").WARM_UP + calls)
    monkeypatch.setattr(module, "time", clocks)
    return module.time_burst(clocks.call, threads, **options)


def test_calls_during_which_others_took_a_core_do_not_count(script, monkeypatch):
    undisturbed, disturbed = [(0.002, 0.004), (0.003, 0.006), (0.004, 0.008)] * 3, [(0.001, 0.001), (0.009, 0.015)]
    found = burst(script, monkeypatch, disturbed + undisturbed, threads=2)
    assert found.ms == pytest.approx(3.0)
    assert (found.num_calls, found.num_undisturbed) == (11, 9)


def test_on_one_thread_processor_time_counts_whatever_the_others_do(script, monkeypatch):
    found = burst(script, monkeypatch, [(0.05, 0.002), (0.003, 0.003), (0.09, 0.004)] * 3, threads=1)
    assert (found.ms, found.num_calls) == (pytest.approx(3.0), 9)


def test_too_few_undisturbed_calls_are_no_figure_and_are_not_waited_for_any_longer(script, monkeypatch):
    found = burst(script, monkeypatch, [(0.1, 0.2)] * 2 + [(0.1, 0.15)] * 100, threads=2, limit_s=0.95)
    assert found.ms is None
    assert (found.num_calls, found.num_undisturbed) == (10, 2)


def test_models_are_compared_within_a_round_that_both_have(script):
    ratio = script("onnx_latency").ratio
    ours, theirs = [1.0, 2.0, None, 4.0, 1.0, 1.0, 1.0, 2.0], [3.0, 8.0, 9.0, None, 3.0, 3.0, 3.0, 4.0]
    assert ratio(theirs, ours) == (3.0, 2.0, 4.0)
    assert ratio(theirs[:6], ours[:6]) is None  # four rounds with both


def test_the_interval_of_a_median_is_the_narrowest_pair_of_order_statistics_that_covers_95_percent(script):
    rounds = list(np.random.default_rng(0).normal(3.0, 0.5, 15))
    _, low, high = script("onnx_latency").ratio(rounds, [1.0] * 15)
    place = next(k for k in range(8, 0, -1) if 1 - 2 * binom.cdf(k - 1, 15, 0.5) >= 0.95)
    assert (low, high) == (sorted(rounds)[place - 1], sorted(rounds)[-place])


def test_rounds_add_up_for_the_same_models_and_start_anew_for_others(script):
    latency, Burst = script("phone_latency"), script("onnx_latency").Burst  # noqa: N806 - a class
    cell, rounds = {"kind": "fp32", "threads": 2}, [Burst(1.0, 9, 9, "together"), Burst(None, 9, 1, "apart")]
    other = {"model": "lucarne_s", "kind": "fp32", "threads": 1, "ms_by_round": [5.0], "cores": ["one"]}
    once = latency.add_rounds([other], cell, {"lucarne_s": rounds, "mocovit_100": rounds})
    twice = latency.add_rounds(once, cell, {"lucarne_s": rounds, "mocovit_100": rounds})
    assert [(each["model"], each["ms_by_round"]) for each in twice if each is not other] == [
        ("lucarne_s", [1.0, None] * 2),
        ("mocovit_100", [1.0, None] * 2),
    ]
    anew = latency.add_rounds(twice, cell, {"lucarne_s": rounds, "resnet18": rounds})
    assert [(each["model"], len(each["cores"])) for each in anew] == [
        ("lucarne_s", 1),
        ("lucarne_s", 2),
        ("resnet18", 2),
    ]


def test_rounds_on_cores_that_lie_together_and_apart_are_not_mixed(script):
    figures = [
        {"model": name, "kind": "fp32", "threads": 2, "ms_by_round": [near] * 6 + [far] * 6, "cores": cores}
        for name, near, far in (("ours", 1.0, 3.0), ("theirs", 2.0, 3.0))
        for cores in [["together"] * 6 + ["apart"] * 6]
    ]
    text = script("phone_latency").table(figures, "fp32", 2)
    assert "| theirs | 2.00 | 2.00 [2.00, 2.00] | 6 of 12 |" in text
    assert "| theirs | 3.00 | 1.00 [1.00, 1.00] | 6 of 12 |" in text


def test_what_int8_does_to_the_accuracy_is_paired_by_image(script):
    fp32 = np.array([1] * 600 + [0] * 400)
    int8 = np.array([1] * 580 + [0] * 20 + [1] * 10 + [0] * 390)
    gain, low, high = script("int8_accuracy").paired(lost=20, won=10, total=1000)
    pairs = 100 * (int8 - fp32)
    assert gain == pytest.approx(pairs.mean())
    assert high - low == pytest.approx(2 * 1.96 * pairs.std() / 1000**0.5)


def test_every_arm_of_the_ablation_changes_what_its_name_says(script):
    ablation = script("lucarne_ablation")
    models = {arm: ablation.build(arm, num_classes=10, image_size=64) for arm in ablation.ARMS}
    kinds = {
        arm: [type(each).__name__ for each in model.modules() if not list(each.children())]
        for arm, model in models.items()
    }
    base = kinds.pop(ablation.BASE)
    assert "LocalEnhancement2d" not in {type(each).__name__ for each in models["no local enhancement"].modules()}
    assert models["no fusion"].fusion is None
    attentions = {
        arm: sum(type(each).__name__ == "SingleHeadAttention" for each in model.modules())
        for arm, model in models.items()
    }
    assert attentions[ablation.BASE] == 4
    assert attentions["no attention, convolution blocks instead"] == 0
    assert attentions["attention at stride 8 too"] == 5
    assert "BatchNorm2d" not in kinds["layer norms"]
    assert kinds["layer norms"].count("ChannelNorm") == base.count("BatchNorm2d")
    assert {"ReLU", "Hardswish"} & set(kinds["ReLU everywhere"]) == {"ReLU"}
    assert {"ReLU", "Hardswish"} & set(kinds["hard swish everywhere"]) == {"Hardswish"}
    assert models["depthwise 5 x 5"].blocks[0][0].depthwise.conv.kernel_size == (5, 5)
    assert models["expansion 4"].blocks[0][0].expand.conv.out_channels == 4 * 24
    for arm, model in models.items():
        norms = [block.project.bn for stage in model.blocks for block in stage]
        assert all((norm.weight == 0).all() for norm in norms), arm  # every block starts as the identity
