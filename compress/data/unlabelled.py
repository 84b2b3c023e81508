"""More images to train on, of which nobody has said what they show."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from compress.config import fingerprint
from compress.data.base import Data, Images, InMemory, MissingData, Preprocessing
from compress.data.files import Damage, Files, broken, decoded, without
from compress.data.image_folder import IN_MEMORY_BYTES
from compress.data.npz import arrays
from compress.data.pictures import in_memory
from compress.errors import DataError
from compress.files.image_files import image_files


class Unlabelled(Damage):
    """Images without labels, learnt by soft labels alone (Hinton et al. 2015, arXiv:1503.02531, sec. 2).

    `path` is a folder of images, in folders of any depth, or an .npz archive whose `images` are uint8 (n, H, W) or
    (n, H, W, 1 or 3). They are brought to the size and colours of the data that they stand beside.
    """

    path: Path

    def __call__(self, prep: Preprocessing) -> Images:
        """The images as `prep` has them; raises DataError where they are missing, unreadable or none."""
        return self._looked_up(prep)[0]

    def _looked_up(self, prep: Preprocessing) -> tuple[Images, list[str]]:
        """The images, and a warning of those that were left out."""
        path = Path(os.path.expanduser(self.path))
        if not path.exists():
            raise MissingData(f"unlabelled: there is no {path}; give `path` a folder of images or an .npz archive")
        if path.is_file():
            return in_memory(_array(path), prep), []
        paths, _ = image_files(path)
        if not paths:
            raise DataError(f"unlabelled: {path} holds no images; give `path` a folder with some")
        if len(paths) * prep.channels * prep.size**2 > IN_MEMORY_BYTES:
            pixels, problems = None, broken(paths) if self.damaged == "skip" else {}
        else:
            pixels, problems = decoded(paths, prep)
        warnings = [f"unlabelled: {text}" for text in self.left_out([*problems.values()], len(paths))]
        (kept,) = without(problems, [len(paths)])
        if pixels is None:
            return Files(tuple(paths[i] for i in kept), prep), warnings
        return InMemory(pixels[torch.from_numpy(kept)] if problems else pixels), warnings

    def joined(self, data: Data, prep: Preprocessing) -> Data:
        """The data with these images beside the labelled ones; warns of test images among them."""
        images, warnings = self._looked_up(prep)
        warnings = [*data.warnings, *warnings]
        if isinstance(images, InMemory) and isinstance(data.test.images, InMemory):
            known = {_digest(image) for image in images.pixels.numpy()}
            count = sum(_digest(image) in known for image in data.test.images.pixels.numpy())
            if count:
                warnings.append(
                    f"{count} of {len(data.test)} test images stand among the unlabelled ones, pixel for pixel; the "
                    "accuracy is flattered."
                )
        return replace(
            data,
            unlabelled=images,
            warnings=tuple(warnings),
            fingerprint=fingerprint(data.fingerprint, "unlabelled", _content(images)),
        )


def _array(path: Path) -> np.ndarray:
    """The archive's images."""
    try:
        images = arrays(path, {"images"}).get("images")
    except DataError as error:
        raise DataError(f"unlabelled: {path} cannot be read as an .npz archive: {error}") from None
    if images is None:
        raise DataError(f"unlabelled: {path} holds no array `images`; it must be uint8 (n, H, W) or (n, H, W, 1 or 3)")
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not grey_or_colour or 0 in images.shape:
        seen = f"{images.dtype} {images.shape}"
        raise DataError(
            f"unlabelled: {path} holds `images` of {seen}; they must be uint8 (n, H, W) or (n, H, W, 1 or 3)"
        )
    return images


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _content(images: Images) -> str:
    """A hash of all pixels in memory, or of the files' paths and sizes."""
    if isinstance(images, InMemory):
        return hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest()
    assert isinstance(images, Files)
    above = os.path.commonpath(images.paths) if len(images.paths) > 1 else ""
    # A copy of the folder elsewhere is the same data.
    return fingerprint(*((path.removeprefix(above), os.path.getsize(path)) for path in images.paths))
