import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from compress.config import Config, OneOf
from compress.data.base import spread
from compress.edits.calibration import calibrate
from compress.edits.quantizers import Quantizers
from compress.errors import DataError
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.recipe import Training, filled
from compress.stages.base import Env, teach
from compress.train import inputs_of

FEW_IMAGES = 100
BATCH = 64
MOVING_PART = 2 / 3  # of the epochs; then ranges are frozen, so that the last steps see the file's own arithmetic


class Quantize(Config):
    """Make a net int8 (Jacob et al. 2018, arXiv:1712.05877): by training with rounding, or after training.

    `method: qat` starts from calibrated ranges, trains with rounding in place, calibrates again after each of the
    first two thirds of its epochs and then leaves ranges alone. `method: ptq` calibrates only. `calibration` is the
    number of training images that ranges are taken from, the classes taking turns.
    """

    name: ClassVar[str] = "quantize"
    method: Literal["qat", "ptq"] = "qat"
    weights: Literal["int8"] = "int8"
    activations: Literal["uint8"] = "uint8"
    calibration: Annotated[int, Field(ge=1)] = 512
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None
    training: Annotated[Training, filled(epochs=6, lr=0.0003)] = Training(epochs=6, lr=0.0003)

    def __call__(self, net: Net, env: Env) -> Net:
        batches = calibration_images(env, self.calibration)
        edit = Quantizers(weights=self.weights, activations=self.activations)
        quantized = Net(net.spec.edited(edit), edit(copy.deepcopy(net.module)).to(env.device))
        calibrate(quantized.module, batches)
        if self.method == "ptq" or not self.training.epochs:
            quantized.module.eval()
            return quantized
        env.beside("ptq", Net(quantized.spec, copy.deepcopy(quantized.module).eval()))
        moving = min(round(MOVING_PART * self.training.epochs), self.training.epochs - 1)
        ranges = _MovingRanges(quantized, batches, until=moving)
        teach(quantized, env, self.training, self.losses or (CrossEntropy(),), after_epoch=ranges.after_epoch)
        return quantized


def calibration_images(env: Env, count: int) -> Callable[[], Iterable[Tensor]]:
    """A function that gives the same training images, as fed to a net, each time it is called.

    Warns of fewer than 100; raises DataError for none.
    """
    train = env.data.train
    chosen = train.take(spread(train.labels, count))
    if not len(chosen):
        raise DataError("there are no training images to take activation ranges from; quantization needs some")
    if len(chosen) < FEW_IMAGES:
        env.warn(f"activation ranges come from {len(chosen)} images only; {FEW_IMAGES} or more give steadier ones")
    return lambda: inputs_of(env.data, chosen, env.device, BATCH)


@dataclass
class _MovingRanges:
    net: Net
    batches: Callable[[], Iterable[Tensor]]
    until: int

    def after_epoch(self, epoch: int) -> None:
        if epoch < self.until:
            calibrate(self.net.module, self.batches)
