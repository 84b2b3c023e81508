"""Shell patterns over the names of layers, such as `features.1[0-7].*`."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from compress.errors import ConfigError


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a layer's name is meant by any of the patterns."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def check_patterns(reasons: Mapping[str, str], include: Sequence[str], exclude: Sequence[str], done: str) -> None:
    """See that every pattern names a layer, and every include one that something can be done with.

    `reasons` has for each layer why nothing can be, or an empty text; `done` is what is done, such as "pruned".
    Raises ConfigError that lists all patterns that are wrong, with names near them.
    """
    problems = []
    for key, pattern in [*(("include", p) for p in include), *(("exclude", p) for p in exclude)]:
        found = [path for path in reasons if fnmatchcase(path, pattern)]
        if not found:
            close = get_close_matches(pattern, reasons, n=3, cutoff=0.4)
            names = f"Near: {', '.join(close)}" if close else f"There are {listed(list(reasons))}"
            problems.append(f"{key}: no layer matches {pattern!r}. {names}.")
        elif key == "include" and all(reasons[path] for path in found):
            first = f"{found[0]}, {reasons[found[0]]}"
            problems.append(f"{key}: {pattern!r} matches only what cannot be {done}: {first}.")
    if problems:
        raise ConfigError("\n".join(problems))


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
