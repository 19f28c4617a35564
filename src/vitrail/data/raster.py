"""Decoded pictures of both kinds, 8-bit RGB and channels as they are: their size, resizing, and how they are shown."""

from typing import Final

import numpy as np
from PIL import Image

Picture = Image.Image | np.ndarray
"""An 8-bit RGB picture of Pillow; or (H, W, C) of uint8, uint16 or float32, its channels as they are."""

Box = tuple[float, float, float, float]

_UINT16_PEAK: Final = 65535
_SHOWN_RANGE: Final = (1, 99)
_FEWEST_FOR_COLOUR: Final = 3
_SAMPLED_SIDE: Final = 256


def size_of(picture: Picture) -> tuple[int, int]:
    """Return width and height."""
    if isinstance(picture, Image.Image):
        return picture.size
    return picture.shape[1], picture.shape[0]


def resize(picture: Picture, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None) -> np.ndarray:
    """Resize the part ``box`` of a picture (left, top, right, bottom; default: all) to ``size``, width and height.

    Every channel is resized by itself, with antialiasing; 16-bit integers and floats in float32.

    Returns:
        (height, width, C) of the picture's type.
    """
    if isinstance(picture, Image.Image):
        return np.array(picture.resize(size, resample, box=box))
    planes = [_resize_plane(picture[..., channel], size, resample, box) for channel in range(picture.shape[2])]
    return np.stack(planes, axis=-1)


def shown(picture: Picture) -> Image.Image:
    """Return a picture as people see it, 8-bit RGB.

    Of channels as they are it shows the first three as red, green and blue, or the first one in grey where there are
    fewer. Bytes stay what they are; other values are stretched, so that 1 % of them is black and 1 % white.
    """
    if isinstance(picture, Image.Image):
        return picture
    bands = picture[..., :3] if picture.shape[2] >= _FEWEST_FOR_COLOUR else picture[..., 0]
    if bands.dtype != np.uint8:
        every = max(1, min(bands.shape[:2]) // _SAMPLED_SIDE)
        low, high = np.percentile(bands[::every, ::every], _SHOWN_RANGE)
        scale = 255 / (high - low) if high > low else 1.0
        bands = np.clip((bands.astype(np.float32) - low) * scale, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(bands)).convert("RGB")


def _resize_plane(plane: np.ndarray, size: tuple[int, int], resample: Image.Resampling, box: Box | None) -> np.ndarray:
    if plane.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, resample, box=box))
    resized = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, resample, box=box))
    if plane.dtype == np.uint16:
        resized = np.clip(np.rint(resized), 0, _UINT16_PEAK).astype(np.uint16)
    return resized
