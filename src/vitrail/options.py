"""From names and texts to the values of a dataclass of knobs, each refused with one sentence if it is not allowed."""

import json
import re
from collections.abc import Iterable
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vitrail.errors import ConfigError, did_you_mean

Config = TypeVar("Config")


def from_options(kind: type[Config], options: dict[str, Any]) -> Config:
    """Build the dataclass ``kind`` from keyword arguments; paths become text.

    Raises:
        ConfigError: for an option it does not have, with the nearest one it has, or a value of another type.
    """
    known = get_type_hints(kind)
    values = {name: str(value) if isinstance(value, PurePath) else value for name, value in options.items()}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"There is no option {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        if not _is_of_type(value, known[name]):
            wanted = _told(known[name])
            raise ConfigError(f"{name} is {value!r}, of the type {type(value).__name__}; it takes {wanted}.")
    return kind(**values)


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as "90s", "10m", "1.5h" or "90" (seconds).

    Raises:
        ConfigError: if the text is no such time, or is not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|d)?\s*", text)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise ConfigError(f"{text!r} is not a time. Give a number with s, m, h or d, such as 90s, 10m or 2h.")
    return seconds


def parse_assignments(name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Return what texts such as "pool=mean" or "layer_scale=1e-4" assign; a value that is JSON is read as such.

    Args:
        name: of the option that holds the texts, for the message.
        texts: each a name, an equals sign and a value.

    Raises:
        ConfigError: if a text has no equals sign or no name before it.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.isidentifier() or not equals:
            raise ConfigError(f"{name} has {text!r}; each takes the form name=value, such as pool=mean.")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = {"True": True, "False": False}.get(value, value)
    return values


def parse_count(text: str) -> float:
    """Return the number that a count such as "800k", "5M", "0.5G" or "500000" means.

    Raises:
        ConfigError: if the text is no such count, or is not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg])?\s*", text, re.IGNORECASE)
    count = float(match[1]) * {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}[(match[2] or "").lower()] if match else 0.0
    if count <= 0:
        raise ConfigError(f"{text!r} is not a count. Give a number with k, M or G, such as 800k, 5M or 0.5G.")
    return count


def _is_of_type(value: object, hint: Any) -> bool:
    """Return whether an option's value may be given where ``hint`` stands; which words it takes is checked later."""
    if get_origin(hint) in {Union, UnionType}:
        kinds = [str if get_origin(each) is Literal else each for each in get_args(hint)]
        return any(_is_of_type(value, each) for each in kinds)
    if get_origin(hint) is Literal:
        return True
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple)
    if isinstance(value, bool):  # which Python counts among the integers
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _told(hint: Any) -> str:
    """Return the words for a type that an option may have, None apart."""
    if get_origin(hint) in {Union, UnionType}:
        return " or ".join(_told(each) for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def check_range(name: str, value: float | None, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise a `ConfigError` unless ``value`` is None or lies in [low, high], or in (low, high] with ``open_low``."""
    if value is None:
        return
    if not low <= value <= high or (open_low and value == low):
        bounds = f"above {low}" if open_low else f"from {low}"
        raise ConfigError(f"{name} is {value}; it takes a number {bounds} to {high}.")


def check_choice(name: str, value: object, choice: Any) -> None:
    """Raise a `ConfigError` unless ``value`` is one of the words of the Literal ``choice``."""
    allowed = get_args(choice) if get_origin(choice) is Literal else ()
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise ConfigError(f"{name} is {value!r}; it takes {', '.join(map(repr, allowed))}.{hint}")


def check_pattern(name: str, value: str) -> None:
    """Raise a `ConfigError` unless ``value`` is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ConfigError(f"{name} is {value!r}, which is no regular expression: {error}.") from error
