"""Channels as they are: how each kind of file is read, what is refused, and how the values reach the model."""

import io
import struct
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.config import DataConfig, Preprocess
from vitrail.data import (
    EvalLoader,
    ImageRefusedError,
    TrainLoader,
    augment_policy,
    channel_statistics,
    load_pixels,
    open_dataset,
    open_evaluation_set,
    open_image,
    shown,
)
from vitrail.data.augment import cut_out, finish
from vitrail.data.planes import LUMA, MAX_DECODED_BYTES, decode_planes, fit
from vitrail.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (9, 11, 7), dtype=np.uint8)
WORDS = RNG.integers(0, 65536, (9, 11, 7), dtype=np.uint16)
FLOATS = RNG.normal(300, 20, (9, 11, 7)).astype(np.float32)


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def picture(array: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, kind, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def deep_png(array: np.ndarray, colour_type: int) -> bytes:
    """Return a PNG of 16 bits per channel (H, W, C), which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def values_of(data: bytes, channels: int) -> np.ndarray:
    return fit(decode_planes(data, "x"), "x", channels, None)


def reason(data: bytes, channels: int = 3) -> str:
    with pytest.raises(ImageRefusedError) as refusal:
        values_of(data, channels)
    return refusal.value.reason


@pytest.mark.parametrize("array", [BYTES, WORDS, FLOATS, WORDS.astype(">u2"), np.asfortranarray(FLOATS)])
def test_arrays_are_read_as_they_are(array: np.ndarray) -> None:
    found = values_of(npy(array), 7)
    assert np.array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")
    assert values_of(npy(array[..., 0]), 1).shape == (9, 11, 1)


@pytest.mark.parametrize(
    ("data", "channels", "expected"),
    [
        (picture(BYTES[..., 0], "PNG"), 1, BYTES[..., :1]),
        (picture(WORDS[..., 0], "PNG"), 1, WORDS[..., :1]),
        (picture(WORDS[..., 0], "TIFF"), 1, WORDS[..., :1]),
        (picture(FLOATS[..., 0], "TIFF"), 1, FLOATS[..., :1]),
        (picture(BYTES[..., :2].copy(), "PNG", "LA"), 2, BYTES[..., :2]),
        (picture(BYTES[..., :3].copy(), "PNG"), 3, BYTES[..., :3]),
        (picture(BYTES[..., :4].copy(), "PNG"), 4, BYTES[..., :4]),
        (picture(BYTES[..., :4].copy(), "TIFF", "CMYK"), 4, BYTES[..., :4]),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter")
def test_pillow_reads_up_to_four_channels(data: bytes, channels: int, expected: np.ndarray) -> None:
    found = values_of(data, channels)
    assert np.array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("array", [BYTES, WORDS, FLOATS])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"photometric": "rgb"}])
def test_tiffs_of_many_channels_are_read_in_full(array: np.ndarray, options: dict[str, Any]) -> None:
    options = {"photometric": "minisblack", **options}
    assert np.array_equal(values_of(tiff(array, planarconfig="contig", **options), 7), array)
    apart = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    assert np.array_equal(values_of(tiff(apart, planarconfig="separate", **options), 7), array)


def test_colour_of_16_bits_is_read_of_tiff_and_refused_of_png() -> None:
    assert np.array_equal(values_of(tiff(WORDS[..., :3], photometric="rgb"), 3), WORDS[..., :3])
    assert "Pillow reads 8; convert it to TIFF or .npy" in reason(deep_png(WORDS[..., :3], 2))
    assert "Pillow reads 8" in reason(b"P6 2 1 65535\n" + bytes(12))


def test_the_orientation_is_obeyed_whoever_reads_the_file() -> None:
    for orientation in range(1, 9):
        by_pillow = values_of(picture(BYTES[..., :3].copy(), "TIFF", tiffinfo={274: orientation}), 3)
        tags = [(274, "H", 1, orientation, True)]
        by_tifffile = values_of(tiff(BYTES[..., :5], photometric="rgb", planarconfig="contig", extratags=tags), 5)
        assert np.array_equal(by_tifffile[..., :3], by_pillow), orientation


def test_one_channel_makes_rgb_luma_and_keeps_16_bits() -> None:
    grey = values_of(picture(BYTES[..., :3].copy(), "PNG"), 1)
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(BYTES[..., :3].copy()).convert("L")))
    deep = values_of(tiff(WORDS[..., :3], photometric="rgb"), 1)
    assert np.abs(deep[..., 0] - WORDS[..., :3] @ np.array(LUMA)).max() <= 0.5


def test_another_number_of_channels_is_refused() -> None:
    assert reason(npy(BYTES[..., :4])) == "it has 4 channels, and 3 are asked; give --channels 4"
    assert reason(picture(BYTES[..., :4].copy(), "PNG"), 1) == (
        "it has 4 channels (RGBA), and 1 is asked; give --channels 4"
    )
    assert reason(picture(BYTES[..., 0], "PNG")) == "it has 1 channel (grey), and 3 are asked; give --channels 1"
    with pytest.raises(ImageRefusedError, match="it has 7 channels, and the model takes 5"):
        fit(decode_planes(npy(BYTES), "x"), "x", 5, "uint8")
    with pytest.raises(ImageRefusedError, match="its values are uint16, and the model takes uint8"):
        fit(decode_planes(npy(WORDS), "x"), "x", 7, "uint8")


def test_arrays_that_lie_or_hold_something_else_are_refused() -> None:
    good = npy(BYTES)
    assert "it has 692 bytes of values, and its header says 693" in reason(good[:-1])
    assert "is damaged" in reason(good[:40])
    assert reason(npy(np.array([[{}]], object), allow_pickle=True)) == (
        "it is an array of Python objects, which are never loaded"
    )
    assert "uint8, uint16, float32 are read" in reason(npy(BYTES.astype(np.int64)))
    assert "(H, W) and (H, W, C) are read" in reason(npy(BYTES[None]))
    assert "(H, W) and (H, W, C) are read" in reason(npy(BYTES[:0]))
    assert reason(npy(np.full((2, 2, 3), np.nan, np.float32))) == "it has values that are not finite"


def header_only(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_sizes_are_refused_by_the_header() -> None:
    assert "megapixels" in reason(header_only((10**6, 10**6, 3)))
    assert f"at most {MAX_DECODED_BYTES // 2**20} are read" in reason(header_only((9000, 9000, 100)))


def test_without_tifffile_its_files_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(WORDS[..., :3], photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "pip install 'vitrail[tiff]'" in reason(data)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed and decodes it")
def test_a_compression_that_needs_another_package_names_it() -> None:
    data = bytearray(tiff(WORDS, photometric="minisblack", planarconfig="contig", compression="zlib"))
    place = data.index(struct.pack("<HHI", 259, 3, 1)) + 8
    data[place : place + 2] = struct.pack("<H", 5)  # LZW
    assert reason(bytes(data), 7) == "its compression needs the package imagecodecs (pip install 'vitrail[tiff]')"


def test_without_channels_a_tiff_of_many_is_refused_with_the_flag(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(BYTES, photometric="minisblack", planarconfig="contig"))
    with pytest.raises(ImageRefusedError, match="a damaged TIFF, or one of channels that only --channels reads"):
        open_image(tmp_path / "x.tif")


def test_tables_lead_to_arrays_too(tmp_path: Path) -> None:
    write_set(tmp_path / "set", noise("uint8", 5))
    paths = sorted((tmp_path / "set").rglob("*.npy"))
    rows = [f"set/{path.parent.name}/{path.name},{path.parent.name}" for path in paths]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    dataset = open_dataset(tmp_path / "table.csv", DataConfig(channels=5))
    assert sum(len(split) for split in dataset.splits.values()) == 24
    assert dataset.splits["train"].decode(0).shape == (18, 24, 5)


def test_damaged_tiffs_are_refused() -> None:
    data = tiff(WORDS, photometric="minisblack", planarconfig="contig", compression="zlib")
    for length in (4, 8, 60, len(data) // 2):
        assert reason(data[:length], 7)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_a_16_bit_ramp_survives_to_the_models_input(tmp_path: Path, resize: Any) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    preprocess = Preprocess(
        image_size=(64, 64), resize=resize, mean=(0.3,), std=(0.7,), channels=1, pixel_type="uint16"
    )
    pixels = load_pixels(tmp_path / "ramp.png", preprocess)
    image = finish(torch.from_numpy(pixels[None]), None, preprocess)[0, 0].double().numpy() * 0.7 + 0.3
    # Seen: 0.004 of a step, the rounding of float32.
    assert np.abs(image * 65535 - ramp).max() < 0.02


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_bytes_are_resized_as_those_of_rgb(tmp_path: Path, resize: Any) -> None:
    Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    rgb = Preprocess(image_size=(24, 32), resize=resize)
    kept = Preprocess(image_size=(24, 32), resize=resize, channels=3)
    assert np.array_equal(load_pixels(tmp_path / "x.png", kept), load_pixels(tmp_path / "x.png", rgb))


def write_set(root: Path, make: Any, *, per_class: int = 12, suffix: str = "npy") -> Path:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(per_class):
            (root / label / f"{number}.{suffix}").write_bytes(make(label, number))
    return root


def noise(dtype: str, channels: int) -> Any:
    def make(label: str, number: int) -> bytes:
        rng = np.random.default_rng([number, ord(label)])
        if dtype == "float32":
            return npy(rng.normal(size=(18, 24, channels)).astype(np.float32))
        return npy(rng.integers(0, np.iinfo(dtype).max, (18, 24, channels), dtype=dtype, endpoint=True))

    return make


def preprocess_of(dataset: Any, size: int = 16) -> Preprocess:
    num = dataset.channels
    plain = Preprocess(
        image_size=(size, size), mean=(0.0,) * num, std=(1.0,) * num, channels=num, pixel_type=dataset.pixel_type
    )
    mean, std = channel_statistics(dataset.splits["train"], plain)
    return Preprocess(image_size=(size, size), mean=mean, std=std, channels=num, pixel_type=dataset.pixel_type)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_batches_keep_type_and_channels_with_or_without_cache(tmp_path: Path, dtype: str) -> None:
    dataset = open_dataset(write_set(tmp_path / "set", noise(dtype, 5)), DataConfig(channels=5))
    assert (dataset.channels, dataset.pixel_type) == (5, dtype)
    preprocess, split = preprocess_of(dataset), dataset.splits["train"]
    policy = augment_policy("strong", mixup=0.8, cutmix=1.0)
    policy = type(policy)(**{**vars(policy), "three_augment": False, "colour_jitter": 0.0})
    loader = TrainLoader(split, preprocess, policy, 8, seed=0, workers=2)
    batch = next(loader.epoch(0))
    assert batch.images.shape == (8, 5, 16, 16)
    assert batch.images.dtype == torch.float32
    again = next(TrainLoader(split, preprocess, policy, 8, seed=0, workers=1, cache="off").epoch(0))
    # 18 x 24 pixels are not reduced for the cache, so both cut from the same values.
    assert torch.equal(batch.images, again.images)
    for _ in range(2):  # from the files, then from the cache
        (pixels,) = [each.pixels for each in EvalLoader(split, preprocess, 64, workers=1)]
        assert pixels.dtype == dtype
        assert pixels.shape == (len(split), 16, 16, 5)


@pytest.mark.parametrize("array", [BYTES, WORDS, FLOATS])
def test_a_random_crop_keeps_every_bit_where_nothing_is_resized(array: np.ndarray) -> None:
    height, width = array.shape[:2]
    crop = np.array([2 / width, 3 / height, 9 / width, 8 / height])
    cut = cut_out(array, crop, (5, 7), 0.0).numpy()
    assert cut.dtype == array.dtype
    assert np.array_equal(cut, array[3:8, 2:9])


def test_mean_and_std_are_those_of_the_training_images(tmp_path: Path) -> None:
    def make(label: str, number: int) -> bytes:
        rng = np.random.default_rng([number, ord(label)])
        return npy(rng.normal([300, 1e-7, 4], [20, 1e-8, 0], (16, 16, 3)).astype(np.float32))

    dataset = open_dataset(write_set(tmp_path / "set", make), DataConfig(channels=3, duplicates="off"))
    preprocess = preprocess_of(dataset)
    values = np.concatenate(
        [dataset.splits["train"].decode(i).reshape(-1, 3) for i in range(len(dataset.splits["train"]))]
    )
    assert np.allclose(preprocess.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-5)
    assert np.allclose(preprocess.std[:2], values.std(axis=0, dtype=np.float64)[:2], rtol=1e-4)
    assert preprocess.std[2] == 1.0  # nothing varies


def test_types_of_one_source_are_widened_and_told(tmp_path: Path) -> None:
    def make(label: str, number: int) -> bytes:
        return noise("uint16" if number % 3 == 0 else "uint8", 2)(label, number)

    dataset = open_dataset(write_set(tmp_path / "set", make), DataConfig(channels=2))
    assert dataset.pixel_type == "uint16"
    assert any(
        "Not all have the same type of values: 16 uint8, 8 uint16" in item.text for item in dataset.findings.items
    )
    for split in dataset.splits.values():
        for index, path in enumerate(split.paths):
            stored = np.load(tmp_path / "set" / path)
            scale = 257 if stored.dtype == np.uint8 else 1
            assert np.array_equal(split.decode(index), stored.astype(np.uint16) * scale)


def test_admission_refuses_other_channels_and_says_why(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", noise("uint8", 5))
    (root / "a" / "odd.npy").write_bytes(npy(RNG.integers(0, 9, (20, 20, 4), dtype=np.uint8)))
    dataset = open_dataset(root, DataConfig(channels=5))
    assert [tuple(each) for each in dataset.refused] == [
        ("a/odd.npy", "it has 4 channels, and 5 are asked; give --channels 4")
    ]
    again = open_dataset(root, DataConfig(channels=5))  # from what was kept
    assert again.refused == dataset.refused
    (root / "a" / "odd.npy").unlink()
    with pytest.raises(DataError, match=r"None of the 24 pictures in set can be used; 24 .* 5 channels, and 4 are"):
        open_dataset(root, DataConfig(channels=4))


def test_arrays_are_no_format_in_disguise(tmp_path: Path) -> None:
    found = open_dataset(write_set(tmp_path, noise("uint16", 5)), DataConfig(channels=5)).findings
    assert "extension" not in {item.kind for item in found.items}


def test_without_a_number_of_channels_arrays_are_passed_over_and_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", noise("uint8", 5))
    with pytest.raises(DataError, match=r"no pictures in class folders.* Its \.npy files are read where --channels"):
        open_dataset(root)


def test_what_rgb_loses_is_told_with_the_flag_that_keeps_it(tmp_path: Path) -> None:
    def make(label: str, number: int) -> bytes:
        rng = np.random.default_rng([number, ord(label)])
        if number == 0:
            return deep_png(rng.integers(0, 65536, (20, 20, 3), dtype=np.uint16), 2)
        if number == 1:
            return picture(rng.integers(0, 65536, (20, 20), dtype=np.uint16), "PNG")
        num = 4 if number == 2 else 3
        return picture(rng.integers(0, 256, (20, 20, num), dtype=np.uint8), "PNG")

    dataset = open_dataset(write_set(tmp_path / "set", make, suffix="png"))
    told = {item.text.partition(",")[0]: item for item in dataset.findings.items if item.kind == "reduced"}
    deep, other = told["4 files of more than 8 bits per channel"], told["2 files of other channels than red"]
    assert sorted(deep.paths) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert sorted(other.paths) == ["a/2.png", "b/2.png"]
    assert all("--channels N" in item.text for item in (deep, other))


def test_bands_that_pillow_drops_in_silence_are_told(tmp_path: Path) -> None:
    def make(label: str, number: int) -> bytes:
        rng = np.random.default_rng([number, ord(label)])
        array = rng.integers(0, 256, (20, 20, 5), dtype=np.uint8)
        return tiff(array, photometric="rgb", planarconfig="contig")

    dataset = open_dataset(write_set(tmp_path / "set", make, suffix="tif"))
    assert any(item.kind == "reduced" and "24 files of other channels" in item.text for item in dataset.findings.items)


def test_evaluation_sets_have_the_channels_of_the_model(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", noise("uint8", 5))
    preprocess = Preprocess(image_size=(16, 16), mean=(0.5,) * 5, std=(0.5,) * 5, channels=5, pixel_type="uint16")
    split = open_evaluation_set(root, ("a", "b"), preprocess=preprocess).splits["test"]
    assert split.decode(0).dtype == np.uint16
    assert np.array_equal(split.decode(0), np.load(root / split.paths[0]).astype(np.uint16) * 257)
    narrow = Preprocess(image_size=(16, 16), mean=(0.5,) * 4, std=(0.5,) * 4, channels=4)
    with pytest.raises(DataError, match="it has 5 channels, and the model takes 4"):
        open_evaluation_set(root, ("a", "b"), preprocess=narrow)


@pytest.mark.parametrize("array", [WORDS, FLOATS])
def test_archives_of_arrays_keep_their_channels(tmp_path: Path, array: np.ndarray) -> None:
    images = np.stack([np.roll(array, shift, axis=1) for shift in range(10)] * 2)
    images += np.arange(20, dtype=array.dtype)[:, None, None, None]
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(20) % 2)
    dataset = open_dataset(tmp_path / "x.npz", DataConfig(channels=7, duplicates="off"))
    split = dataset.splits["train"]
    assert np.array_equal(split.decode(0), images[int(split.paths[0].rpartition("/")[2])])
    with pytest.raises(DataError, match=r"7 channels; pictures have 1, 3 or 4\. --channels 7 keeps them"):
        open_dataset(tmp_path / "x.npz")
    np.savez(tmp_path / "grey.npz", images=WORDS.transpose(2, 0, 1)[[0, 1, 2, 3, 4, 5]], labels=np.arange(6) % 2)
    findings = open_dataset(tmp_path / "grey.npz", DataConfig(duplicates="off")).findings
    assert any("6 files of more than 8 bits per channel" in item.text for item in findings.items)


def test_built_in_digits_are_grey_as_they_are() -> None:
    split = open_dataset("digits", DataConfig(channels=1)).splits["val"]
    assert split.decode(0).shape == (8, 8, 1)


def test_pictures_are_shown_by_the_stated_rule() -> None:
    assert np.array_equal(np.asarray(shown(BYTES)), BYTES[..., :3])
    assert np.array_equal(np.asarray(shown(BYTES[..., :2]))[..., 1], BYTES[..., 0])
    dim = np.asarray(shown(WORDS // 100))  # a picture that uses a hundredth of its range
    assert dim.min() == 0
    assert dim.max() == 255
    assert np.asarray(shown(np.full((4, 4, 1), 7, np.uint16))).max() == 0


def test_preprocessing_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ConfigError, match="mean and std have 3 and 3 numbers for 5 channels"):
        Preprocess(image_size=(8, 8), channels=5)
    with pytest.raises(ConfigError, match="give the number of channels"):
        Preprocess(image_size=(8, 8), pixel_type="uint16")
    with pytest.raises(ConfigError, match="channels is 0; it takes a number from 1 to 512"):
        DataConfig(channels=0)
    kept = Preprocess(image_size=(8, 8), channels=1, mean=(0.1,), std=(0.2,), pixel_type="float32")
    assert Preprocess.from_dict(kept.to_dict()) == kept
    assert "channels" not in Preprocess(image_size=(8, 8)).to_dict()
