"""Decoding and preparing single pictures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.config import Preprocess
from vitrail.data import load_pixels
from vitrail.data.images import (
    MAX_PIXELS,
    ImageRefusedError,
    display_name,
    inspect_image,
    open_image,
    prepare,
    side_needed,
)

QUADRANTS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
"""Red, green / blue, white."""


def quadrants(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(QUADRANTS).resize((width, height), Image.Resampling.NEAREST)


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_exif_orientation_is_obeyed(tmp_path: Path, orientation: int, suffix: str) -> None:
    # Inverse of each orientation, written out from the EXIF standard, independently of Pillow's transpositions.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation](np.asarray(quadrants()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif, "quality": 95} if suffix in {"jpg", "webp"} else {"exif": exif}
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), f"a.{suffix}", **options)
    upright = np.asarray(open_image(path), np.int64)
    assert upright.shape == (40, 60, 3)
    # Off the edges of the quadrants, where JPEG rings; a wrong turn differs by 255. Worst measured: 7 (JPEG).
    assert np.abs(upright - np.asarray(quadrants()))[5:15, 5:25].max() <= 20
    assert np.abs(upright - np.asarray(quadrants()))[25:35, 35:55].max() <= 20
    found = inspect_image(path)
    assert (found.width, found.height) == (60, 40)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256 * 8).reshape(8, 256).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        pixels = np.asarray(open_image(saved(tmp_path, Image.fromarray(values), name)))
        assert np.array_equal(pixels[..., 0], np.rint(values / 257).astype(np.uint8))
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_floats_are_taken_from_0_to_1_or_to_255_and_refused_elsewhere(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for scale in (1, 255):
        pixels = np.asarray(open_image(saved(tmp_path, Image.fromarray(ramp * np.float32(scale)), f"{scale}.tif")))
        assert np.array_equal(pixels[..., 1], np.arange(256).reshape(16, 16))
    for name, bad in (("nan", np.nan), ("negative", -1.0), ("large", 1e6)):
        broken = ramp.copy()
        broken[3, 3] = bad
        with pytest.raises(ImageRefusedError, match="values go from"):
            open_image(saved(tmp_path, Image.fromarray(broken), f"{name}.tif"))


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    layer = np.zeros((4, 4, 4), np.uint8)
    layer[:2, :, :3], layer[:2, :, 3] = (200, 100, 0), 255
    layer[2, :, :3], layer[2, :, 3] = (200, 100, 0), 51  # a fifth
    rgba = Image.fromarray(layer)
    pixels = np.asarray(open_image(saved(tmp_path, rgba, "rgba.png")))
    assert pixels[0, 0].tolist() == [200, 100, 0]
    assert pixels[2, 0].tolist() == [244, 224, 204]
    assert pixels[3, 0].tolist() == [255, 255, 255]
    palette = rgba.convert("RGB").quantize(4)
    hidden = palette.getpixel((0, 3))
    shown = np.asarray(open_image(saved(tmp_path, palette, "palette.png", transparency=hidden)))
    assert shown[3, 0].tolist() == [255, 255, 255]
    assert shown[0, 0].tolist() == [200, 100, 0]


@pytest.mark.parametrize(("mode", "name"), [("1", "a.png"), ("L", "a.png"), ("P", "a.gif"), ("CMYK", "a.tif")])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, name: str) -> None:
    checks = np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))
    source = Image.fromarray(checks).convert("RGB").convert(mode)
    image = open_image(saved(tmp_path, source, name))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.repeat(checks[..., None], 3, axis=2))


def test_the_first_picture_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(path))[0, 0].tolist() == [255, 0, 0]


def test_a_large_jpeg_is_decoded_smaller_but_never_below_the_side_needed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((1203, 901), Image.Resampling.BICUBIC)
    path = saved(tmp_path, picture, "a.jpg", quality=95)
    sides = {need: min(open_image(path, min_side=need).size) for need in (1, 112, 113, 225, 226, 450, 451, 901)}
    assert sides == {1: 113, 112: 113, 113: 226, 225: 226, 226: 451, 450: 451, 451: 901, 901: 901}
    # What a model is fed hardly changes: worst measured difference 8 of 255, mean 1.5.
    preprocess = Preprocess(image_size=(96, 96), crop_fraction=0.9)
    small, full = (load_pixels(path, preprocess), prepare(open_image(path), preprocess))
    difference = np.abs(small.astype(int) - full)
    assert difference.max() <= 12
    assert difference.mean() < 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"\0" * 4096, "none of the formats"), (b"<svg></svg>", "none of the formats"), (None, "no such")],
)
def test_what_is_no_picture_is_refused_with_the_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a\nb.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageRefusedError, match=reason) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert "a\\nb.jpg" in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused_by_both_ways_of_decoding(tmp_path: Path, suffix: str, share: float) -> None:
    rng = np.random.default_rng(0)
    path = saved(tmp_path, Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)), f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageRefusedError):
        open_image(path)
    with pytest.raises(ImageRefusedError):
        inspect_image(path)


def test_a_program_in_postscript_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(ImageRefusedError, match="none of the formats"):
        open_image(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageRefusedError, match="regular file"):
        open_image(tmp_path / "a.jpg")


BOMB_TRIAL = """
import resource, sys
from vitrail.data.images import ImageRefusedError, open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_image(path)
    except ImageRefusedError as error:
        print(error.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_decompression_bomb_is_refused_before_its_pixels_take_memory(tmp_path: Path) -> None:
    # The smaller one is below the size at which Pillow itself raises.
    assert MAX_PIXELS < 10_000**2
    paths = [saved(tmp_path, Image.new("1", (side, side)), f"{side}.png") for side in (10_000, 20_000)]
    command = [sys.executable, "-W", "ignore", "-c", BOMB_TRIAL, *map(str, paths)]
    *reasons, grown_mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [("pixels" in reason) for reason in reasons] == [True, True]
    # Measured: 0 MiB. The larger picture as RGB takes 1200 MiB.
    assert int(grown_mib) < 60


def test_crop_takes_the_centre_and_squash_and_pad_take_everything() -> None:
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste((255, 255, 255), (100, 0, 200, 100))
    crop, squash, pad = (
        prepare(picture, Preprocess(image_size=(50, 50), resize=mode, interpolation="nearest"))[..., 0]
        for mode in ("crop", "squash", "pad")
    )
    assert (crop == 255).all()
    assert (squash[:, 17:33] == 255).all()
    assert (squash[:, :16] == 0).all()
    # 300 x 100 fits as 50 x 17 (rounded), the odd row of black below.
    assert np.flatnonzero(pad.any(axis=1)).tolist() == list(range(16, 33))
    assert np.flatnonzero(pad.any(axis=0)).tolist() == list(range(17, 33))


def test_crop_fraction_keeps_that_share_of_the_shorter_side() -> None:
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    kept = prepare(ramp, Preprocess(image_size=(80, 80), crop_fraction=0.8, interpolation="nearest"))[0, :, 0]
    assert kept.tolist() == list(range(60, 140))


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (7, 5), (64, 64), (63, 65)])
@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@pytest.mark.parametrize("target", [(32, 32), (16, 48), (48, 17)])
def test_every_size_is_prepared_to_the_image_size(size: tuple[int, int], mode: str, target: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 20, 30))
    pixels = prepare(picture, Preprocess(image_size=target, resize=mode, crop_fraction=0.77))
    assert pixels.shape == (*target, 3)
    assert pixels.dtype == np.uint8
    assert pixels[(target[0] - 1) // 2, (target[1] - 1) // 2].tolist() == [10, 20, 30]


def test_cropping_agrees_with_cutting_first_where_the_box_is_whole() -> None:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (200, 100, 3), np.uint8))
    whole = prepare(picture, Preprocess(image_size=(25, 25)))
    # In the interior: at the edge the filter sees pixels beyond the box, which cutting first would hide from it.
    expected = np.asarray(picture.crop((0, 50, 100, 150)).resize((25, 25), Image.Resampling.BICUBIC))
    # One level: Pillow rounds between its two passes.
    assert np.abs(whole[2:-2].astype(int) - expected[2:-2]).max() <= 1


def test_the_side_needed_is_twice_what_the_crop_shows() -> None:
    assert side_needed(Preprocess(image_size=(224, 160))) == 448
    assert side_needed(Preprocess(image_size=(224, 224), crop_fraction=0.875)) == 512
    assert side_needed(Preprocess(image_size=(224, 224), crop_fraction=0.5, resize="squash")) == 448


def test_names_that_are_not_utf8_can_be_shown() -> None:
    name = display_name(os.fsdecode(b"caf\xe9\n.jpg"))
    assert name == "caf\\xe9\\n.jpg"
    assert display_name("été.jpg") == "été.jpg"
