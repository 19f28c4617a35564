"""What holds for all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# transformers imports torchvision where it is installed, and fails with it where its wheel is for another torch.
sys.modules["torchvision"] = None  # type: ignore[assignment]  # what Python takes for "not there"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what admission remembers out of the user's cache folder, for this process and those it starts."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
