"""Pictures that are decoded already: arrays of pixels in memory, or mapped into it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vitrail.data.images import ImageRefusedError, Inspection, inspect_picture, to_rgb
from vitrail.data.inspections import FileKey


@dataclass(frozen=True, eq=False)
class PixelPictures:
    """Pictures of arrays; "train/00042" is the 42nd, counted from 0, of the array "train"."""

    arrays: Mapping[str, np.ndarray] = field(repr=False)
    """By name, uint8 (n, H, W) or (n, H, W, C): grey, or C = 1, 3 or 4 for grey, RGB and RGB with opacity."""
    file: FileKey | None
    """Key of the file that they all come from."""

    def open(self, path: str, min_side: int | None) -> Image.Image:
        """Return the picture in full size."""
        return to_rgb(Image.fromarray(self._pixels(path)))

    def stored(self, path: str) -> np.ndarray:
        """Return the array."""
        return self._pixels(path)

    def inspect(self, path: str) -> Inspection:
        """Look at the picture."""
        pixels = self._pixels(path)
        stored = Image.fromarray(pixels)
        picture = to_rgb(stored)
        sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        return inspect_picture(picture, size=picture.size, sha256=sha256, format="", mode=stored.mode)

    def key(self, path: str) -> FileKey | None:
        """Return the key of the file."""
        return self.file

    def _pixels(self, path: str) -> np.ndarray:
        name, _, number = path.rpartition("/")
        array = self.arrays.get(name)
        if array is None or not number.isdecimal() or int(number) >= len(array):
            raise ImageRefusedError(path, "there is no such picture")
        pixels = np.ascontiguousarray(array[int(number)])
        return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def numbered(name: str, num: int) -> list[str]:
    """Return the paths of an array's pictures: name/00000 and so on, with as many digits as sort them by number."""
    digits = max(5, len(str(num - 1)))
    return [f"{name}/{number:0{digits}d}" for number in range(num)]
