"""What an epoch of training comes to."""

import torch
from torch import Tensor

from compress.losses.base import UNLABELLED
from compress.objective import Sum


class Sums:
    """What an epoch comes to, added up on the device, which is not made to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.total, self.hits, self.labelled = (torch.zeros((), device=device) for _ in range(3))
        self.terms: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, found: Sum, labels: Tensor) -> None:
        """Add a batch's losses and right answers."""
        self.steps += 1
        self.total = self.total + found.total.detach()
        self.hits = self.hits + (found.logits.detach().argmax(1) == labels).sum()
        self.labelled = self.labelled + (labels != UNLABELLED).sum()
        for name, term in found.terms:
            self.terms[name] = self.terms.get(name, 0) + term.detach()

    def loss(self) -> float:
        """The mean of the sum of the losses."""
        return self.total.item() / self.steps

    def losses(self) -> dict[str, float]:
        """The mean of each loss by name, without its weight."""
        return {name: term.item() / self.steps for name, term in self.terms.items()}

    def accuracy(self) -> float:
        """How much of what has a label was right, in per cent."""
        return 100 * self.hits.item() / max(self.labelled.item(), 1)
