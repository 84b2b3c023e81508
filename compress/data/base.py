"""What a data set is to the rest of the program: three splits of labelled uint8 images, and how to feed them.

Images are kept as uint8, channels first, already at the size the net sees; `Data.inputs` turns a batch of
them into what the net is fed. Augmentation happens in the training loop, in one call per batch.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from compress.config import Config
from compress.errors import DataError


class MissingData(DataError):
    """The images are not there and cannot be had, as opposed to images that are there and broken."""


class Images(Protocol):
    """Something that gives images by their indices: an array in memory, or files decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        """The images at `indices` as uint8, (n, C, H, W)."""
        ...


@dataclass(frozen=True)
class Split:
    """Images and their labels (int64, one for each image) in a fixed order."""

    images: Images
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Split":
        """The first `count` examples (all of them if there are fewer)."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, indices: np.ndarray) -> "Split":
        """The examples at `indices`, in that order, without loading any image."""
        return Split(Subset(self.images, indices), self.labels[indices])


@dataclass(frozen=True)
class Subset:
    """Some of another's images, chosen by index."""

    images: Images
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        return self.images[self.chosen[indices]]


@dataclass(frozen=True)
class InMemory:
    """Images held as one uint8 tensor, (n, C, H, W)."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        # Several times as quick as brackets.
        return self.pixels.index_select(0, torch.from_numpy(np.asarray(indices, dtype=np.int64)))


@dataclass(frozen=True)
class Data:
    """Three disjoint splits and all that is needed to feed them to a net.

    `image` is (channels, height, width). `mean` and `std` have one number a channel, in units of the 0..1
    range, and come from the training images unless given. `mirror` says whether a mirrored image still shows
    its class (a digit does not). `embedded` says that the images ship with the program or are made by it, so
    that test images may be copied into a run folder. `fingerprint` changes when any image, label or
    preprocessing does. `unlabelled` are more training images, without labels.
    """

    train: Split
    val: Split
    test: Split
    image: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    mirror: bool = True
    embedded: bool = False
    warnings: tuple[str, ...] = ()
    unlabelled: Images | None = None

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def samples(self) -> int:
        """How many images there are to train on, with and without labels."""
        return len(self.train) + (0 if self.unlabelled is None else len(self.unlabelled))

    @property
    def labels(self) -> np.ndarray:
        """The class of every image to train on, -1 for those without a label, which come last."""
        return np.pad(self.train.labels, (0, self.samples - len(self.train)), constant_values=-1)

    def inputs(self, images: Tensor) -> Tensor:
        """What a net is fed for uint8 images (n, C, H, W): (image / 255 - mean) / std as float32."""
        mean, std = _per_channel(self.mean, images.device), _per_channel(self.std, images.device)
        if images.stride(1) != 1:
            return (images.float() / 255 - mean) / std
        # Channels-last: the same sums over whole rows of pixels, three times as quick as over three channels at a time.
        n, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(n * height, width * channels).float() / 255
        rows = rows.sub_(mean.flatten().repeat(width)).div_(std.flatten().repeat(width))
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)

    def smaller(self, samples: int) -> "Data":
        """At most `samples` examples in each split, spread evenly over the classes' order of appearance."""
        return replace(
            self,
            train=self.train.take(spread(self.train.labels, samples)),
            val=self.val.take(spread(self.val.labels, samples)),
            test=self.test.take(spread(self.test.labels, samples)),
            unlabelled=self.unlabelled and Subset(self.unlabelled, np.arange(min(samples, len(self.unlabelled)))),
            fingerprint=f"{self.fingerprint}-{samples}",
        )


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, C, 1, 1) on a device; kept, because each copy to a GPU would make it wait."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def spread(labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` indices in ascending order that go round the classes, so that each has its share."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    order = np.lexsort((labels, rank))  # the first of every class, then the second of every class, ...
    return np.sort(order[:count])


class Dataset(Protocol):
    """A data set as the pipeline file names it; calling it loads or indexes the images.

    Raises DataError where images or labels are missing, unreadable or do not fit.
    """

    name: ClassVar[str]

    def __call__(self, seed: int) -> Data:
        """All three splits; whatever is drawn is drawn by `seed`, and no global random state is touched."""
        ...


def one_for_all(raw: object) -> object:
    """A bare number where a list is due stands for every channel."""
    return (raw,) if isinstance(raw, int | float) else raw


Channel = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0)]


class Preprocessing(Config):
    """The keys that every data set takes.

    `size` is the side in pixels of the square that the net sees. `resize` brings an image there: `squash`
    ignores the aspect ratio, `crop` scales the shorter side and cuts the centre, `letterbox` scales the
    longer side and pads with black. `mean` and `std` are in units of 0..1, one number a channel or one for
    all; left out, they are computed from the training images. `class_names` replaces the names that the data
    bring.
    """

    size: Annotated[int, Field(ge=8, le=1024)] = 32
    mean: Annotated[tuple[Channel, ...] | None, BeforeValidator(one_for_all, Channel | tuple[Channel, ...] | None)] = (
        None
    )
    std: Annotated[
        tuple[Deviation, ...] | None, BeforeValidator(one_for_all, Deviation | tuple[Deviation, ...] | None)
    ] = None
    resize: Literal["squash", "crop", "letterbox"] = "squash"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal[1, 3] = 3
    class_names: tuple[str, ...] | None = None
