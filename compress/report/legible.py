"""A report's texts as they may be shown: names come from files, and reports from strangers."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from compress.console import plain

T = TypeVar("T")


def legible(value: T) -> T:
    """The same with every text, at any depth, without characters that are orders to a terminal or break XML."""
    found: Any = value
    if isinstance(value, str):
        found = plain(value)
    elif isinstance(value, Mapping):
        found = {legible(key): legible(inner) for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(map(legible, value))
    elif is_dataclass(value) and not isinstance(value, type):
        found = replace(value, **{each.name: legible(getattr(value, each.name)) for each in fields(value)})
    return found  # type: ignore[no-any-return]
