"""The same picture twice: byte for byte, in other bytes, smaller, compressed, brighter, slightly cut, or mirrored.

Three sieves, each finer and dearer than the one before. Hashes propose pairs (`vitrail.data.hashes`). Their small grey
pictures are laid over one another (`vitrail.data.similarity`). What still looks alike is decoded again, larger, and
compared once more; that decides. The limits were chosen by ``benchmarks/planted_defects.py``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vitrail.data.hashes import CUTS, near_pairs, perceptual_hashes
from vitrail.data.images import THUMB_SIDE, ImageRefusedError, Inspection, squash
from vitrail.data.ordered import default_workers, ordered_map
from vitrail.data.similarity import correlation, similarity

DuplicateKind = Literal["exact", "near", "mirrored"]

NEAR_SIMILARITY: Final = 0.94
"""Above this two pictures of at least `SMALL_SIDE` are the same. Of flowers5, 98 % of cut copies lie above; the most
alike of different photographs, two of one monument, have 0.82."""

SMALL_SIMILARITY: Final = 0.985
"""The same for smaller pictures, which show too little to be laid over one another and are compared as they are."""

SMALL_RESIDUE: Final = 8.0
"""Grey levels (rms) that may remain between two smaller pictures when one is made as bright as the other. Of the 70,000
of Fashion-MNIST 86 pairs lie below, the same article by the look of it; by their correlation alone 2,261 pairs would be
the same, most of them other articles of one cut before a black ground."""

SMALL_SIDE: Final = 48
"""Pixels of the shorter side."""

LIMITS: Final = (NEAR_SIMILARITY, SMALL_SIMILARITY, SMALL_RESIDUE, SMALL_SIDE)
"""What decides; what was found with others is void."""

_COARSE_SIMILARITY: Final = 0.8
_SIDE: Final = 64
_LEAST_SPREAD: Final = 2.0
_MOST_COLOUR_DIFFERENCE: Final = 32
_MOST_PER_BUCKET: Final = 8
_CHUNK: Final = 1024
_FINE_CHUNK: Final = 128
_AHEAD: Final = 32


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two pictures that are the same, by their positions."""

    first: int
    second: int
    """Above ``first``."""
    kind: DuplicateKind
    """exact: the same pixels."""
    similarity: float
    """Correlation of the grey values, up to 1."""


def find_duplicates(
    inspections: Sequence[Inspection],
    decode: Callable[[int, int | None], Image.Image],
    *,
    near: bool = True,
    mirrored: bool = False,
) -> list[Duplicate]:
    """Find what is the same, in time that grows about linearly with the number of pictures.

    Of several exact copies each is paired with the first alone. Pictures of one colour are compared exactly only.

    Args:
        inspections: of each picture.
        decode: returns the picture at a position in RGB; its second argument is as ``min_side`` of `open_image`. It may
            raise an `ImageRefusedError` where a file has vanished meanwhile; then the pair is none.
        near: also find copies that are not exact.
        mirrored: also find near copies that are mirrored.

    Returns:
        Sorted by position.
    """
    found = list(_exact(inspections, decode))
    if near:
        copies = {pair.second for pair in found}
        kept = np.array([place for place in range(len(inspections)) if place not in copies], np.int64)
        found += _near([inspections[place] for place in kept], kept, decode, "near")
        if mirrored:
            known = {(pair.first, pair.second) for pair in found}
            flipped = _near([inspections[place] for place in kept], kept, decode, "mirrored")
            found += [pair for pair in flipped if (pair.first, pair.second) not in known]
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def group_numbers(num: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return int (n,), a number for each of ``num`` things; those that pairs connect, however far, have the same."""
    table = np.array([*pairs], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(table), np.int8), (table[:, 0], table[:, 1])), shape=(num, num))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers


def _exact(inspections: Sequence[Inspection], decode: Callable[[int, int | None], Image.Image]) -> Iterator[Duplicate]:
    """Yield pairs with the same pixels. Where only reduced JPEGs are known to be equal, they are decoded in full."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for place, inspection in enumerate(inspections):
        same[inspection.pixels].append(place)
    for first, *others in same.values():
        for place in others:
            if inspections[first].sha256 == inspections[place].sha256 or _equal_pixels(first, place, decode):
                yield Duplicate(first, place, "exact", 1.0)


def _equal_pixels(first: int, second: int, decode: Callable[[int, int | None], Image.Image]) -> bool:
    try:
        one, other = decode(first, None), decode(second, None)
    except ImageRefusedError:
        return False
    return one.size == other.size and one.tobytes() == other.tobytes()


def _near(
    inspections: Sequence[Inspection],
    places: np.ndarray,
    decode: Callable[[int, int | None], Image.Image],
    kind: Literal["near", "mirrored"],
) -> list[Duplicate]:
    if not inspections:
        return []
    thumbs = np.frombuffer(b"".join(each.thumb for each in inspections), np.uint8)
    thumbs = thumbs.reshape(-1, THUMB_SIDE, THUMB_SIDE)
    colours = np.array([each.colour for each in inspections], np.int16)
    small = np.array([min(each.width, each.height) < SMALL_SIDE for each in inspections])
    turned = thumbs[:, :, ::-1] if kind == "mirrored" else thumbs
    pairs = _proposals(thumbs, turned, small)
    alike = np.abs(colours[pairs[:, 0]] - colours[pairs[:, 1]]).max(axis=1, initial=0) <= _MOST_COLOUR_DIFFERENCE
    pairs = pairs[alike]
    whole = small[pairs].any(axis=1)
    tiny, large = pairs[whole], pairs[~whole]
    tiny_scores = _scores(tiny, turned, thumbs, correlation)
    contrast = thumbs.reshape(len(thumbs), -1).std(axis=1)[tiny].max(axis=1, initial=0)
    same = (tiny_scores >= SMALL_SIMILARITY) & (contrast * np.sqrt(np.maximum(0, 1 - tiny_scores**2)) <= SMALL_RESIDUE)
    large = large[_scores(large, turned, thumbs, similarity) >= _COARSE_SIMILARITY]
    found = list(zip(tiny[same], tiny_scores[same], strict=True))
    found += _decide(large, places, decode, kind)
    duplicates = []
    for pair, score in found:
        first, second = sorted(places[pair].tolist())
        exact = kind == "near" and _may_be_equal(inspections, pair) and _equal_pixels(first, second, decode)
        duplicates.append(Duplicate(first, second, "exact" if exact else kind, min(1.0, round(float(score), 4))))
    return duplicates


def _may_be_equal(inspections: Sequence[Inspection], pair: np.ndarray) -> bool:
    """Return whether two files of different formats have the same size, as a JPEG that was kept as PNG has."""
    one, other = (inspections[place] for place in pair)
    return one.format != other.format and (one.width, one.height) == (other.width, other.height)


def _proposals(thumbs: np.ndarray, turned: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Return pairs (p, 2) whose hashes are near: positions, the first below the second."""
    told = np.flatnonzero(thumbs.reshape(len(thumbs), -1).std(axis=1) >= _LEAST_SPREAD)
    hashes, inverse = np.unique(perceptual_hashes(thumbs[told]), return_inverse=True)
    by_hash = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[by_hash], np.arange(len(hashes) + 1))
    large = told[~small[told]]
    asked = np.concatenate([told, *([large] * len(CUTS))])
    queries = [perceptual_hashes(turned[told]), *(perceptual_hashes(turned[large], view) for view in CUTS)]
    rows, buckets = near_pairs(np.concatenate(queries), hashes).T
    codes = [np.empty(0, np.int64)]
    for member in range(_MOST_PER_BUCKET):
        inside = starts[buckets] + member < starts[buckets + 1]
        found = told[by_hash[starts[buckets[inside]] + member]]
        pair = np.sort(np.stack([asked[rows[inside]], found], axis=1), axis=1)
        codes.append((pair[:, 0] * len(thumbs) + pair[:, 1])[pair[:, 0] < pair[:, 1]])
    return np.stack(np.divmod(np.unique(np.concatenate(codes)), len(thumbs)), axis=1)


def _scores(
    pairs: np.ndarray, turned: np.ndarray, thumbs: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    parts = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
    return np.concatenate([np.empty(0), *(measure(turned[part[:, 0]], thumbs[part[:, 1]]) for part in parts)])


def _decide(
    pairs: np.ndarray,
    places: np.ndarray,
    decode: Callable[[int, int | None], Image.Image],
    kind: Literal["near", "mirrored"],
) -> list[tuple[np.ndarray, float]]:
    """Return those of the pairs that are alike when they are decoded again, with their similarity."""

    def larger(row: int) -> tuple[int, np.ndarray | None]:
        try:
            return row, squash(decode(int(places[row]), 2 * _SIDE), _SIDE)[..., 0]
        except ImageRefusedError:
            return row, None

    found: list[tuple[np.ndarray, float]] = []
    for start in range(0, len(pairs), _FINE_CHUNK):
        part = pairs[start : start + _FINE_CHUNK]
        needed = np.unique(part).tolist()
        decoded = ordered_map(larger, needed, workers=default_workers(), ahead=_AHEAD)
        seen = {row: picture for row, picture in decoded if picture is not None}
        part = part[[first in seen and second in seen for first, second in part.tolist()]]
        if len(part):
            one, other = (np.stack([seen[row] for row in column]) for column in part.T.tolist())
            scores = similarity(one[:, :, ::-1] if kind == "mirrored" else one, other)
            found += [(pair, score) for pair, score in zip(part, scores, strict=True) if score >= NEAR_SIMILARITY]
    return found
