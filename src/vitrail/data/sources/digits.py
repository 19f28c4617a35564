"""The 1,797 handwritten digits that come with scikit-learn."""

from typing import Final

import numpy as np

from vitrail.data.records import Record
from vitrail.data.sources.contract import Listing, Source, Traits
from vitrail.data.sources.pixels import ArrayPictures, Block

NAME: Final = "digits"

_PEAK: Final = 16


def open_digits() -> Source:
    """Return the digits, 8 x 8 pixels; grey levels 0..16 become 0..255. Their paths are digits/0000 and so on."""
    from sklearn.datasets import load_digits as load  # takes a second to import, and only this source needs it

    digits = load()
    pixels = np.rint(digits.images * (255 / _PEAK)).astype(np.uint8)
    records = [Record(path=f"{NAME}/{number:04d}", label=str(label)) for number, label in enumerate(digits.target)]
    return Source(
        name=NAME,
        place=NAME,
        pictures=ArrayPictures({NAME: Block(pixels)}),
        list=lambda group_by: Listing(divided=False, records=records),
        traits=Traits(flip=False, augment="light"),
    )
