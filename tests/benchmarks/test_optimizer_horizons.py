"""The search for the shortest training that reaches an accuracy: what it visits and what it makes of the trials."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitrail.runtime.precision import Precision

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def horizons(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("optimizer_horizons")


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("optimizer_tasks")


@pytest.mark.parametrize("first", [0, 3, 9, 12])
@pytest.mark.parametrize("start", [0, 4, 9, 12])
def test_a_walk_ends_where_the_target_is_reached_and_not_before(horizons, first, start):
    visited = []

    def reaches(place):
        visited.append(place)
        return place >= first

    assert horizons.walk(reaches, start, last=12) == first
    assert first == 0 or first - 1 in visited
    assert len(visited) == len(set(visited)) <= abs(first - start) + 2


def test_a_walk_gives_up_at_the_last_place(horizons):
    assert horizons.walk(lambda _: False, 3, last=7) == 7


def run(seed, steps, test, process_s=1.0):
    return {"seed": seed, "steps": steps, "test": test, "process_s": process_s}


def test_the_smallest_horizon_is_where_four_of_five_seeds_were_there(horizons):
    reached = {0: 100, 1: 100, 2: 120, 3: 144, 4: 207}
    runs = [run(seed, steps, 0.9) for seed, steps in reached.items()] + [run(0, 83, 0.7), run(4, 144, 0.79)]
    assert horizons.smallest_horizon(runs, 0.8) == 144
    assert horizons.smallest_horizon([run(seed, 100, 0.7) for seed in range(5)], 0.8) is None
    assert {seed: hit["steps"] for seed, hit in horizons.first_hits(runs, 0.8).items()} == reached


def test_a_ratio_is_paired_by_seed(horizons):
    theirs = {seed: run(seed, 100 * (seed + 1), 0.9) for seed in range(5)}
    ours = {seed: run(seed, 50 * (seed + 1), 0.9) for seed in range(4)}  # one seed never arrived
    assert horizons.ratio(ours, theirs, "steps") == pytest.approx((0.5, 0.5, 0.5))
    ours[0]["steps"] = 100
    middle, low, high = horizons.ratio(ours, theirs, "steps")
    assert middle == pytest.approx(math.prod([1, 0.5, 0.5, 0.5]) ** 0.25)
    assert low < middle < high


def test_times_are_compared_only_where_both_were_taken_in_the_same_place(horizons, tmp_path):
    trials = horizons.Trials(tmp_path / "task.jsonl", "bf16")
    for seed in range(4):
        trials.add({"kind": "run", "arm": "adamw", **run(seed, 100, 0.9, process_s=10.0)})
    trials.add({"kind": "run", "arm": "muon8", **run(0, 50, 0.9, process_s=8.0)})
    trials.add({"kind": "run", "arm": "muon8", **run(1, 50, 0.9, process_s=8.0)})
    elsewhere = horizons.Trials(tmp_path / "task.jsonl", "fp32")
    elsewhere.add({"kind": "run", "arm": "muon8", **run(2, 50, 0.9, process_s=99.0)})
    again = horizons.Trials(tmp_path / "task.jsonl", "bf16")
    assert again.all == elsewhere.all
    again.add({"kind": "run", "arm": "muon8", **run(3, 50, 0.9, process_s=8.0)})
    hits = [horizons.first_hits(again.find(arm=arm), 0.8) for arm in ("muon8", "adamw")]
    assert horizons.ratio(*hits, "process_s") == pytest.approx((0.8, 0.8, 0.8))
    assert horizons.ratio(*hits, "steps") == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", ["adamw", "muon8", "sgd"])
def test_settings_lie_in_their_ranges_and_more_of_them_go_on_with_the_same(horizons, name):
    few, many = horizons.points(name, 4), horizons.points(name, 9)
    assert few == many[:4]
    assert len({tuple(setting.values()) for setting in many}) == 9
    for setting in many:
        for key, (low, high) in {**horizons.OPTIMIZERS[name], "warmup": horizons.WARMUP}.items():
            assert low <= setting[key] <= high


def test_the_setting_that_is_best_at_the_longest_length_is_used(horizons, tmp_path):
    trials = horizons.Trials(tmp_path / "task.jsonl")
    for number, steps, val in ((0, 100, 0.9), (1, 100, 0.8), (2, 100, 0.7), (0, 300, 0.91), (1, 300, 0.92)):
        trials.add({"kind": "tune", "arm": "adamw", "number": number, "steps": steps, "seed": 99, "val": val})
    again = horizons.Trials(tmp_path / "task.jsonl")
    assert again.all == trials.all
    assert horizons.best(again, "adamw") == (1, horizons.points("adamw", 2)[1])


def test_equal_steps_are_compared_with_the_reference_that_was_trained_as_long(horizons, tmp_path):
    trials = horizons.Trials(tmp_path / "task.jsonl")
    for arm, gain, steps in (("muon8", 0.0, 300), ("adamw", -0.1, 300), ("sgd", -0.2, 900)):
        for seed in range(3):
            test = 0.8 + gain + seed / 100
            trials.add({"kind": "run", "arm": arm, "number": 0, "steps": steps, "seed": seed, "test": test})
    rows = horizons.fixed_table(trials, "task", "muon8").splitlines()[2:]
    assert rows == ["| adamw | 300 | 3 | 71.0% | -10.0 [-10.0, -10.0] |", "| muon8 | 300 | 3 | 81.0% | |"]


@pytest.mark.parametrize("strong", [False, True])
def test_images_of_a_step_depend_on_seed_and_step_alone(tasks, strong):
    task = tasks.Task("cifar10", target=0.5, batch=8, strong=strong)
    pixels = torch.randint(256, (50, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    images = tasks.Images(pixels, torch.arange(50) % 10)
    first, targets = tasks.batch_at(task, images, seed=3, step=7)
    torch.rand(5)  # what others draw changes nothing
    again, same_targets = tasks.batch_at(task, images, seed=3, step=7)
    assert torch.equal(first, again)
    assert torch.equal(targets, same_targets)
    assert not torch.equal(first, tasks.batch_at(task, images, seed=3, step=8)[0])
    assert not torch.equal(first, tasks.batch_at(task, images, seed=4, step=7)[0])
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))


def test_a_task_may_have_some_of_the_classes_and_start_from_weights_of_others(tasks, tmp_path):
    pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 32, 32)
    pixels, labels = tasks._of_classes(pixels, torch.tensor([3, 9, 5, 9, 0, 3]), classes=(9, 3))
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 3, 5]
    assert labels.tolist() == [1, 0, 0, 1]
    images = tasks.Images(pixels, labels)
    before = tasks.make_model(tasks.Task("cifar10", target=0.5, classes=(1, 2, 4)), images)
    save_file(before.state_dict(), tmp_path / "before.safetensors")
    task = tasks.Task("cifar10", target=0.5, classes=(9, 3), weights=tmp_path / "before.safetensors")
    model = tasks.make_model(task, images)
    assert model.head.out_features == 2
    theirs = dict(before.named_parameters())
    assert all(torch.equal(own, theirs[name]) for name, own in model.named_parameters() if not name.startswith("head."))


def test_an_optimizer_that_averages_keeps_its_rate_and_leaves_the_average(tasks, monkeypatch):
    made = []
    make = tasks.make_optimizer
    monkeypatch.setattr(tasks, "make_optimizer", lambda *given: made.append(make(*given)) or made[-1])
    images = tasks.Images(torch.randint(256, (20, 3, 8, 8)).byte(), torch.arange(20) % 10)
    task = tasks.Task("cifar10", target=0.5, batch=4)
    place = tasks.Place(torch.device("cpu"), Precision(torch.float32, "cpu", ""))
    setting = {"lr": 1e-3, "weight_decay": 0.05, "warmup": 0.2}
    for name in ("schedule-free", "adamw"):
        tasks.train(task, name, setting, 25, 0, {"train": images}, place)
    assert made[0].param_groups[0]["lr"] == 1e-3
    assert not made[0].param_groups[0]["train_mode"]
    assert made[1].param_groups[0]["lr"] < 1e-5


def test_every_arm_is_an_optimizer_that_can_be_made(horizons, tasks):
    images = tasks.Images(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    for arm, (name, extra) in horizons.ARMS.items():
        task = tasks.TASKS["cifar-mobile" if arm == "convolutions by AdamW" else "cifar"]
        model = tasks.make_model(task, images)
        assert len(tasks.make_optimizer(name, model, {**horizons.points(name, 1)[0], **extra}).param_groups) > 0
