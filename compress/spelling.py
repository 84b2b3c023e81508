"""The nearest of the names that there are, for someone who mistyped one."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

MOST_FILES = 1000  # of a folder that are looked at


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest of the known names, or nothing if none is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def nearest_file(path: str | os.PathLike[str], endings: Iterable[str] = (), *, folder: bool = False) -> str:
    """The same for a file that is not there, or a folder: its neighbours of these endings, all if none are given.

    Where the folder is missing too, that of the folder.
    """
    wanted = Path(path)
    try:
        names = _names(wanted.parent, tuple(endings), folder)
    except FileNotFoundError:
        return nearest_file(wanted.parent, folder=True) if wanted.parent != wanted else ""
    except (OSError, ValueError):
        return ""
    # Endings are left out of it: `one.yaml` and `two.yaml` have most of their letters in common.
    stems = {Path(name).stem if endings else name: name for name in names}
    found = difflib.get_close_matches(wanted.stem if endings else wanted.name, sorted(stems), n=1, cutoff=0.6)
    return f" Did you mean {str(wanted.with_name(stems[found[0]]))!r}?" if found else ""


def _names(folder: Path, endings: tuple[str, ...], folders: bool) -> list[str]:
    found = []
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(MOST_FILES), strict=False):
            if entry.is_dir() == folders and (not endings or entry.name.endswith(endings)):
                found.append(entry.name)
    return sorted(found)
