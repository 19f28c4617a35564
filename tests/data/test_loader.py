"""Batches: whole, in order, the same whatever the workers, and ended cleanly."""

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.config import DataConfig, Preprocess
from vitrail.data import AugmentPolicy, Batch, EvalLoader, Split, TrainLoader, augment_policy, load_pixels, open_dataset
from vitrail.data.cache import make_cache
from vitrail.data.ordered import ordered_map
from vitrail.errors import DataError

PREPROCESS = Preprocess(image_size=(16, 24), crop_fraction=0.9)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    rng = np.random.default_rng(0)
    for number in range(50):
        path = tmp_path / "ab"[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        size = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(size).save(path)
    return open_dataset(tmp_path, DataConfig()).splits["train"]


def train_loader(split: Split, policy: str | AugmentPolicy = "strong", **options: object) -> TrainLoader:
    augment = augment_policy(policy) if isinstance(policy, str) else policy
    return TrainLoader(split, PREPROCESS, augment, 8, **{"seed": 0, "workers": 1, "cache": "off"} | options)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_an_epoch_gives_each_image_at_most_once_in_whole_batches(split: Split) -> None:
    loader = train_loader(split)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == len(split) // 8
    indices = np.concatenate([batch.indices for batch in batches])
    assert len(set(indices.tolist())) == len(indices) == 8 * len(loader)
    for batch in batches:
        assert batch.images.shape == (8, 3, 16, 24)
        assert batch.images.dtype == torch.float32
        assert batch.targets.shape == (8, 2)
        assert batch.labels.tolist() == split.labels[batch.indices].tolist()


def test_a_split_smaller_than_a_batch_is_one_batch(split: Split) -> None:
    loader = TrainLoader(split, PREPROCESS, augment_policy("none"), 1000, seed=0)
    (batch,) = loader.epoch(0)
    assert len(batch.labels) == len(split)


@pytest.mark.parametrize("cache", ["off", "on"])
@pytest.mark.parametrize("policy", ["none", "light", "strong"])
def test_batches_do_not_depend_on_workers_or_on_where_an_epoch_is_begun(split: Split, policy: str, cache: str) -> None:
    expected = list(train_loader(split, policy, cache=cache).epoch(3))
    loader = train_loader(split, policy, cache=cache, workers=3)
    assert_same(expected, list(loader.epoch(3)))
    assert_same(expected, list(loader.epoch(3)))  # from the cache, where there is one
    assert_same(expected[2:], list(train_loader(split, policy, cache=cache).epoch(3, start_batch=2)))
    other = next(train_loader(split, policy, cache=cache).epoch(4))
    assert not np.array_equal(other.indices, expected[0].indices)


@pytest.mark.parametrize("cache", ["off", "on"])
def test_what_becomes_of_an_image_depends_on_seed_epoch_and_image_alone(split: Split, cache: str) -> None:
    policy = AugmentPolicy(crop_scale=(0.2, 1.0), flip_rate=0.5, three_augment=True, colour_jitter=0.3, erase_rate=0.5)

    def shown(batch_size: int, workers: int, seed: int, epoch: int) -> dict[int, torch.Tensor]:
        loader = TrainLoader(split, PREPROCESS, policy, batch_size, seed=seed, workers=workers, cache=cache)
        return {
            index: image
            for batch in loader.epoch(epoch)
            for index, image in zip(batch.indices.tolist(), batch.images, strict=True)
        }

    alone = shown(1, 1, seed=3, epoch=2)
    together = shown(len(split), 4, seed=3, epoch=2)
    assert sorted(alone) == sorted(together) == list(range(len(split)))
    assert list(alone) == list(together)
    assert all(torch.equal(alone[index], together[index]) for index in alone)
    for other in (shown(1, 1, seed=4, epoch=2), shown(1, 1, seed=3, epoch=3)):
        assert list(other) != list(alone)
        assert not any(torch.equal(alone[index], other[index]) for index in alone)


def test_without_augmentation_images_are_prepared_as_in_evaluation(split: Split) -> None:
    mean, std = torch.tensor(PREPROCESS.mean), torch.tensor(PREPROCESS.std)
    evaluated = {
        index: ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)
        for batch in EvalLoader(split, PREPROCESS, 7)
        for index, pixels in zip(batch.indices.tolist(), batch.pixels, strict=True)
    }
    assert sorted(evaluated) == list(range(len(split)))
    for cache in ("off", "on"):
        for batch in train_loader(split, "none", cache=cache).epoch(0):
            for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
                torch.testing.assert_close(image, evaluated[index], rtol=0, atol=1e-6)  # measured: 6e-8


def test_evaluation_shows_the_very_pixels_an_exported_model_is_fed(split: Split) -> None:
    loader = EvalLoader(split, PREPROCESS, 16)
    root = split.pictures.root  # type: ignore[attr-defined]
    for _ in range(2):  # the second time from the cache
        batches = list(loader)
        assert [len(batch.labels) for batch in batches] == [16, 16, 4]
        for batch in batches:
            for index, pixels in zip(batch.indices, batch.pixels, strict=True):
                assert np.array_equal(pixels, load_pixels(root / split.paths[index], PREPROCESS))


def test_flipping_mirrors_and_solarising_inverts_the_bright(split: Split) -> None:
    crop = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    plain = next(train_loader(split, AugmentPolicy(**crop)).epoch(0)).images
    flipped = next(train_loader(split, AugmentPolicy(**crop, flip_rate=1.0)).epoch(0)).images
    assert torch.equal(flipped, plain.flip(3))
    three = train_loader(split, AugmentPolicy(**crop, three_augment=True))
    plain, seen = {}, 0
    for batch in train_loader(split, AugmentPolicy(**crop)).epoch(0):
        plain |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
    for batch in three.epoch(0):
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            bytes_before = (plain[index] * 127.5 + 127.5).round()
            inverted = torch.where(bytes_before >= 128, 255 - bytes_before, bytes_before)
            seen += torch.allclose((image * 127.5 + 127.5).round(), inverted)
    assert 4 < seen < 25  # a third of 32


def test_a_file_that_breaks_in_the_middle_of_training_is_named(split: Split) -> None:
    loader = train_loader(split, workers=2)
    last = next(reversed(list(loader.epoch(0)))).indices[0]
    path = split.pictures.root / split.paths[last]  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        list(loader.epoch(0))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitrail-data")]


@pytest.mark.parametrize("cache", ["off", "on"])
def test_a_file_that_is_exchanged_for_another_is_noticed(split: Split, cache: str) -> None:
    path = split.pictures.root / split.paths[0]  # type: ignore[attr-defined]
    Image.new("RGB", (300, 20)).save(path)
    with pytest.raises(DataError, match=f"{path.name} has changed"):
        list(TrainLoader(split, PREPROCESS, augment_policy("light"), len(split), seed=0, cache=cache).epoch(0))


def test_stopping_early_ends_the_threads_and_changes_no_setting_of_the_caller(split: Split) -> None:
    before = torch.get_num_threads()
    batches = train_loader(split, workers=3).epoch(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitrail-data")]
    assert torch.get_num_threads() == before


def test_work_in_threads_leaves_the_whole_process_its_own_number_of_threads() -> None:
    """In a process of its own: the threads must come before anything else has made torch count its own."""
    code = """
import threading
from vitrail.data.ordered import ordered_map
assert list(ordered_map(lambda item: item, range(9), workers=2, ahead=2)) == list(range(9))
import torch
seen = [torch.get_num_threads()]
thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
thread.start()
thread.join()
assert seen == [2, 2], seen
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})


def test_the_time_spent_waiting_is_told(split: Split) -> None:
    loader = train_loader(split)
    list(loader.epoch(0))
    assert loader.wait_s > 0


def test_work_ahead_is_bounded_and_results_keep_their_order() -> None:
    begun: list[int] = []
    results = ordered_map(lambda item: begun.append(item) or item * item, range(100), workers=3, ahead=4)
    assert next(results) == 0
    assert len(begun) <= 8
    assert list(results) == [item * item for item in range(1, 100)]


def test_closing_early_begins_no_further_work() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        return item if item == 0 else int(go_on.wait(10))

    results = ordered_map(work, range(100), workers=1, ahead=9)
    assert next(results) == 0
    threading.Timer(0.1, go_on.set).start()
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 2


def test_the_cache_is_refused_or_left_out_where_memory_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.tile([100, 100, 3], (10, 1))  # 300 kB
    monkeypatch.setattr("vitrail.data.cache.available_memory_bytes", lambda: 1_000_000)
    load = lambda index: np.full((100, 100, 3), index, np.uint8)  # noqa: E731
    assert make_cache("auto", sizes, load) is None
    assert make_cache("off", sizes, load) is None
    cache = make_cache("on", sizes, load)
    assert cache is not None
    assert (cache.read(7) == 7).all()
    with pytest.raises(DataError, match="cache auto or off"):
        make_cache("on", np.tile([100, 100, 3], (40, 1)), load)


def test_balanced_batches_vary_an_image_that_comes_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / ("rare" if number < 4 else "usual") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    split = open_dataset(tmp_path, DataConfig(test_fraction=0)).splits["train"]
    loader = TrainLoader(
        split, PREPROCESS, AugmentPolicy(crop_scale=(0.25, 1.0), colour_jitter=0.3), 8, seed=0, workers=1, balance=True
    )
    batches = list(loader.epoch(0))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.float().mean() == pytest.approx(0.5, abs=0.15)
    indices = np.concatenate([batch.indices for batch in batches])
    images = torch.cat([batch.images for batch in batches])
    rare = np.flatnonzero(indices == np.bincount(indices).argmax())
    assert len(rare) >= 4
    assert all(not torch.equal(images[one], images[other]) for one, other in itertools.pairwise(rare))
    again = next(loader.epoch(0, 2))
    assert torch.equal(again.images, batches[2].images)
