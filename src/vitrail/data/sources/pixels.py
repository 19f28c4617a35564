"""Pictures in arrays: decoded already, or the bytes of picture files one after the other."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from PIL import Image

from vitrail.data.images import ImageRefusedError, Inspection, decode_bytes, inspect_bytes, inspect_picture, to_rgb
from vitrail.data.inspections import FileKey

CHANNELS: Final = (1, 3, 4)
"""Of pictures that become RGB: grey, RGB, and RGB with opacity."""

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, eq=False)
class Block:
    """An array of pictures; its path name/00042 is its 42nd, counted from 0."""

    pixels: np.ndarray = field(repr=False)
    """(n, H, W) or (n, H, W, C). With ``offsets`` uint8 (m,), the bytes of picture files."""
    offsets: np.ndarray | None = None
    """int (n + 1,), where the bytes of each picture begin, and where those of the last end."""
    file: FileKey | None = None
    """Key of the file it comes from."""
    peak: float = 1.0
    """What stands for white in floats: 1 or 255."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pixels) if self.offsets is None else len(self.offsets) - 1

    def __getitem__(self, number: int) -> bytes | np.ndarray:
        """Return the bytes of a file, or the pixels (H, W) or (H, W, C) as they are kept."""
        if self.offsets is not None:
            return self.pixels[self.offsets[number] : self.offsets[number + 1]].tobytes()
        pixels = np.ascontiguousarray(self.pixels[number])
        return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


@dataclass(frozen=True, eq=False)
class ArrayPictures:
    """Pictures of blocks."""

    blocks: Mapping[str, Block]
    """By name."""

    def open(self, path: str, min_side: int | None) -> Image.Image:
        """Return the picture; pixels in full size."""
        stored = self.stored(path)
        if isinstance(stored, bytes):
            return decode_bytes(stored, path, min_side=min_side)
        return to_rgb(_picture(stored, path, self._find(path)[0].peak))

    def stored(self, path: str) -> bytes | np.ndarray:
        """Return the bytes of a file, or the pixels as they are kept."""
        block, number = self._find(path)
        return block[number]

    def inspect(self, path: str) -> Inspection:
        """Look at the picture."""
        stored = self.stored(path)
        if isinstance(stored, bytes):
            return inspect_bytes(stored, path)
        picture = self.open(path, None)
        sha256 = hashlib.sha256(stored.tobytes()).hexdigest()
        mode = _MODES[1 if stored.ndim == 2 else stored.shape[2]]
        mode += ";16" if stored.dtype == np.uint16 or stored.dtype.kind == "f" else ""  # more than 8 bits were reduced
        return inspect_picture(picture, size=picture.size, sha256=sha256, format="", mode=mode)

    def key(self, path: str) -> FileKey | None:
        """Return the key of the file that has the picture."""
        block = self.blocks.get(path.rpartition("/")[0])
        return None if block is None else block.file

    def _find(self, path: str) -> tuple[Block, int]:
        name, _, number = path.rpartition("/")
        block = self.blocks.get(name)
        if block is None or not number.isdecimal() or int(number) >= len(block):
            raise ImageRefusedError(path, "there is no such picture")
        return block, int(number)


def numbered(name: str, num: int) -> list[str]:
    """Return the paths of a block's pictures: name/00000 and so on, with as many digits as sort them by number."""
    digits = max(5, len(str(num - 1)))
    return [f"{name}/{number:0{digits}d}" for number in range(num)]


def _picture(pixels: np.ndarray, path: str, peak: float) -> Image.Image:
    """Return pixels of any type as an 8-bit picture, by the rule of `vitrail.data.sources.arrays`."""
    if pixels.ndim == 3 and pixels.shape[2] not in CHANNELS:
        num = pixels.shape[2]
        raise ImageRefusedError(path, f"it has {num} channels; pictures have 1, 3 or 4. --channels {num} keeps them")
    if pixels.dtype == np.uint8:
        return Image.fromarray(pixels)
    if pixels.dtype == np.bool_:
        return Image.fromarray(pixels.astype(np.uint8) * 255)
    if pixels.dtype == np.uint16:
        return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))
    low, high = float(pixels.min()), float(pixels.max())  # NaN, if there is one
    if not (low >= 0 and high <= 255):
        raise ImageRefusedError(
            path, f"its values go from {low:g} to {high:g}; arrays take 0 to 255, or 0 to 1 as floats"
        )
    scale = 255 / peak if pixels.dtype.kind == "f" else 1
    return Image.fromarray(np.rint(pixels * scale).astype(np.uint8))
