"""Files with images as they lie on disk, by their names: which are images, which lie beside them.

Nothing is decoded here, and PyTorch is not imported: `compress init` answers in half a second.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

from PIL import Image

from compress.errors import DataError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
UNREAD = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".psd", ".svg"}  # images as well
LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads. No other decoder is tried: some start programs (EPS)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Lower-case file suffixes of those formats, such as `.jpg`."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def folders(folder: Path) -> list[Path]:
    """The folders inside by name, without hidden ones and what operating systems and Python leave behind."""
    try:
        entries = sorted(folder.iterdir())
        return [entry for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir()]
    except OSError as error:
        _stop(error)


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Image files and other files under a class folder, sorted, links followed, hidden files left out."""
    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for here, inside, files in os.walk(folder, onerror=_stop, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back to a folder above
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not name.startswith((".", "__")))
        for name in sorted(name for name in files if not name.startswith(".")):
            if name.lower() not in LEFT_BY_SYSTEMS:
                (images if _is_image(name) else others).append(os.path.join(here, name))
    return images, others


def left_out(others: Sequence[str]) -> list[str]:
    """Warnings of files that are no images by their suffix, and of images in formats that are not read."""
    unread = [path for path in others if is_unread(path)]
    rest = [path for path in others if not is_unread(path)]
    said = []
    if unread:
        count = "1 image" if len(unread) == 1 else f"{len(unread):,} images"
        said.append(f"Left out {count} in formats that are not read: {a_few(unread)}; {how_to_read(unread)}.")
    if rest:
        said.append(f"Left out, being no images by their suffix: {a_few(rest)}.")
    return said


def files_in(folder: Path) -> list[Path]:
    """The files directly in a folder, sorted, without hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        _stop(error)


def directly_in(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted."""
    return [path for path in files_in(folder) if _is_image(path.name)]


def holds_images(folder: Path) -> bool:
    """Whether there is an image somewhere in a folder."""
    for _, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith((".", "__"))]
        if any(_is_image(name) for name in files):
            return True
    return False


def _is_image(name: str) -> bool:
    return not name.startswith(".") and _suffix(name) in suffixes()


def is_unread(path: str) -> bool:
    """Whether a file is an image in a format that is not read."""
    return _suffix(path) in UNREAD


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def a_few(paths: Sequence[str]) -> str:
    """The name of the first, and how many more there are."""
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return f"{os.path.basename(paths[0]) or paths[0]}{more}"


def how_to_read(paths: Iterable[str]) -> str:
    """What to do about images in formats that are not read."""
    ((suffix, _),) = Counter(map(_suffix, paths)).most_common(1)
    return f"convert {suffix[1:].upper()} to JPEG or PNG"


def _stop(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}.") from None
