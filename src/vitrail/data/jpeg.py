"""What the markers of a JPEG file tell, without decoding it (ITU-T T.81, annex B)."""

import re
from typing import Final

MAX_SCANS: Final = 200
"""Above this many passes over its pixels a JPEG is refused; cameras and programs write up to 14 or so. It limits the
time a small file can take without a clock, so that the answer is the same on a slow machine."""

MAX_SCANNED_PIXELS: Final = 1_431_655_760
"""The same for passes times pixels, which is what the time grows with: about 1 ns each, so that no file takes long.
It is 16 passes over the largest picture that is decoded at all."""

# What ends a stretch of coded data: neither a stuffed zero nor one of the marks to begin anew from.
_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END: Final = 0xD9
_SCAN: Final = 0xDA
_ALONE: Final = frozenset({0x01, 0xD8})
_SEQUENTIAL: Final = frozenset({0xC0, 0xC1})


def count_scans(data: bytes) -> int:
    """Return how often a JPEG file goes over its pixels.

    Segments are skipped by their length and everything after the end is left aside: previews and films that telephones
    put there have scans, or bytes that look like them, which nobody decodes.
    """
    num_scans, place, sequential_parts = 0, 2, 0
    while (found := _MARKER.search(data, place)) is not None:
        kind, place = data[found.start() + 1], found.end()
        if kind == _END:
            break
        if kind in _ALONE:
            continue
        segment = data[place : place + int.from_bytes(data[place : place + 2])]
        place += max(2, len(segment))
        if kind in _SEQUENTIAL and len(segment) > 7:
            sequential_parts = segment[7]
        elif kind == _SCAN:
            num_scans += 1
            if segment[2:3] == bytes([sequential_parts]):  # all colours in one pass: nothing that follows is decoded
                break
    return num_scans


def why_too_many_scans(data: bytes, num_pixels: int) -> str:
    """Return why a JPEG file of so many pixels would take too long to decode; empty where it does not."""
    num_scans = count_scans(data)
    if num_scans <= MAX_SCANS and num_scans * num_pixels <= MAX_SCANNED_PIXELS:
        return ""
    return (
        f"it is a JPEG of {num_scans} scans of {num_pixels / 1e6:.1f} megapixels; at most {MAX_SCANS} are decoded, and "
        f"{MAX_SCANNED_PIXELS / 1e6:.0f} megapixels altogether"
    )
