"""What a candidate costs, from its sizes alone: multiply-accumulates exactly, milliseconds by a model fitted here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.models.mobilenet_blocks import MobileNetBlocks


@dataclass(frozen=True)
class Layer:
    """A convolution, or the linear layer at the end: `positions` is the number of pixels it writes."""

    inputs: int
    outputs: int
    kernel: int
    positions: int
    depthwise: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.positions * self.outputs * (1 if self.depthwise else self.inputs) * self.kernel**2


def layers(architecture: MobileNetBlocks, classes: int, image: tuple[int, int, int]) -> list[Layer]:
    """All layers with weights, in order."""
    height, width = architecture.seen(image)

    def shrink(stride: int) -> int:
        nonlocal height, width
        height, width = -(-height // stride), -(-width // stride)  # what is left over gets a pixel of its own
        return height * width

    positions = shrink(architecture.first_stride(image))
    found = [Layer(image[0], architecture.stem, 3, positions)]
    inputs = architecture.stem
    for i, outputs in enumerate(architecture.widths):
        for block in range(architecture.depths[i]):
            hidden = inputs * architecture.expansions[i]
            if hidden != inputs:
                found.append(Layer(inputs, hidden, 1, positions))
            positions = shrink(architecture.strides[i] if block == 0 else 1)
            found.append(Layer(hidden, hidden, architecture.kernels[i], positions, depthwise=True))
            found.append(Layer(hidden, outputs, 1, positions))
            inputs = outputs
    found.append(Layer(inputs, architecture.head, 1, positions))
    return [*found, Layer(architecture.head, classes, 1, 1)]


def macs(architecture: MobileNetBlocks, classes: int, image: tuple[int, int, int]) -> int:
    """Multiply-accumulates for one image, as `count_macs` counts them."""
    return sum(layer.macs for layer in layers(architecture, classes, image))


@dataclass(frozen=True)
class TimeModel:
    """Milliseconds as a sum, with a price of at least 0 each, over what a network's layers do.

    What is priced: a run, a layer, a multiply-accumulate, one in a depthwise convolution, and a number written. Prices
    are fitted to measured networks, least squares of the relative error.
    """

    prices: NDArray[np.float64]

    @classmethod
    def fitted(cls, networks: Sequence[Sequence[Layer]], milliseconds: Sequence[float]) -> "TimeModel":
        """Prices from networks that were measured, one list of layers and one time each."""
        from scipy.optimize import nnls  # takes half a second to import, and few commands need it

        times = np.array(milliseconds, np.float64)
        work = np.stack([_work(network) for network in networks])
        scale = np.maximum(work.max(0), 1e-12)  # columns of one size, or rounding would decide
        prices = nnls(work / scale / times[:, None], np.ones(len(times)))[0] / scale
        return cls(prices)

    def __call__(self, network: Sequence[Layer]) -> float:
        """Milliseconds of one run."""
        return float(_work(network) @ self.prices)


def _work(network: Sequence[Layer]) -> NDArray[np.float64]:
    depthwise = sum(layer.macs for layer in network if layer.depthwise)
    dense = sum(layer.macs for layer in network) - depthwise
    written = sum(layer.outputs * layer.positions for layer in network)
    return np.array([1, len(network), dense, depthwise, written], np.float64)
