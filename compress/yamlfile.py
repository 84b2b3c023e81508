"""Reading YAML strictly, and overriding single values of what was read."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from compress.errors import ConfigError

MOST_BYTES = 500_000  # PyYAML takes seconds for more, and nobody writes a pipeline of this size
# What PyYAML lets through for values that their own tag forbids, such as `!!int ""`, and for very deep nesting.
INVALID = (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses keys that are no words, and a key given twice, which PyYAML lets pass."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; raises ConstructorError for a key that is no word or stands twice."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key should be a word", key.start_mark)
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands here twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


def parse_yaml(path: Path) -> Any:
    """The content of a YAML file; raises ConfigError with the line where it is malformed or gives a key twice."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no pipeline file {path}; `compress init` writes one to start from") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a YAML file") from error
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise ConfigError(f"{path} is not UTF-8 text ({where}); give a YAML file") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES:,} bytes, which no pipeline file is; give a YAML file")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except INVALID as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one value in place, `stages.prune.keep_macs=0.4` or `stages.1.prune.keep_macs=0.4`; raises ConfigError.

    What is not there yet is made. In a list, a part of the path is a position or the name of the one item that has it;
    a bare name such as `prune` becomes `prune: {...}` where the path goes on inside it.
    """
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: should read path.to.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except INVALID as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    node: Any = raw
    for part, following in pairwise(parts):
        node = _inside(node, part, following, override)
    last = parts[-1]
    if isinstance(node, dict):
        node[last] = value
    else:
        node[_position(node, last, override)] = value if last.isdigit() else {last: value}


def _inside(node: Any, part: str, following: str, override: str) -> Any:
    """What stands at `part` of a mapping or list, as a mapping or list of its own that `following` can be put into."""
    at: Any = part
    if isinstance(node, list):
        at = _position(node, part, override)
        if not part.isdigit():  # the item is `part` or `part: {...}`
            item = node[at] = dict(node[at]) if isinstance(node[at], dict) else {part: None}
            node, at = item, part
    child = node.get(at) if isinstance(node, dict) else node[at]
    if child is None:
        child = {}
    elif child == following:
        child = {following: None}  # `student: mobilenet_v2` and student.mobilenet_v2.width=0.5
    elif not isinstance(child, dict | list):
        raise ConfigError(f"--set {override}: {part} is {child!r}, which has no {following}")
    # A copy, because an alias lets the same object stand elsewhere in the file too.
    node[at] = copy.copy(child)
    return node[at]


def _position(items: list[Any], part: str, override: str) -> int:
    if part.isdigit():
        if int(part) >= len(items):
            raise ConfigError(f"--set {override}: there are {len(items)} items, counted from 0, and no {part}")
        return int(part)
    names = [next(iter(item), None) if isinstance(item, dict) else item for item in items]
    if names.count(part) != 1:
        which = f"{names.count(part)} items are" if part in names else "no item is"
        known = ", ".join(map(str, names)) or "none"
        raise ConfigError(f"--set {override}: {which} called {part!r} (there are: {known}); give a position from 0")
    return names.index(part)


def _one_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return " ".join(str(error).split())
