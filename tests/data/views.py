"""What tests of several kinds of sources look at."""

from pathlib import Path

import pytest

from vitrail.config import DataConfig
from vitrail.data import Dataset, open_dataset
from vitrail.errors import VitrailError


def labels(dataset: Dataset) -> dict[str, str]:
    """Class by path."""
    return {
        path: dataset.classes[label]
        for split in dataset.splits.values()
        for path, label in zip(split.paths, split.labels, strict=True)
    }


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: len(split) for name, split in dataset.splits.items()}


def refusal(source: str | Path, config: DataConfig | None = None) -> str:
    """The one sentence with which a source is refused."""
    with pytest.raises(VitrailError) as caught:
        open_dataset(source, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)
