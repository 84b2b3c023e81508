"""Reading YAML strictly and within bounds, and overriding single values of what was read."""

import copy
import re
import stat
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from compress.errors import ConfigError
from compress.spelling import nearest, nearest_file

MOST_BYTES = 500_000  # nobody writes a pipeline of this size
MOST_VALUES = 10_000  # with those that aliases repeat; PyYAML takes a third of a second for so many
MOST_LEVELS = 40
MOST_DIGITS = 100  # of an integer: Python refuses to print one of thousands
# Nothing that a pipeline names has them, and a terminal, a path or a page may read them as an order.
NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
# What PyYAML lets through for values that their own tag forbids, such as `!!int ""`.
INVALID = (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError)
POSITION = re.compile("[0-9]{1,6}")  # in a list
TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """SafeLoader without tags that no pipeline needs, and with bounds.

    It refuses keys that are no words or stand twice, which PyYAML lets pass, and files that are small and mean much:
    aliases of aliases, deep nesting, integers of thousands of digits.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values = self.levels = 0

    def get_single_node(self) -> yaml.Node | None:
        """The document's root; raises ConstructorError where it would be too much with all aliases in place."""
        node = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a value; raises ConstructorError where there are too many, or too deep inside each other."""
        self.values += 1
        self.levels += 1
        if self.values > MOST_VALUES:
            raise _too_many(self.get_mark())
        if self.levels > MOST_LEVELS:
            raise _too_deep(self.get_mark())
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def fetch_flow_collection_start(self, kind: Any) -> None:
        """Begin `[` or `{`; refused here already, because the scanner looks far ahead of what is composed."""
        if self.flow_level > MOST_LEVELS:
            raise _too_deep(self.get_mark())
        super().fetch_flow_collection_start(kind)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; raises ConstructorError for a key that is no word or stands twice."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key should be a word", key.start_mark)
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {_cut(key.value)!r} stands here twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def text(self, node: yaml.ScalarNode) -> str:
        """A text; raises ConstructorError where it holds what no text should."""
        found = NO_TEXT.search(node.value)
        if found:
            said = f"the character U+{ord(found[0]):04X} stands in a text, where only visible ones should"
            raise ConstructorError(None, None, said, node.start_mark)
        return str(self.construct_scalar(node))

    def integer(self, node: yaml.ScalarNode) -> int:
        """An integer; raises ConstructorError for one that is longer than any that means something."""
        if len(node.value) > MOST_DIGITS:
            said = f"an integer of {len(node.value):,} characters, where {MOST_DIGITS} are the most"
            raise ConstructorError(None, None, said, node.start_mark)
        return int(self.construct_yaml_int(node))


_Loader.yaml_constructors = {
    None: yaml.SafeLoader.construct_undefined,
    **{TAG + tag: yaml.SafeLoader.yaml_constructors[TAG + tag] for tag in TAGS},
    TAG + "str": _Loader.text,
    TAG + "int": _Loader.integer,
    TAG + "timestamp": _Loader.text,  # `name: 2026-01-31` is a name
}


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for; raises ConstructorError for too many, and for one that holds itself."""
    found = known.get(id(node))
    if found == 0:
        raise ConstructorError(None, None, "what an anchor (&) names holds an alias (*) of itself", node.start_mark)
    if found is None:
        known[id(node)] = 0
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        found = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_size(each, known) for each in inner))
        if found > MOST_VALUES:
            raise _too_many(node.start_mark)
        known[id(node)] = found
    return found


def _too_many(where: yaml.Mark) -> ConstructorError:
    return ConstructorError(None, None, f"it holds more than {MOST_VALUES:,} values, aliases counted each time", where)


def _too_deep(where: yaml.Mark) -> ConstructorError:
    return ConstructorError(None, None, f"it is nested too deep, {MOST_LEVELS} levels are the most", where)


def parse_yaml(path: Path) -> Any:
    """The content of a YAML file; raises ConfigError with the line where it is malformed or gives a key twice."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for its other end
            raise ConfigError(f"{path} is a pipe or a device; give a YAML file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        said = f"no pipeline file {path}; `compress init` writes one to start from"
        near = nearest_file(path, (".yaml", ".yml"))
        raise ConfigError(f"{said}{near and '.'}{near}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a YAML file") from error
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise ConfigError(f"{path} is not UTF-8 text ({where}); give a YAML file") from error
    except ValueError as error:  # a name with a NUL character
        raise ConfigError(f"{str(path)!r} cannot be a file ({error}); give a YAML file") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES:,} bytes, which no pipeline file is; give a YAML file")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except INVALID as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error


def read_yaml(path: Path, overrides: Iterable[str] = ()) -> Any:
    """The content of a YAML file with overrides applied where it is a mapping; raises ConfigError."""
    raw = parse_yaml(path)
    for override in overrides if isinstance(raw, dict) else ():
        apply_override(raw, override)
    return raw


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
        node[_position(node, last, override)] = value if POSITION.fullmatch(last) else {last: value}


def _inside(node: Any, part: str, following: str, override: str) -> Any:
    """What stands at `part` of a mapping or list, as a mapping or list of its own that `following` can be put into."""
    at: Any = part
    if isinstance(node, list):
        at = _position(node, part, override)
        if not POSITION.fullmatch(part):  # the item is `part` or `part: {...}`
            item = node[at] = dict(node[at]) if isinstance(node[at], dict) else {part: None}
            node, at = item, part
    child = node.get(at) if isinstance(node, dict) else node[at]
    if child is None:
        child = {}
    elif child == following:
        child = {following: None}  # `student: mobilenet_v2` and student.mobilenet_v2.width=0.5
    elif not isinstance(child, dict | list):
        raise ConfigError(f"--set {override}: {part} is {_cut(repr(child))}, which has no {following}")
    # A copy, because an alias lets the same object stand elsewhere in the file too.
    node[at] = copy.copy(child)
    return node[at]


def _position(items: list[Any], part: str, override: str) -> int:
    if POSITION.fullmatch(part):
        if int(part) >= len(items):
            raise ConfigError(f"--set {override}: there are {len(items)} items, counted from 0, and no {part}")
        return int(part)
    names = [next(iter(item), None) if isinstance(item, dict) else item for item in items]
    if names.count(part) != 1:
        which = f"{names.count(part)} items are" if part in names else "no item is"
        known = ", ".join(_cut(str(name)) for name in names[:20]) or "none"
        near = "" if part in names else nearest(part, map(str, names[:20]))
        said = f"{which} called {part!r} (there are: {known}); give a position from 0{near and '.'}{near}"
        raise ConfigError(f"--set {override}: {said}")
    return names.index(part)


def _one_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if not isinstance(error, yaml.YAMLError):
        return f"a value does not fit its tag ({_cut(str(error))})"
    return " ".join(str(error).split())


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
