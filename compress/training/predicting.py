"""What a net says of the images of a split."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from compress.data.base import Data, Split
from compress.edits.graph import evaluating


def predict(module: nn.Module, data: Data, split: Split, device: torch.device, batch: int = 256) -> Tensor:
    """The net's logits for every image of a split, (n, classes) float32 on the CPU, in evaluation mode."""
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with evaluating(module), torch.no_grad():
        parts = [module(inputs).float().cpu() for inputs in inputs_of(data, split, device, batch)]
    return torch.cat(parts) if parts else torch.zeros(0, data.classes)


def inputs_of(data: Data, split: Split, device: torch.device, batch: int) -> Iterator[Tensor]:
    """A split's images in order, as fed to a net, in batches."""
    for start in range(0, len(split), batch):
        images = split.images[np.arange(start, min(start + batch, len(split)))]
        yield data.inputs(images.to(device)).contiguous(memory_format=torch.channels_last)


def accuracy(logits: Tensor, labels: np.ndarray) -> float:
    """Top-1 accuracy in per cent; 0 where there are no images."""
    return 100 * float((logits.argmax(1).numpy() == labels).mean()) if len(labels) else 0.0
