"""What an epoch of training comes to."""

from collections.abc import Mapping

import torch
from torch import Tensor

from compress.losses.base import UNLABELLED
from compress.training.objective import Sum


class Sums:
    """What an epoch comes to, added up on the device, which is not made to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.total, self.hits, self.labelled = (torch.zeros((), device=device) for _ in range(3))
        self.terms: dict[str, Tensor] = {}
        self.steps = 0.0

    def add(self, found: Sum, labels: Tensor, share: float = 1.0) -> None:
        """Add the losses and right answers of a batch, or of a part of one that is a `share` of it."""
        self.steps += share
        self.total = self.total + share * found.total.detach()
        self.hits = self.hits + (found.logits.detach().argmax(1) == labels).sum()
        self.labelled = self.labelled + (labels != UNLABELLED).sum()
        for name, term in found.terms:
            self.terms[name] = self.terms.get(name, 0) + share * term.detach()

    def loss(self) -> float:
        """The mean of the sum of the losses."""
        return self.total.item() / self.steps

    def losses(self) -> dict[str, float]:
        """The mean of each loss by name, without its weight."""
        return {name: term.item() / self.steps for name, term in self.terms.items()}

    def accuracy(self) -> float:
        """How much of what has a label was right, in per cent."""
        return 100 * self.hits.item() / max(self.labelled.item(), 1)

    def state(self) -> dict[str, Tensor]:
        """All sums by name."""
        return {"total": self.total, "hits": self.hits, "labelled": self.labelled} | {
            f"terms/{name}": term for name, term in self.terms.items()
        }

    def restore(self, state: Mapping[str, Tensor], steps: float) -> None:
        """Go on adding to what `state` gave after `steps` steps."""
        device = self.total.device
        self.total, self.hits, self.labelled = (state[name].to(device) for name in ("total", "hits", "labelled"))
        prefix = "terms/"
        self.terms = {name[len(prefix) :]: value.to(device) for name, value in state.items() if name.startswith(prefix)}
        self.steps = steps
