"""The part of `vitrail.config` that tells which images are used: how a source is read, and how it is divided."""

from dataclasses import dataclass, fields
from typing import Literal

from vitrail.errors import ConfigError
from vitrail.options import check_choice, check_pattern, check_range
from vitrail.preprocess import CHANNELS_RANGE

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How a source of images is read. Shared by all verbs that take labelled images."""

    path_column: str | None = None
    """Column of a table that holds the paths, or of a Hugging Face dataset that holds the images; extension of the
    images in shards. Default: the one of a usual name, such as path, file or image, or the only one."""
    label_column: str | None = None
    """Column of a table or dataset that holds the labels; of shards an extension or a field of .json. Default: the one
    of a usual name, such as label, class or target."""
    label_separator: str | None = None
    """What stands between several labels in one cell of a table, such as ";" or "|". Every image may then show any
    number of classes, or none."""
    label_columns: tuple[str, ...] = ()
    """Columns of a table that are each a class, 1 where the image shows it and 0 where not; it may show any number."""
    split_column: str | None = None
    """Column of a table that names the splits; "" for none. Default: the one called split, fold, subset or partition,
    if there is one."""
    root: str | None = None
    """Folder, or other source, that the paths of a table lead into. Default: the table's own folder."""
    allow_outside: bool = False
    """Use images of a table or dataset whose paths lead out of its root."""

    def __post_init__(self) -> None:
        """Refuse two ways to read the labels at once."""
        object.__setattr__(self, "label_columns", tuple(self.label_columns))  # JSON has no tuples
        others = [name for name in ("label_column", "label_separator") if getattr(self, name) is not None]
        if self.label_columns and others:
            raise ConfigError(
                f"label_columns says that each class has a column, and {' and '.join(others)} that all labels are in "
                "one. Give either."
            )
        if self.label_separator == "":
            raise ConfigError("label_separator is empty; give what stands between two labels, such as ';'.")
        twice = sorted({name for name in self.label_columns if self.label_columns.count(name) > 1})
        if twice:
            raise ConfigError(f"label_columns names {twice[0]!r} twice. Give each column once.")

    @property
    def source_options(self) -> list[str]:
        """Names of those options that were given."""
        return [field.name for field in fields(SourceConfig) if getattr(self, field.name) != field.default]


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """How images are divided. Shared by `data` and `train`."""

    val_fraction: float = 0.1
    """Share of the images that goes to validation, in (0, 0.5], where the source has none for it."""
    test_fraction: float = 0.2
    """Share of the images held out for the test, in [0, 0.5], where the source does not name its splits."""
    seed: int = 0
    """Decides the split, the initial weights, the order of the images and every augmentation."""
    group_by: str | None = None
    """Images that stay together: those with the same value in this column of a table; or, where that is no column,
    those in whose paths the same is found by this regular expression (its group "group", first group or match)."""
    duplicates: Literal["near", "exact", "off"] = "near"
    """What counts as the same image: resized, compressed or slightly cut copies too, equal pixels only, or nothing."""
    mirrored: bool = False
    """Count mirrored images as the same too."""
    keep_leaks: bool = False
    """Leave images in val and test though they, or others of their group, are in train too; else they are dropped."""
    channels: int | None = None
    """Use only images of this many channels, as they are, 16 bits and floats too; 1 makes RGB grey. Default: every
    image becomes 8-bit RGB."""

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on."""
        super().__post_init__()
        check_choice("duplicates", self.duplicates, Literal["near", "exact", "off"])
        if self.mirrored and self.duplicates != "near":
            raise ConfigError(f"mirrored looks for near duplicates, and duplicates is {self.duplicates!r}. Give near.")
        if self.group_by is not None:
            check_pattern("group_by", self.group_by)
        check_range("val_fraction", self.val_fraction, 0, 0.5, open_low=True)
        check_range("test_fraction", self.test_fraction, 0, 0.5)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("channels", self.channels, *CHANNELS_RANGE)
