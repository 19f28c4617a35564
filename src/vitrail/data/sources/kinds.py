"""Which kind of source a name means."""

from pathlib import Path

from vitrail.data.images import display_name
from vitrail.data.sources import digits
from vitrail.data.sources.contract import Source
from vitrail.data.sources.folder import open_folder
from vitrail.errors import DataError, did_you_mean


def open_source(name: str | Path) -> Source:
    """Return the source that a name means; its pictures are not looked at yet.

    Raises:
        DataError: if there is none.
    """
    name = str(name)
    if not name:  # for Python the present folder, for a person a variable that was not set
        raise DataError('The source is an empty name. Give a folder with a folder of pictures per class, or "digits".')
    if name == digits.NAME:
        return digits.open_digits()
    path = Path(name)
    if path.is_dir():
        return open_folder(path)
    if path.exists():
        raise DataError(f"{display_name(path)} is a file; a source is a folder with one folder of pictures per class.")
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, [*names, digits.NAME])
    raise DataError(
        f"There is no folder {display_name(path)}.{hint} A source is a folder with one folder of pictures per class, "
        'or "digits".'
    )
