"""CIFAR-10 and CIFAR-100, through torchvision."""

import errno
import os
import socket
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import numpy as np
from torchvision import datasets

from compress.data.assemble import assemble
from compress.data.base import Data, MissingData, Preprocessing, Split
from compress.data.pictures import in_memory
from compress.data.split import complete
from compress.errors import ResourceError

UNWRITABLE = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
TIMEOUT_S = 20.0  # of silence, after which a download is given up


class Cifar10(Preprocessing):
    """CIFAR-10, 60,000 images in 10 classes, 32 × 32 (Krizhevsky 2009, Learning Multiple Layers of Features).

    Downloaded into `path` by torchvision unless it is there. The test images are the published ones; a tenth
    of the training images, drawn by the seed, serves for validation (45,000 / 5,000 as in He et al. 2016,
    arXiv:1512.03385, sec. 4.2).
    """

    name: ClassVar[str] = "cifar10"

    path: Path = Path("data")

    def __call__(self, seed: int) -> Data:
        """The published test images, and the training images split by `seed`."""
        return _data(self, self.path, datasets.CIFAR10, seed)

    def on_disk(self) -> bool:
        """Whether nothing would have to be downloaded."""
        return _on_disk(self.path, datasets.CIFAR10)


class Cifar100(Preprocessing):
    """CIFAR-100, 60,000 images in 100 classes (Krizhevsky 2009, Learning Multiple Layers of Features).

    Labels are the fine ones. Downloaded and split as `cifar10`.
    """

    name: ClassVar[str] = "cifar100"

    path: Path = Path("data")

    def __call__(self, seed: int) -> Data:
        """The published test images, and the training images split by `seed`."""
        return _data(self, self.path, datasets.CIFAR100, seed)

    def on_disk(self) -> bool:
        """Whether nothing would have to be downloaded."""
        return _on_disk(self.path, datasets.CIFAR100)


def _on_disk(path: Path, source: Any) -> bool:
    root = Path(os.path.expanduser(path))
    return any((root / name).exists() for name in (source.base_folder, source.filename))


def _data(prep: Preprocessing, path: Path, source: Any, seed: int) -> Data:
    root = Path(os.path.expanduser(path))
    train, test = _fetched(source, root, train=True), _fetched(source, root, train=False)
    given = {
        name: (part.data, np.array(part.targets, dtype=np.int64)) for name, part in (("train", train), ("test", test))
    }
    splits = [Split(in_memory(images, prep), labels) for images, labels in complete(given, seed)]
    return assemble(prep, source.__name__, splits, train.classes, mirror=True)


def _fetched(source: Any, root: Path, *, train: bool) -> Any:
    """What torchvision has of it, downloaded if need be; pickles are opened only if their MD5 sums are right.

    Raises MissingData where it cannot be downloaded, ResourceError where it cannot be written.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)  # torchvision sets none, and a silent firewall would hold us
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's about the format of arrays pickled in 2009
            return source(root, train=train, download=True)
    except (URLError, HTTPException, TimeoutError, ConnectionError, RuntimeError) as error:
        # A RuntimeError is torchvision's word for a wrong MD5 sum, such as of a proxy's page of HTML.
        raise MissingData(_where_to_put_it(source, root, error)) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise MissingData(_where_to_put_it(source, root, error)) from None
        raise ResourceError(
            f"{source.__name__} cannot be written to {root}: {error.strerror}. "
            "Give `path` a folder that can be written and has 400 MB free."
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _where_to_put_it(source: Any, root: Path, error: Exception) -> str:
    archive = root / source.filename
    damaged = f"{archive} is there, but damaged or not the original. " if archive.exists() else ""
    return (
        f"{source.__name__} is not in {root} and cannot be downloaded ({getattr(error, 'reason', error)}). "
        f"{damaged}Fetch {source.url} on a machine with internet access, put it at {archive} and run again."
    )
