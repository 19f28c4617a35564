"""The channels of a picture file as they are, where a number of channels is asked for.

The rule, for every file; what `vitrail.data.images` says of formats, damage, limits and orientation holds here too:

* ``.npy``: (H, W) or (H, W, C) of uint8, uint16 or float32. An array of objects is a pickle, and refused.
* TIFF: the samples of its first page, uint8, uint16 or float32. What Pillow does not read in full, more than 8 bits in
  several channels or more than 4 channels, is read by tifffile, an extra.
* Every other format by Pillow: grey is one channel, grey with transparency two, RGB three, RGBA and CMYK four; a
  palette is its colours. 16-bit grey stays 16-bit. Several channels of more than 8 bits are refused, for Pillow halves
  them.
* Floats are taken as they are; values that are not finite are refused.
* Another number of channels than is asked for is refused, never cut or filled up; but where one is asked for, RGB
  becomes luma (ITU-R BT.601: 0.299 red + 0.587 green + 0.114 blue).
* Where pictures of one source differ in type, all become the widest: uint8 times 257 is uint16; uint8 / 255 and
  uint16 / 65535 are float32. A narrower type than the file's is never made.
"""

import io
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitrail.config import PixelType, Preprocess
from vitrail.data.images import (
    MAX_PIXELS,
    TIFF_STARTS,
    ImageRefusedError,
    RefusalError,
    decode_bytes,
    decode_with,
    prepare,
    read_file,
    side_needed,
    stored_mode,
    too_many_pixels,
    why_damaged,
)

MAX_DECODED_BYTES: Final = 2**30
"""Above this a picture's channels are refused; the header tells how many there are."""

LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (ITU-R BT.601), as Pillow's."""

PIXEL_TYPES: Final[tuple[PixelType, ...]] = get_args(PixelType)
"""From the narrowest to the widest."""

# What these two log of damaged files is told by the refusal; without a handler Python prints it.
for _name in ("PIL.TiffImagePlugin", "tifffile"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

_NPY: Final = b"\x93NUMPY"
_KINDS: Final = {
    **dict.fromkeys(("L", "I", "I;16", "I;16L", "I;16B", "F"), "grey"),
    "LA": "grey with transparency",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "CMYK": "CMYK",
    "LAB": "LAB",
}
_CONVERTED: Final = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA", "YCbCr": "RGB", "HSV": "RGB"}
_TRANSPARENT: Final = {"L": "LA", "RGB": "RGBA", "P": "RGBA"}
_FIRST_TRANSPOSED_ORIENTATION: Final = 5
_REVERSED: Final = {
    2: (False, True),
    3: (True, True),
    4: (True, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}
"""Whether the order of rows and of columns is reversed, after rows and columns are exchanged from 5 on."""
_RGB_PHOTOMETRIC: Final = 2
_RGB_CHANNELS: Final = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Planes:
    """The channels of one picture."""

    values: np.ndarray
    """(H, W, C) of uint8, uint16 or float32, upright; those of a JPEG perhaps smaller. Not to be written to."""
    kind: str
    """grey, grey with transparency, RGB, RGBA, CMYK, LAB, or "5 channels" where nobody knows what they are."""
    width: int
    """Pixels, upright, in full size."""
    height: int
    format: str = ""
    animated: bool = False


def decode_planes(stored: bytes | np.ndarray, name: str | Path, *, min_side: int | None = None) -> Planes:
    """Return the channels of a picture file, or of an array that needs no decoding.

    Args:
        stored: the file's bytes; or (H, W) or (H, W, C) of uint8, uint16 or float32.
        name: of the file, for the error.
        min_side: as in `open_image`.

    Raises:
        ImageRefusedError: with the reason.
    """
    try:
        if isinstance(stored, np.ndarray):
            return _of_array(stored, "")
        if stored.startswith(_NPY):
            return _from_npy(stored)
        if stored.startswith(TIFF_STARTS) and not _pillow_reads_all(stored):
            return _from_tiff(stored)
        return _from_pillow(stored, min_side)
    except RefusalError as refusal:
        raise ImageRefusedError(name, str(refusal)) from refusal


def fit(planes: Planes, name: str | Path, channels: int, pixel_type: PixelType | None) -> np.ndarray:
    """Return the values (H, W, channels), of ``pixel_type`` where it is decided already.

    Raises:
        ImageRefusedError: if the picture has other channels, or a wider type.
    """
    values, num = planes.values, planes.values.shape[2]
    if channels == 1 and planes.kind == "RGB":
        values = _luma(values)
    elif num != channels:
        told = f"{num} channel{'' if num == 1 else 's'}"
        told = told if planes.kind.endswith("channels") else f"{told} ({planes.kind})"
        asked = f"{channels} {'is' if channels == 1 else 'are'} asked; give --channels {num}"
        raise ImageRefusedError(
            name, f"it has {told}, and {asked if pixel_type is None else f'the model takes {channels}'}"
        )
    if pixel_type is None or values.dtype == pixel_type:
        return values
    own = cast("PixelType", str(values.dtype))
    if PIXEL_TYPES.index(own) > PIXEL_TYPES.index(pixel_type):
        raise ImageRefusedError(name, f"its values are {own}, and the model takes {pixel_type}")
    if pixel_type == "uint16":
        wide: np.ndarray = np.multiply(values, 257, dtype=np.uint16)
        return wide
    shares: np.ndarray = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return shares


def load_pixels(path: str | Path, preprocess: Preprocess) -> np.ndarray:
    """Return the pixels of a file ready for a model: uint8 RGB (H, W, 3), or its channels (H, W, C).

    Raises:
        ImageRefusedError: with the reason.
    """
    data, side = read_file(path), side_needed(preprocess)
    if preprocess.channels is None:
        return prepare(decode_bytes(data, path, min_side=side), preprocess)
    planes = decode_planes(data, path, min_side=side)
    return prepare(fit(planes, path, preprocess.channels, preprocess.pixel_type), preprocess)


def _luma(values: np.ndarray) -> np.ndarray:
    """Return the grey value (H, W, 1) of RGB (H, W, 3)."""
    if values.dtype == np.uint8:
        return np.asarray(Image.fromarray(values).convert("L"))[..., None]
    grey: np.ndarray = values.astype(np.float64) @ np.array(LUMA)
    rounded: np.ndarray = np.rint(grey) if values.dtype == np.uint16 else grey
    return rounded.astype(values.dtype)[..., None]


def _of_array(values: np.ndarray, name: str, *, kind: str | None = None) -> Planes:
    """Check an array (H, W) or (H, W, C) and make it (H, W, C) in the machine's order of bytes."""
    values = values[..., None] if values.ndim == 2 else values
    native = values.dtype.newbyteorder("=")
    if str(native) not in PIXEL_TYPES:
        raise RefusalError(f"its values are {native}; {', '.join(PIXEL_TYPES)} are read")
    if values.ndim != 3 or 0 in values.shape:
        raise RefusalError(f"it is an array of shape {values.shape}; (H, W) and (H, W, C) are read")
    values = values.astype(native, copy=False)
    if native == np.float32 and not np.isfinite(values).all():
        raise RefusalError("it has values that are not finite")
    height, width, num = values.shape
    usual = "grey" if num == 1 else f"{num} channels"
    return Planes(values=values, kind=kind or usual, width=width, height=height, format=name)


def _check_size(height: int, width: int, num_bytes: int) -> None:
    """Refuse what is too large, before it is decoded."""
    if height * width > MAX_PIXELS:
        raise RefusalError(too_many_pixels(height * width))
    if num_bytes > MAX_DECODED_BYTES:
        raise RefusalError(
            f"its channels take {num_bytes / 2**20:,.0f} MiB; at most {MAX_DECODED_BYTES // 2**20} are read"
        )


def _from_npy(data: bytes) -> Planes:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in headers:
            raise RefusalError(f"it is a .npy file of version {version}; 1.0 and 2.0 are read")
        shape, fortran_order, dtype = headers[version](stream)
    except RefusalError:
        raise
    except Exception as error:  # whatever a damaged header makes numpy raise
        raise RefusalError(why_damaged(error)) from error
    if dtype.hasobject:
        raise RefusalError("it is an array of Python objects, which are never loaded")
    if len(shape) not in {2, 3}:
        raise RefusalError(f"it is an array of shape {shape}; (H, W) and (H, W, C) are read")
    expected, found = int(np.prod(shape, dtype=object)) * dtype.itemsize, len(data) - stream.tell()
    _check_size(shape[0], shape[1], expected)
    if expected != found:
        raise RefusalError(f"it is damaged (it has {found:,} bytes of values, and its header says {expected:,})")
    values = np.frombuffer(data, dtype, offset=stream.tell())
    return _of_array(values.reshape(shape, order="F" if fortran_order else "C"), "NPY")


def _pillow_reads_all(data: bytes) -> bool:
    """Return whether Pillow knows this kind of TIFF, and gives all channels in all their bits."""
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            return stored_mode(image, data) == image.mode  # else it has more bits, or more channels
    except UnidentifiedImageError:
        return False
    except Exception:  # noqa: BLE001 - it is opened again, and the reason told, by whoever reads it
        return True


def _from_tiff(data: bytes) -> Planes:
    try:
        import tifffile  # an extra
    except ImportError as error:
        raise RefusalError(
            "Pillow reads only a part of this TIFF, or nothing; install tifffile for it (pip install 'vitrail[tiff]')"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            animated = len(file.pages) > 1
            separate, depth, height, width, contiguous = page.shaped
            if depth != 1 or page.dtype is None:
                raise RefusalError("it is a volume, or its values are of a type that is not read")
            _check_size(height, width, separate * height * width * contiguous * page.dtype.itemsize)
            values = page.asarray(maxworkers=1).reshape(page.shaped)
            values = values[0, 0] if separate == 1 else np.moveaxis(values[:, 0, ..., 0], 0, -1)
            values = _turned(values, page.tags.valueof("Orientation", 1))
            is_rgb = page.photometric == _RGB_PHOTOMETRIC and values.shape[2] == _RGB_CHANNELS
    except RefusalError:
        raise
    except Exception as error:  # a decoder raises anything on hostile bytes
        if "imagecodecs" in str(error):
            raise RefusalError("its compression needs the package imagecodecs (pip install 'vitrail[tiff]')") from error
        raise RefusalError(why_damaged(error)) from error
    found = _of_array(values, "TIFF", kind="RGB" if is_rgb else None)
    return replace(found, animated=animated)


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return (H, W, C) upright, by the orientation in its tags, 1 to 8."""
    if orientation >= _FIRST_TRANSPOSED_ORIENTATION:
        values = values.swapaxes(0, 1)
    rows, columns = _REVERSED.get(orientation, (False, False))
    return values[:: -1 if rows else 1, :: -1 if columns else 1]


def _from_pillow(data: bytes, min_side: int | None) -> Planes:
    found = decode_with(_as_stored, data, min_side)
    if found.mode.endswith(";16") and not found.mode.startswith("I"):
        raise RefusalError(
            "it has more than 8 bits in several channels, of which Pillow reads 8; convert it to TIFF or .npy"
        )
    values = np.asarray(found.upright)
    if found.upright.mode == "I":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > np.iinfo(np.uint16).max:
            raise RefusalError(f"its values go from {low} to {high}; integers are taken from 0 to 65535")
        values = values.astype(np.uint16)
    checked = _of_array(values, found.format, kind=_KINDS.get(found.upright.mode))
    return replace(checked, width=found.width, height=found.height, animated=found.animated)


def _as_stored(image: Image.Image) -> Image.Image:
    """Return a loaded picture with each of its channels, palettes and odd modes converted."""
    if image.mode in _TRANSPARENT and image.has_transparency_data:
        return image.convert(_TRANSPARENT[image.mode])
    if image.mode == "P":
        return image.convert("RGB")
    if image.mode in _CONVERTED:
        return image.convert(_CONVERTED[image.mode])
    return image.copy() if image.readonly else image
