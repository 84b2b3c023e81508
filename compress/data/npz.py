"""Arrays in one NumPy archive."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import numpy as np

from compress.data.assemble import assemble
from compress.data.base import Data, MissingData, Preprocessing, Split
from compress.data.pictures import in_memory, reason
from compress.data.split import Labelled, complete
from compress.errors import DataError, ResourceError
from compress.files.archive import members

KEYS = {
    "class_names",
    *(f"{split}_{part}" for split in ("train", "val", "test") for part in ("images", "labels")),
}
LIMIT_BYTES = 8 * 2**30  # of arrays, which all stay in memory
HEADER_BYTES = 2**14  # numpy refuses one of more than 10,000
LAYOUT = "train_images, train_labels and, if you have them, val_images, val_labels, test_images, test_labels"


class Npz(Preprocessing):
    """One NumPy archive in MedMNIST's layout (Yang et al. 2023, doi:10.1038/s41597-022-01721-8).

    `train_images`, and optionally `val_images` and `test_images`, are uint8 (n, H, W) or (n, H, W, 1 or 3);
    `train_labels` and so on are integers from 0, (n,) or (n, 1); an array `class_names` is optional. Where
    validation or test images are missing they are split off the training images by the seed: a tenth, a
    fifth. `mirror` says whether a mirrored image still shows its class. Pickled arrays are never read.
    """

    name: ClassVar[str] = "npz"

    path: Path
    mirror: bool = True

    def __call__(self, seed: int) -> Data:
        """The archive's splits; those that it lacks are drawn by `seed`."""
        path = Path(os.path.expanduser(self.path))
        arrays = _arrays(path)
        given = {
            name: _labelled(path, arrays, name)
            for name in ("train", "val", "test")
            if name == "train" or {f"{name}_images", f"{name}_labels"} & arrays.keys()
        }
        if len(given["train"][1]) == 0:
            raise DataError(f"{path}: train_images is empty.")
        names = _class_names(path, arrays, given["train"][1])
        splits = [Split(in_memory(images, self), labels) for images, labels in complete(given, seed)]
        return assemble(self, str(path), splits, names, mirror=self.mirror)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the layout that the archive holds."""
    if not os.path.exists(path):
        raise MissingData(f"there is no file {path}; give `path` an .npz archive with {LAYOUT}.")
    return arrays(path, KEYS)


def arrays(path: Path, keys: Collection[str]) -> dict[str, np.ndarray]:
    """Those of an archive's arrays that are asked for and there.

    Raises DataError for what is no archive, is damaged, holds pickled objects or more than `LIMIT_BYTES`, before it is
    in memory.
    """
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise DataError(f"{path} is no ordinary file; give an .npz archive.")
        with path.open("rb") as file:
            if file.read(4) != b"PK\3\4":
                raise DataError(f"{path} is not an .npz archive (a zip of arrays); write it with numpy.savez.")
            listed = [each for each in members(file) if each.filename.removesuffix(".npy") in keys]
            with zipfile.ZipFile(file) as archive:
                _require_bounded(path, archive, listed)
            file.seek(0)
            with np.load(file, allow_pickle=False) as loaded:
                return {key: _array(path, key, loaded) for key in loaded.files if key in keys}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is a damaged archive ({error}); fetch or write it again.") from None
    except ValueError as error:
        raise DataError(f"{path} is not read: {error}; write it with numpy.savez.") from None


def _require_bounded(path: Path, archive: zipfile.ZipFile, listed: Collection[zipfile.ZipInfo]) -> None:
    """See that arrays are as large as they claim and together within the limit, by their headers alone."""
    if len({each.filename.removesuffix(".npy") for each in listed}) < len(listed):
        raise ValueError("it holds an array twice")
    total = 0
    for member in listed:
        key = member.filename.removesuffix(".npy")
        try:
            claimed, pickled = _claimed_bytes(archive, member)
        except zipfile.BadZipFile:
            raise
        except Exception as error:  # of the parser of headers several, of unpacking as many
            said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise DataError(f"{path}: {key} is damaged ({said}); fetch or write the archive again.") from error
        if pickled:
            raise DataError(
                f"{path}: {key} holds pickled Python objects, which are never read; save plain numbers, "
                "class_names as an array of strings."
            )
        total += claimed
        if total > LIMIT_BYTES:
            raise DataError(
                f"{path}: up to {key} its arrays take {total / 2**30:,.0f} GiB; more than {LIMIT_BYTES / 2**30:g} GiB "
                "are not taken into memory. Put the images into class folders and use image_folder."
            )
        if claimed != member.file_size:
            raise DataError(
                f"{path}: {key} is damaged (its header claims {claimed:,} bytes and there are {member.file_size:,}); "
                "fetch or write the archive again."
            )


def _claimed_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, bool]:
    """How large an array's member should be by its header, and whether it would be unpickled."""
    with archive.open(member) as stream:
        start = io.BytesIO(stream.read(HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    if min(shape, default=0) < 0 or len(shape) > 32:
        raise ValueError(f"a shape of {len(shape)} dimensions, or negative ones")
    return start.tell() + math.prod(shape) * dtype.itemsize, dtype.hasobject


def _array(path: Path, key: str, archive: "np.lib.npyio.NpzFile") -> np.ndarray:
    try:
        array = archive[key]
    except (ValueError, EOFError, RuntimeError, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {key} holds pickled Python objects, which are never read; save plain numbers, "
                "class_names as an array of strings."
            ) from None
        raise DataError(f"{path}: {key} is damaged ({error}); fetch or write the archive again.") from None
    except MemoryError as error:
        raise ResourceError(f"{path}: {key} does not fit into memory ({error}).") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key} is not an array; write the archive with numpy.savez.")
    return array


def _labelled(path: Path, arrays: dict[str, np.ndarray], split: str) -> Labelled:
    missing = [key for key in (f"{split}_images", f"{split}_labels") if key not in arrays]
    if missing:
        held = ", ".join(sorted(arrays)) or "none of the layout's arrays"
        raise DataError(f"{path} has no {' and no '.join(missing)}; it has {held}. The layout is {LAYOUT}.")
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not grey_or_colour or 0 in images.shape[1:]:
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; "
            "it must be uint8 (n, height, width) or (n, height, width, 1 or 3)."
        )
    if labels.dtype.kind not in "iu" or not (labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)):
        raise DataError(
            f"{path}: {split}_labels is {labels.dtype} {labels.shape}; it must be integers (n,) or (n, 1), "
            "one class an image."
        )
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} {split}_images, but {len(labels)} {split}_labels.")
    return images, labels.reshape(-1).astype(np.int64)


def _class_names(path: Path, arrays: dict[str, np.ndarray], labels: np.ndarray) -> list[str]:
    """The archive's own names, else the numbers from 0 to the largest training label."""
    if "class_names" not in arrays:
        # There cannot be more classes than images; a stray label far above must not make a list of millions.
        return [str(label) for label in range(min(int(labels.max()) + 1, len(labels)))]
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: class_names is {names.dtype} {names.shape}; it must be strings (classes,).")
    return [str(name) for name in names]
