"""Training images on their way to the device."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from compress.data.base import Data, Images, InMemory, Subset
from compress.errors import DataError

MOST_WORKERS = 16
MOST_COPIED = 2**28  # bytes of images that are held a second time in the computer's memory


@dataclass(frozen=True)
class Joined:
    """The images with labels, followed by those without."""

    labelled: Images
    unlabelled: Images

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        first = indices < len(self.labelled)
        parts = self.labelled[indices[first]], self.unlabelled[indices[~first] - len(self.labelled)]
        found = torch.cat(parts)
        back = np.empty(len(indices), dtype=np.int64)
        back[np.concatenate([np.flatnonzero(first), np.flatnonzero(~first)])] = np.arange(len(indices))
        return found[torch.from_numpy(back)]


class Feed:
    """A source of uint8 images on a device, a batch at a time.

    Images in memory that go to a GPU live there as a whole; small sets are held as convolutions like them. Others are
    decoded by `workers` processes while the device works, and pass through pinned memory; with no workers, and on the
    CPU, which decoding would take from training, they are read when it is their turn.
    """

    def __init__(self, images: Images, device: torch.device, workers: int | None = None) -> None:
        self.device = device
        self.images = images
        self.workers = _workers(images, device) if workers is None else workers
        self.pixels = None
        if _in_memory(images) and (device.type == "cuda" or _bytes(images) <= MOST_COPIED):
            # (n, H, W, C), as convolutions like them: picking, moving and mirroring then copies whole pixels.
            self.pixels = images[np.arange(len(images))].to(device).permute(0, 2, 3, 1).contiguous()

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of indices, (n, C, H, W)."""
        if self.pixels is not None:
            for indices in batches:
                picked = self.pixels.index_select(0, indices.to(self.device, non_blocking=True))
                yield picked.permute(0, 3, 1, 2)
            return
        if not self.workers:
            for indices in batches:
                yield self.images[indices.numpy()].to(self.device)
            return
        # A process with threads and a GPU must not be forked. The one that is loads all modules, once for all epochs.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            _Batches(self.images, [indices.numpy() for indices in batches]),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context=context,
        )
        for found in loader:
            if isinstance(found, DataError):
                raise found
            yield found.to(self.device, non_blocking=True)


class _Batches(TorchDataset[Tensor | DataError]):
    """Item i is the whole i-th batch, or why it cannot be had: raised here, the error would bear a traceback."""

    def __init__(self, images: Images, batches: Sequence[np.ndarray]) -> None:
        self.images, self.batches = images, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            return self.images[self.batches[index]]
        except DataError as error:
            return error


def feeds_of(data: Data, views: Sequence[Data | None], device: torch.device) -> list[Feed]:
    """One feed for the student, and one for each of the views that there is, in order."""
    return [Feed(joined(each), device) for each in (data, *views) if each is not None]


def _bytes(images: Images) -> int:
    return len(images) * images[np.arange(1)].numel()


def _in_memory(images: Images) -> bool:
    if isinstance(images, Subset):
        return _in_memory(images.images)
    if isinstance(images, Joined):
        return _in_memory(images.labelled) and _in_memory(images.unlabelled)
    return isinstance(images, InMemory)


def joined(data: Data) -> Images:
    """Everything to train on, images with labels first."""
    return data.train.images if data.unlabelled is None else Joined(data.train.images, data.unlabelled)


def _workers(images: Images, device: torch.device) -> int:
    return 0 if device.type == "cpu" or _in_memory(images) else min(os.cpu_count() or 1, MOST_WORKERS)
