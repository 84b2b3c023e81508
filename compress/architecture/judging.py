"""How good a candidate is: its accuracy on validation images, with batch-norm statistics of its own."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from compress.data.base import Data, InMemory, Split, spread
from compress.distributed.group import current
from compress.edits.graph import evaluating
from compress.errors import DataError
from compress.training.predicting import accuracy, inputs_of, predict

MOST = 2048  # validation images; more would rank candidates no differently
FOR_STATISTICS = 512  # training images
BATCH = 128


@dataclass(frozen=True)
class Score:
    """Accuracy in per cent, and the mean cross-entropy in nats, over so many validation images."""

    accuracy: float
    cross_entropy: float
    images: int

    @property
    def loss(self) -> float:
        """Per cent of the images that are wrong; of networks as often wrong, the surer one has less by a fraction.

        The fraction is less than a single image counts: in small validation splits many networks are as often right.
        """
        unsure = 1 - 1 / (1 + self.cross_entropy)
        return 100 - self.accuracy + 0.9 * unsure * 100 / self.images


@dataclass(frozen=True)
class Judge:
    """Images that candidates are judged on, loaded once. They are never test images."""

    data: Data
    validation: Split
    training: Split
    device: torch.device

    @classmethod
    def of(cls, data: Data, device: torch.device) -> "Judge":
        """Load the images; raises DataError where there are no validation images."""
        if not len(data.val):
            raise DataError("search needs validation images to compare networks on, and there are none")
        return cls(data, _loaded(data.val, MOST), _loaded(data.train, FOR_STATISTICS), device)

    def accuracy(self, module: nn.Module) -> float:
        """Accuracy on the validation images, in per cent."""
        return self.score(module).accuracy

    def score(self, module: nn.Module) -> Score:
        """How good a network is on the validation images; a loss that is not finite makes it the worst of its like.

        Of several processes the first one judges.
        """
        return Score(*current().first(lambda: self._figures(module)))

    def _figures(self, module: nn.Module) -> tuple[float, float, int]:
        logits = predict(module, self.data, self.validation, self.device)
        labels = self.validation.labels
        loss = F.cross_entropy(logits, torch.from_numpy(labels)).item()
        return accuracy(logits, labels), loss if math.isfinite(loss) else math.inf, len(labels)

    def restate(self, module: nn.Module) -> None:
        """Give batch-norms the statistics of training images in this network.

        The mean over batches of each batch's mean and variance, without augmentation (Yu & Huang 2019,
        arXiv:1903.05134, sec. 3.1). In place.
        """
        module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        before = [norm.momentum for norm in norms]
        with evaluating(module), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over all batches
                norm.train()
            for inputs in inputs_of(self.data, self.training, self.device, min(BATCH, len(self.training))):
                if len(inputs) > 1:
                    module(inputs)
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def _loaded(split: Split, most: int) -> Split:
    chosen = spread(split.labels, most)
    return Split(InMemory(split.images[chosen]), np.asarray(split.labels)[chosen])
