"""What a person should know of a set of images before training on it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np

from vitrail.config import SplitName
from vitrail.data.curation import Leak, Pair
from vitrail.data.images import Inspection, display_name
from vitrail.data.records import Record, task_of

Severity = Literal["warning", "note"]

TINY_CLASS: Final = 20
"""Training images below which a class is named."""
IMBALANCE: Final = 10
"""Ratio of the largest to the smallest class in training from which it is told."""
OUTLYING: Final = 5.0
"""Robust z-score from which an image is named."""

_FEWEST_FOR_OUTLIERS: Final = 20
_MOST_IN_TEXT: Final = 5
_WHITE: Final = 255
_MAD_TO_STD: Final = 1.4826
_MEAN_TO_STD: Final = 1.2533
_EXTENSIONS: Final = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".mpo", ".jpg", ".jpeg"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "NPY": (".npy",),
}
_CHANNELS: Final = {
    **dict.fromkeys(("1", "L", "I", "F", "LA", "La"), "grey"),
    **dict.fromkeys(("RGBA", "RGBa", "PA"), "colour with transparency"),
    "CMYK": "CMYK",
}
_REDUCED: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa", "RGBX", "CMYK"})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of thing that is unusual, and where."""

    kind: str
    """One word, such as "extension" or "imbalance"."""
    severity: Severity
    """warning: may make the training or its numbers worse. note: good to know."""
    text: str
    """One sentence that can be shown anywhere."""
    paths: tuple[str, ...] = ()
    """Every image it is about, exactly; empty where it is about classes."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that admission found among the images that can be read."""

    items: tuple[Finding, ...] = ()
    """Warnings before notes."""
    pairs: tuple[Pair, ...] = ()
    """Images that are the same; of several exact copies each with the first alone."""
    leaks: tuple[Leak, ...] = ()
    """Images of val and test that another split has too."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """By path, why a file is not used."""

    @property
    def conflicts(self) -> tuple[Pair, ...]:
        """Images that are the same under two labels."""
        return tuple(pair for pair in self.pairs if pair.labels[0] != pair.labels[1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; bytes of names that are no text are escaped."""
        return {
            "items": [{**asdict(item), "paths": [display_name(path) for path in item.paths]} for item in self.items],
            "pairs": [_shown(asdict(pair), "first", "second", "labels") for pair in self.pairs],
            "leaks": [_shown(asdict(leak), "path", "of") for leak in self.leaks],
            "refused": {display_name(path): reason for path, reason in self.refused.items()},
        }


def find_out(
    records: Sequence[Record],
    inspections: Mapping[str, Inspection],
    pairs: Sequence[Pair],
    leaks: Sequence[Leak],
    *,
    changed: Sequence[str] = (),
    note: str = "",
) -> Findings:
    """Look at records as they were divided, and at what is known of their files.

    Args:
        records: of all files, used or not.
        inspections: of the files that are whole, by path.
        pairs: images that are the same.
        leaks: images that two splits have.
        changed: paths of images that a manifest has with other content.
        note: why what was found could not be kept for the next time, if that is so.
    """
    used = [record for record in records if not record.reason]
    items = [*_about_duplicates(pairs, leaks), *_about_classes(used), *_about_files(used, inspections)]
    items += [*_about_unlabelled(used), *_about_outliers(used, inspections)]
    if changed:
        first = display_name(changed[0])
        text = f"{_count(len(changed), 'image')} of other content than the manifest tells, such as {first}."
        items.append(Finding(kind="changed", severity="warning", text=text, paths=tuple(changed)))
    if note:
        text = f"What was found could not be kept, so the next time every file is decoded again: {note}"
        items.append(Finding(kind="cache", severity="note", text=text))
    items.sort(key=lambda item: item.severity != "warning")
    refused = {record.path: record.reason for record in records if record.reason and not record.duplicate_of}
    return Findings(items=tuple(items), pairs=tuple(pairs), leaks=tuple(leaks), refused=refused)


def robust_scores(values: np.ndarray) -> np.ndarray:
    """Return how far each value lies from the median, in standard deviations estimated from the median deviation.

    Where more than half of the values are equal, the mean deviation takes its place; where all are, the scores are 0.

    Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993, section 3.3.
    """
    deviation = values - np.median(values)
    spread = _MAD_TO_STD * np.median(np.abs(deviation)) or _MEAN_TO_STD * np.mean(np.abs(deviation)) or 1.0
    scores: np.ndarray = deviation / spread
    return scores


def _about_duplicates(pairs: Sequence[Pair], leaks: Sequence[Leak]) -> Iterator[Finding]:
    if leaks:
        counts = Counter(leak.split for leak in leaks)
        where = " and ".join(f"{num:,} of {split}" for split, num in sorted(counts.items()))
        fate = "were left out there" if leaks[0].dropped else "stay there, so the scores will be too high"
        text = f"{where} are in another split too (copies, or of one group) and {fate}."
        yield Finding(kind="leak", severity="warning", text=text, paths=tuple(leak.path for leak in leaks))
    conflicts = [pair for pair in pairs if pair.labels[0] != pair.labels[1]]
    if conflicts:
        text = f"{_count(len(conflicts), 'pair')} of the same image under two labels: one of the labels is wrong."
        paths = tuple(path for pair in conflicts for path in (pair.first, pair.second))
        yield Finding(kind="conflict", severity="warning", text=text, paths=paths)
    if pairs:
        of_kind = Counter(pair.kind for pair in pairs)
        kinds = ", ".join(f"{num:,} {kind}" for kind, num in sorted(of_kind.items()))
        paths = tuple(sorted({path for pair in pairs for path in (pair.first, pair.second)}))
        text = f"{_count(len(pairs), 'pair')} of images that are the same ({kinds})."
        yield Finding(kind="duplicate", severity="note", text=text, paths=paths)


def _about_classes(used: Sequence[Record]) -> Iterator[Finding]:
    labels = sorted({label for record in used for label in record.labels})
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        spellings["".join(label.casefold().split())].append(label)
    for same in spellings.values():
        if len(same) > 1:
            names = ", ".join(repr(display_name(label)) for label in same)
            text = f"The classes {names} differ only by case or white space. If they are one, join them."
            yield Finding(kind="labels", severity="warning", text=text)
    by_split: dict[SplitName | None, Counter[str]] = defaultdict(Counter)
    for record in used:
        by_split[record.split].update(record.labels)
    for split in ("val", "test"):
        missing = [label for label in labels if split in by_split and not by_split[split][label]]
        if missing:
            text = f"{split} shows no image of {_names(missing)}; nothing is measured of {_them(missing)} there."
            yield Finding(kind="missing", severity="warning", text=text)
    train = by_split["train"]
    if not train:
        return
    tiny = [label for label in labels if train[label] < TINY_CLASS]
    if tiny:
        text = f"{_count(len(tiny), 'class', 'classes')} with fewer than {TINY_CLASS} training images: {_names(tiny)}."
        yield Finding(kind="tiny", severity="warning", text=text)
    (most, most_num), (least, least_num) = train.most_common(1)[0], min(train.items(), key=lambda item: item[1])
    if most_num >= IMBALANCE * least_num:
        several = task_of(used) == "multilabel"
        remedy = "class_weights balanced" if several else "class_weights balanced or sampling balanced"
        text = (
            f"{display_name(most)} has {most_num:,} training images, {display_name(least)} {least_num:,}. Training has "
            f"{remedy} for that."
        )
        yield Finding(kind="imbalance", severity="warning", text=text)


def _about_unlabelled(used: Sequence[Record]) -> Iterator[Finding]:
    without = tuple(record.path for record in used if not record.labels)
    if without:
        text = f"{_count(len(without), 'image')} without any label; they teach what shows none of the classes."
        yield Finding(kind="unlabelled", severity="note", text=text, paths=without)


def _about_files(used: Sequence[Record], inspections: Mapping[str, Inspection]) -> Iterator[Finding]:
    known = [(record.path, inspections[record.path]) for record in used if record.path in inspections]
    wrong = [path for path, found in known if not _extension_fits(path, found.format)]
    if wrong:
        first = inspections[wrong[0]].format
        text = f"{_count(len(wrong), 'file')} of another format than the name says, such as {display_name(wrong[0])}: "
        yield Finding(kind="extension", severity="note", text=f"{text}it is {first}.", paths=tuple(wrong))
    animated = tuple(path for path, found in known if found.animated)
    if animated:
        text = f"{_count(len(animated), 'file')} of several pictures (animations, pages); the first is used."
        yield Finding(kind="animated", severity="note", text=text, paths=animated)
    yield from _about_channels([(path, found.mode) for path, found in known])


def _about_channels(modes: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Tell of paths and modes which channels there are, and what was lost of them."""
    channels = [(path, *_kind_and_type(mode)) for path, mode in modes]
    for what, place in (("channels", 1), ("type of values", 2)):
        counts = Counter(each[place] for each in channels)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            told = ", ".join(f"{num:,} {kind}" for kind, num in counts.most_common())
            odd = tuple(each[0] for each in channels if each[place] != usual)
            yield Finding(kind="channels", severity="note", text=f"Not all have the same {what}: {told}.", paths=odd)
    deep = tuple(path for path, mode in modes if mode.startswith(("I", "F")) or mode.endswith(";16"))
    if deep:
        text = (
            f"{_count(len(deep), 'file')} of more than 8 bits per channel, reduced to 8; --channels N keeps all bits."
        )
        yield Finding(kind="reduced", severity="note", text=text, paths=deep)
    other = tuple(path for path, mode in modes if mode.endswith(";X") or mode.partition(";")[0] in _REDUCED)
    if other:
        text = (
            f"{_count(len(other), 'file')} of other channels than red, green and blue (transparency, CMYK or more), "
            "made RGB; --channels N keeps N channels as they are."
        )
        yield Finding(kind="reduced", severity="note", text=text, paths=other)


def _kind_and_type(mode: str) -> tuple[str, str]:
    """Return what the channels are, and the type of their values where they are kept as they are."""
    kind, _, pixel_type = mode.rpartition(" ")
    return (kind, pixel_type) if kind else (_CHANNELS.get(mode.partition(";")[0], "colour"), "")


def _about_outliers(used: Sequence[Record], inspections: Mapping[str, Inspection]) -> Iterator[Finding]:
    known = [(record.path, inspections[record.path]) for record in used if record.path in inspections]
    if len(known) < _FEWEST_FOR_OUTLIERS:
        return
    sides = np.array([(found.height, found.width) for _, found in known], np.float64)
    thumbs = np.frombuffer(b"".join(found.thumb for _, found in known), np.uint8).reshape(len(known), -1)
    measured = {
        "size": (np.log(sides.prod(axis=1)), "very small or large"),
        "proportions": (np.log(sides[:, 0] / sides[:, 1]), "very narrow or wide"),
        "brightness": (_log_odds(thumbs.mean(axis=1), _WHITE), "very dark or bright"),
        "contrast": (_log_odds(thumbs.std(axis=1), _WHITE / 2), "very flat or hard"),
    }
    for kind, (values, what) in measured.items():
        scores = np.abs(robust_scores(values))
        far = np.flatnonzero(scores > OUTLYING)
        if len(far):
            far = far[np.argsort(-scores[far], kind="stable")]
            text = f"{_count(len(far), 'image')} {what}, {scores[far[-1]]:.1f} to {scores[far[0]]:.1f} deviations away."
            yield Finding(kind=kind, severity="note", text=text, paths=tuple(known[place][0] for place in far))


def _log_odds(values: np.ndarray, highest: float) -> np.ndarray:
    """Return values from 0 to ``highest`` on a scale without ends, on which black and white are far from all others."""
    share = (values + 1) / (highest + 2)
    odds: np.ndarray = np.log(share / (1 - share))
    return odds


def _extension_fits(path: str, name: str) -> bool:
    file = path.rpartition("/")[2]
    dot = file.rfind(".")
    return dot <= 0 or file[dot:].lower() in _EXTENSIONS.get(name, ())


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(display_name(label) for label in labels[:_MOST_IN_TEXT])
    return shown if len(labels) <= _MOST_IN_TEXT else f"{shown} and {len(labels) - _MOST_IN_TEXT} more"


def _them(labels: Sequence[str]) -> str:
    return "it" if len(labels) == 1 else "them"


def _count(num: int, one: str, several: str = "") -> str:
    return f"{num:,} {one if num == 1 else several or one + 's'}"


def _shown(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the values with paths and labels as text that any file can take."""
    for name in names:
        value = values[name]
        values[name] = display_name(value) if isinstance(value, str) else [display_name(each) for each in value]
    return values
