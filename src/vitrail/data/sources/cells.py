"""Columns of cells, wherever they are kept: every cell as the text that it would be in CSV."""

import json
import math
from typing import Protocol

from vitrail.data.images import display_name
from vitrail.errors import DataError


class Header(Protocol):
    """What is known of columns before their rows are read."""

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""

    @property
    def shown(self) -> str:
        """How that which has them is named to a person."""

    def is_list(self, name: str) -> bool:
        """Return whether the cells of a column hold any number of values each, as lists in JSON."""


def cell_text(value: object, column: str, shown: str) -> str:
    """Return a value as text: whole numbers without a decimal point, a list as JSON, each of its values once, sorted.

    Args:
        value: of a cell.
        column: its name, for the error.
        shown: the table as it is named to a person.

    Raises:
        DataError: if it is neither text nor a number, nor a list of these.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):
        texts = {cell_text(each, column, shown) for each in value if not isinstance(each, list)}
        if not any(isinstance(each, list) for each in value):
            return json.dumps(sorted(texts - {""}), ensure_ascii=False)
    hint = " Images inside a table are read from its folder as hf-dataset:FOLDER." if isinstance(value, dict) else ""
    raise DataError(
        f"The column {display_name(column)!r} of {shown} holds {type(value).__name__}, and what is read of a column is "
        f"text, numbers or lists of them.{hint}"
    )
