"""What a narrower network is worth before it is trained: its loss on fixed images, batch-norm statistics set right."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.base import Data, Split, spread
from compress.errors import DataError, ModelError
from compress.events import Listener, ignore
from compress.pruning.channels import Prunable
from compress.pruning.masking import Masked
from compress.training.predicting import inputs_of

ENOUGH = 100  # validation images to judge by; with fewer, training images are used
JUDGED_PIXELS, MOST_JUDGED, FEWEST_JUDGED = 2**21, 512, 128  # a search looks at them hundreds of times
BATCH_PIXELS, LARGEST_BATCH, SMALLEST_BATCH = 2**19, 256, 16

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Judged:
    """Mean cross-entropy in nats, infinite where the network gives no numbers, and top-1 accuracy in per cent."""

    loss: float
    accuracy: float


class Judge:
    """Says what a network is worth at given widths of its coupled groups, without training it.

    Batch-norm statistics are estimated anew on fixed training images before each judgement (EagleEye, Li et al. 2020,
    arXiv:2007.02491), as the mean over their batches; a network without batch-norm is taken as it is.
    Judged are fixed images of the validation split, or of the training split where that has fewer than 100; never
    test images. There are `images` of them, 512 of up to 64 pixels a side if left out and down to 128 larger ones, and
    half as many for `statistics`. All are prepared once, and every tuple of widths is judged once. `seed` is what
    searches draw from; `stage` and `emit` are for telling how far they are. Raises DataError where there are no images.
    """

    def __init__(
        self,
        masked: Masked,
        data: Data,
        device: torch.device,
        seed: int = 0,
        *,
        images: int | None = None,
        statistics: int | None = None,
        stage: str = "",
        emit: Listener = ignore,
    ) -> None:
        self.masked, self.data, self.device, self.seed = masked, data, device, seed
        _, height, width = data.image
        usual = min(max(JUDGED_PIXELS // (height * width), FEWEST_JUDGED), MOST_JUDGED)
        self.images = usual if images is None else images
        self.statistics = self.images // 2 if statistics is None else statistics
        self.stage, self.emit = stage, emit
        self.known: dict[tuple[int, ...], Judged] = {}
        masked.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def of(
        cls,
        prunable: Prunable,
        data: Data,
        device: torch.device,
        seed: int = 0,
        *,
        stage: str = "",
        emit: Listener = ignore,
    ) -> Self:
        """A judge of a network that is about to be pruned, which is copied."""
        masked = Masked(prunable.module, prunable.groups, prunable.scored)
        return cls(masked, data, device, seed, stage=stage, emit=emit)

    def __call__(self, widths: Sequence[int]) -> Judged:
        """The network at these widths, one for each group."""
        key = tuple(widths)
        if key not in self.known:
            self.masked.narrow(widths)
            with reestimated(self.masked.module, self._for_statistics):
                self.known[key] = judged(self.masked.module, self._for_judging)
            self.masked.narrow(self.masked.widths)
        return self.known[key]

    @property
    def dense(self) -> Judged:
        """The network as it is; raises ModelError where its outputs are no numbers."""
        found = self(self.masked.widths)
        if not math.isfinite(found.loss):
            raise ModelError(
                "the network's outputs are not finite on its own images, so nothing can be said of narrower ones. "
                "Train it again with a smaller learning rate."
            )
        return found

    def say(self, doing: str, done: int, total: int, best: float) -> None:
        """Tell how far a search is and how good its best candidate."""
        figures = f"loss {best:.4f}"
        self.emit(
            {"event": "progress", "stage": self.stage, "doing": doing, "done": done, "of": total, "figures": figures}
        )

    @cached_property
    def _for_judging(self) -> Batches:
        return prepared(self.data, for_judging(self.data, self.images), self.device)

    @cached_property
    def _for_statistics(self) -> list[Tensor]:
        train = self.data.train
        chosen = train.take(spread(train.labels, self.statistics))
        return [inputs for inputs, _ in prepared(self.data, chosen, self.device) if len(inputs) > 1]


def for_judging(data: Data, count: int) -> Split:
    """At most `count` images to compare networks by before they are trained, the classes taking turns."""
    split = data.val if len(data.val) >= min(ENOUGH, count) else data.train
    if not len(split):
        raise DataError("there are no validation and no training images to judge networks by; give some")
    return split.take(spread(split.labels, count))


def prepared(data: Data, split: Split, device: torch.device) -> Batches:
    """A split's images as fed to a net, and its labels, in batches of nearly equal size: loaded here, and only here."""
    _, height, width = data.image
    largest = min(max(BATCH_PIXELS // (height * width), SMALLEST_BATCH), LARGEST_BATCH)
    batches: Batches = []
    for indices in np.array_split(np.arange(len(split)), math.ceil(len(split) / largest) or 1):
        part = split.take(indices)
        for inputs in inputs_of(data, part, device, largest):
            batches.append((inputs, torch.from_numpy(part.labels).to(device)))
    return batches


def judged(module: nn.Module, batches: Batches) -> Judged:
    """A network's loss and accuracy on prepared images; it is in evaluation mode."""
    loss, hits, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, labels in batches:
            logits = module(inputs).float()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            hits += int((logits.argmax(1) == labels).sum())
            count += len(labels)
    return Judged(loss / count if math.isfinite(loss) else math.inf, 100 * hits / count)


@contextmanager
def reestimated(module: nn.Module, batches: Sequence[Tensor]) -> Iterator[None]:
    """Batch-norm statistics from these inputs for the while: the mean over batches of each batch's own."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats] if len(batches) else []
    before = [(norm.momentum, copy.deepcopy(dict(norm.named_buffers())), norm.training) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the cumulative average
            norm.train()
        with torch.no_grad():
            for inputs in batches if norms else ():
                module(inputs)
        for norm in norms:
            norm.eval()
        yield
    finally:
        for norm, (momentum, buffers, training) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.training = training
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
