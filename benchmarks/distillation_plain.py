"""The peer: a training loop as the papers' code has it, with or without a teacher beside the student.

PIL images, one at a time through torchvision's transforms; a DataLoader; float32, contiguous; the teacher asked anew in
every step; loss and accuracy read in every step. Nothing in it is slower than it must be in such a loop.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from compress.data.base import Data

TEMPERATURE, HARD, SOFT = 4.0, 0.1, 0.9  # Hinton et al. 2015 with the weights of Tian et al. 2020


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images and labels as torchvision's CIFAR100 has them: an array (n, H, W, 3), made a PIL image when asked for."""

    def __init__(self, data: Data, changed: bool = True) -> None:
        images = data.train.images[np.arange(len(data.train))]
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = [int(label) for label in data.train.labels]
        side = data.image[-1]
        change = [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
        fed = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        self.transform = transforms.Compose((change if changed else []) + fed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


@dataclass
class PlainLoop:
    """A student that is trained so; `workers` as the DataLoader has them."""

    student: nn.Module
    teacher: nn.Module | None
    pictures: Pictures
    batch_size: int
    lr: float
    weight_decay: float = 5e-4
    workers: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.student.to(self.device).train()
        if self.teacher is not None:
            self.teacher.to(self.device).eval()
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), self.lr, momentum=0.9, weight_decay=self.weight_decay
        )
        self.loader = DataLoader(
            self.pictures,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            # Not forked: this process has threads, and it may have a GPU.
            multiprocessing_context="forkserver" if self.workers else None,
            persistent_workers=self.workers > 0,
        )
        self.batches = self._endless()
        self.loss = self.hits = 0.0

    def steps(self, count: int) -> int:
        """Train for so many steps; gives how many images that were."""
        for _ in range(count):
            images, labels = (each.to(self.device) for each in next(self.batches))
            logits = self.student(images)
            loss = F.cross_entropy(logits, labels)
            if self.teacher is not None:
                with torch.no_grad():
                    said = self.teacher(images)
                loss = HARD * loss + SOFT * soft_loss(logits, said)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.loss += loss.item()
            self.hits += (logits.argmax(1) == labels).sum().item()
        return count * self.batch_size

    def close(self) -> None:
        """Let the loader's processes end."""
        self.batches.close()
        del self.batches, self.loader

    def _endless(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        while True:
            yield from self.loader


def soft_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """T² · KL(teacher ‖ student), mean over the batch."""
    said = F.log_softmax(student / TEMPERATURE, dim=1)
    wanted = F.softmax(teacher / TEMPERATURE, dim=1)
    return F.kl_div(said, wanted, reduction="batchmean") * TEMPERATURE**2
