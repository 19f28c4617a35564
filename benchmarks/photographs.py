"""Photographs of the size that cameras make, from smaller ones: for measuring only.

Enlarged pictures alone would be smooth, and so cheaper to decode than what a camera writes. So grain is added until the
files are as large as those of telephones: 3 to 4 MB for 12 megapixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (4032, 3024)
"""Width and height of a telephone's 12 megapixels."""

_GRAIN = 5.0
_QUALITY = 92


def make_camera_photographs(source: Path, folder: Path, num: int) -> Path:
    """Write ``num`` JPEG files of `SIZE` in two folders below ``folder``, as of two classes; return ``folder``.

    Each is another photograph below ``source``, cut to 4:3, enlarged and grained; 4:2:0 chroma, as cameras write.
    """
    paths = sorted(path for path in source.rglob("*.jpg") if path.is_file())
    rng = np.random.default_rng(0)
    for number, place in enumerate(np.linspace(0, len(paths) - 1, num).astype(int).tolist()):
        with Image.open(paths[place]) as image:
            large = np.asarray(_cut(image.convert("RGB")).resize(SIZE, Image.Resampling.BICUBIC), np.float32)
        grain = rng.standard_normal(large.shape[:2], np.float32)[..., None] * _GRAIN
        path = folder / "ab"[number % 2] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(large + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    return folder


def _cut(image: Image.Image) -> Image.Image:
    """Return the largest centred part of the proportions of `SIZE`."""
    scale = min(image.width / SIZE[0], image.height / SIZE[1])
    width, height = round(SIZE[0] * scale), round(SIZE[1] * scale)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
