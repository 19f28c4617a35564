"""From the bytes of a picture file to RGB pixels: what is opened, what is refused, and how each kind becomes RGB.

`vitrail.data.planes` has the rule for channels as they are. The rule here, for every file:

* Only the formats in `FORMATS` are opened, and of an animation or a file of several pages the first picture.
* A file that is empty, damaged, cut short or larger than `MAX_FILE_BYTES` or `MAX_PIXELS` is refused, never repaired.
* The orientation in the EXIF or TIFF tags is obeyed. Colour profiles are not applied.
* Grey and 1-bit pictures become RGB by repetition, palettes and CMYK by Pillow's conversion.
* Transparent pixels are laid over white.
* 16-bit grey is scaled from 0..65535 to 0..255, never clipped; 16-bit colour keeps its upper 8 bits.
* Floating-point pictures are taken as 0..1 or, where a value is above 1, as 0..255; other values are refused.
"""

import functools
import hashlib
import io
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitrail.config import Interpolation, Preprocess
from vitrail.data.jpeg import why_too_many_scans
from vitrail.data.raster import Picture, resize, size_of
from vitrail.errors import DataError

FORMATS: Final = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is opened. Formats that run programs or interpreters (EPS, PS, WMF) are not among them."""

MAX_PIXELS: Final = 89_478_485
"""Above this a picture is refused; it is where Pillow begins to warn of decompression bombs (268 MB as RGB)."""

MAX_FILE_BYTES: Final = 512 * 2**20
"""Above this a file is refused without being read."""

_FILTERS: Final[dict[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

THUMB_SIDE: Final = 24
"""Height and width of the small grey picture by which pictures are compared."""

INSPECTED_SIDE: Final = 2 * THUMB_SIDE
"""Shortest side in pixels at which a JPEG is decoded to be inspected."""

TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF, of either byte order and with 32- or 64-bit offsets."""

_RESERVE: Final = 2
_PAGED_PHOTOGRAPHS: Final = frozenset({"MPO"})
_ORIENTATION_TAG: Final = 0x0112
_SAMPLES_TAG: Final = 0x0115
_BYTE_PEAK: Final = 255
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_SIDEWAYS_ORIENTATION: Final = 5


class ImageRefusedError(DataError):
    """A file is not used as a picture; ``reason`` says why, without the file's name."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{display_name(path)} is not used: {reason}.")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What one complete decoding tells about a file."""

    width: int
    """Pixels, after the orientation is obeyed."""
    height: int
    """Pixels, after the orientation is obeyed."""
    sha256: str
    """Of the file's bytes, hexadecimal."""
    pixels: bytes
    """16 bytes of hash over size and RGB pixels; those of a JPEG as it was decoded, perhaps smaller."""
    thumb: bytes
    """Grey values, uint8 (THUMB_SIDE, THUMB_SIDE), of the picture squashed to a square."""
    colour: tuple[int, int]
    """Mean Cb and Cr, 0 to 255, 128 where it is grey."""
    format: str
    """One of `FORMATS`."""
    mode: str
    """Pillow's name for the channels in the file, such as RGB, L, CMYK or I;16; with ";16" where a channel of several
    has more than 8 bits, with ";X" where the file has more channels. Of channels as they are, see `ChannelPictures`."""
    animated: bool
    """Whether there are more pictures in the file than the first, which is used."""


def open_image(path: str | Path, *, min_side: int | None = None) -> Image.Image:
    """Decode a file to an upright 8-bit RGB picture.

    Args:
        path: the file.
        min_side: shortest side in pixels that is needed. A larger JPEG is then decoded at 1/2, 1/4 or 1/8 of its size,
            as long as no side falls below it, which is several times faster. Default: full size.

    Raises:
        ImageRefusedError: with the reason, for whatever is not a whole picture within the limits.
    """
    return decode_bytes(read_file(path), path, min_side=min_side)


def decode_bytes(data: bytes, name: str | Path, *, min_side: int | None = None) -> Image.Image:
    """Decode the bytes of a picture file as `open_image` does; ``name`` is for its error."""
    try:
        return decode_with(to_rgb, data, min_side).upright
    except RefusalError as refusal:
        raise ImageRefusedError(name, str(refusal)) from refusal


def inspect_image(path: str | Path) -> Inspection:
    """Read and decode the whole file once, as cheaply as that can be done.

    Raises:
        ImageRefusedError: with the reason, exactly where `open_image` would raise it.
    """
    return inspect_bytes(read_file(path), path)


def inspect_bytes(data: bytes, name: str | Path) -> Inspection:
    """Decode the bytes of a picture file once, as `inspect_image` does; ``name`` is for its error."""
    try:
        # A JPEG decoded at 1/8 still reads every byte of its entropy-coded data, which is where damage shows.
        found = decode_with(to_rgb, data, INSPECTED_SIDE)
    except RefusalError as refusal:
        raise ImageRefusedError(name, str(refusal)) from refusal
    return inspect_picture(
        found.upright,
        size=(found.width, found.height),
        sha256=hashlib.sha256(data).hexdigest(),
        format=found.format,
        mode=found.mode,
        animated=found.animated,
    )


def inspect_picture(
    picture: Image.Image, *, size: tuple[int, int], sha256: str, format: str, mode: str, animated: bool = False
) -> Inspection:
    """Return what an RGB picture tells; ``size`` is (width, height) of the whole one, and the rest as `Inspection`."""
    width, height = size
    digest = hashlib.blake2b(picture.tobytes(), digest_size=16, key=b"%d x %d" % size)
    thumb = squash(picture, THUMB_SIDE)
    return Inspection(
        width=width,
        height=height,
        sha256=sha256,
        pixels=digest.digest(),
        thumb=thumb[..., 0].tobytes(),
        colour=(round(thumb[..., 1].mean()), round(thumb[..., 2].mean())),
        format=format,
        mode=mode,
        animated=animated,
    )


def squash(image: Image.Image, side: int) -> np.ndarray:
    """Return an RGB picture of any size as uint8 (side, side, 3): grey value, Cb, Cr."""
    box = Image.Resampling.BOX if min(image.size) >= side else Image.Resampling.BILINEAR
    return np.asarray(image.resize((side, side), box).convert("YCbCr"))


def prepare(image: Picture, preprocess: Preprocess) -> np.ndarray:
    """Resize a picture as ``preprocess`` says, in one resampling step with antialiasing.

    crop: the largest centred rectangle with the proportions of ``image_size``, shrunk by ``crop_fraction`` on both
    sides, is resized to ``image_size``. squash: the whole picture is. pad: the whole picture is resized to fit inside
    ``image_size`` (sides rounded to whole pixels, at least 1) and centred on black, the odd pixel right and below.

    Returns:
        uint8 (H, W, 3), red green blue; of channels as they are (H, W, C) of their type.
    """
    height, width = preprocess.image_size
    resample = _FILTERS[preprocess.interpolation]
    if preprocess.resize == "crop":
        box = _centre_box(size_of(image), (width, height), preprocess.crop_fraction)
        return resize(image, (width, height), resample, box)
    if preprocess.resize == "squash":
        return resize(image, (width, height), resample)
    own_width, own_height = size_of(image)
    scale = min(width / own_width, height / own_height)
    fitted = resize(image, (max(1, round(own_width * scale)), max(1, round(own_height * scale))), resample)
    top, left = (height - fitted.shape[0]) // 2, (width - fitted.shape[1]) // 2
    pixels = np.zeros((height, width, fitted.shape[2]), fitted.dtype)
    pixels[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return pixels


def side_needed(preprocess: Preprocess) -> int:
    """Return the shortest side in pixels at which a picture is decoded for `prepare`: twice what the result shows.

    Twice, so that the result hardly depends on whether a JPEG was decoded smaller, which another program that runs the
    model may not do. Measured on 90 photographs of flowers5 at 32, 48 and 64 pixels, the difference to decoding in full
    size is 1.1 of 255 on average and 6.4 in the worst picture; without the reserve 2.6 and 14.5.
    """
    fraction = preprocess.crop_fraction if preprocess.resize == "crop" else 1.0
    return math.ceil(_RESERVE * max(preprocess.image_size) / fraction)


def read_file(path: str | Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ImageRefusedError: if it is no regular file (a pipe would block for ever), too large or unreadable.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  (per image)
        if not stat.S_ISREG(status.st_mode):
            raise ImageRefusedError(path, "it is not a regular file")
        num_bytes = status.st_size
        if num_bytes > MAX_FILE_BYTES:
            raise ImageRefusedError(
                path, f"it has {num_bytes / 2**20:.0f} MiB; at most {MAX_FILE_BYTES // 2**20} are read"
            )
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (per image)
            data = file.readall()
    except FileNotFoundError as error:
        raise ImageRefusedError(path, "there is no such file") from error
    except OSError as error:
        raise ImageRefusedError(path, f"it cannot be read ({error.strerror or error})") from error
    return data


def display_name(path: str | Path) -> str:
    """Return a file's name as text that any terminal and file can take: other bytes and line breaks are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class RefusalError(Exception):
    """Why bytes are not used as a picture."""


@functools.cache
def _installed_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow has, after registering its plugins."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@dataclass(frozen=True)
class Decoded:
    """A picture and what its file told of it."""

    upright: Image.Image
    """Converted, perhaps decoded smaller."""
    width: int
    """Upright, in full size."""
    height: int
    format: str
    mode: str
    animated: bool


def decode_with(convert: Callable[[Image.Image], Image.Image], data: bytes, min_side: int | None) -> Decoded:
    """Decode the bytes of a picture file; raises RefusalError. ``convert`` is given the loaded picture."""
    if not data:
        raise RefusalError("it is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_installed_formats()) as image:
            width, height = image.size
            _check_cost(data, width * height, image.format)
            mode, animated = stored_mode(image, data), _is_animated(image)
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            image.load()
            # Pillow turns a TIFF itself while loading, and then forgets the tag: so this is read afterwards.
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            upright = convert(image)
            name = image.format or ""
    except RefusalError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(TIFF_STARTS):
            raise RefusalError("it is a damaged TIFF, or one of channels that only --channels reads") from error
        raise RefusalError(why_damaged(error)) from error
    except Exception as error:  # A decoder raises anything on hostile bytes; here it becomes a refusal.
        raise RefusalError(why_damaged(error)) from error
    if orientation in _TURNS:
        upright = upright.transpose(_TURNS[orientation])
        if orientation >= _FIRST_SIDEWAYS_ORIENTATION:
            width, height = height, width
    return Decoded(upright, width, height, name, mode, animated)


def _check_cost(data: bytes, num_pixels: int, name: str | None) -> None:
    """Refuse what would take gigabytes or minutes to decode."""
    if num_pixels > MAX_PIXELS:
        raise RefusalError(too_many_pixels(num_pixels))
    if name in {"JPEG", "MPO"} and (reason := why_too_many_scans(data, num_pixels)):
        raise RefusalError(reason)


def stored_mode(image: Image.Image, data: bytes) -> str:
    """Return the `Inspection.mode` of a picture that is not loaded yet."""
    samples = getattr(image, "tag_v2", {}).get(_SAMPLES_TAG, 1) if image.format == "TIFF" else 1
    if samples > len(image.getbands()):
        return f"{image.mode};X"
    if image.mode.startswith(("I", "F")):
        return image.mode
    tiles = getattr(image, "tile", ())  # what Pillow is about to decode, of which it halves deep channels
    arguments = tiles[0].args if tiles else ""
    raw, *rest = (arguments,) if isinstance(arguments, str) else tuple(arguments or ("",))
    # Byte 2 of the configuration of an AVIF holds the flag for more than 8 bits (AV1-ISOBMFF, section 2.3.3).
    place = data.find(b"av1C") + 6 if image.format == "AVIF" else 0
    deep_avif = 6 <= place < len(data) and data[place] & 0x40
    if ";16" in str(raw) or (image.format == "PPM" and rest and int(rest[0]) > _BYTE_PEAK) or deep_avif:
        return f"{image.mode};16"
    return image.mode


def _is_animated(image: Image.Image) -> bool:
    """Return whether there is a second picture; the second one that phones add to a photograph does not count."""
    return image.format not in _PAGED_PHOTOGRAPHS and bool(getattr(image, "is_animated", False))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded picture of any mode as RGB, by the rule at the top of this file."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode.startswith("I"):
        return _grey(_from_integers(np.asarray(image)))
    if image.mode == "F":
        return _grey(_from_floats(np.asarray(image)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _from_integers(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise RefusalError(f"its values go from {low} to {high}; integers are taken from 0 to 65535")
    nearest: np.ndarray = (values.astype(np.uint32) + 128) // 257
    return nearest.astype(np.uint8)


def _from_floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())  # NaN, if there is one
    if not (low >= 0 and high <= 255):
        raise RefusalError(f"its values go from {low:g} to {high:g}; floats are taken from 0 to 1 or from 0 to 255")
    nearest: np.ndarray = np.rint(values * (255 if high <= 1 else 1))
    return nearest.astype(np.uint8)


def _centre_box(size: tuple[int, int], target: tuple[int, int], fraction: float) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the centred box with the proportions of ``target``; all (width, height)."""
    scale = min(size[0] / target[0], size[1] / target[1]) * fraction
    width, height = min(target[0] * scale, size[0]), min(target[1] * scale, size[1])
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, min(left + width, size[0]), min(top + height, size[1])


def too_many_pixels(num_pixels: int) -> str:
    """Return why a picture of so many pixels is refused."""
    return f"it has {num_pixels / 1e6:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are decoded"


def why_damaged(error: Exception) -> str:
    """Say in a few words what a decoder's exception means."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of the formats {', '.join(FORMATS)}, or its header is damaged"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has too many pixels; at most {MAX_PIXELS / 1e6:.0f} million are decoded"
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    detail = " ".join(str(error).split())
    return f"it is damaged ({detail})" if detail else f"it is damaged ({type(error).__name__})"
