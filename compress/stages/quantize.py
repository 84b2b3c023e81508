"""The stage that makes a net int8."""

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, fx, nn

import compress.edits.bias_correction as bias_correction
import compress.edits.equalization as equalization
import compress.edits.learned as learned
from compress.config import Config, OneOf
from compress.data.base import spread
from compress.edits.calibration import calibrate, fit_weight_clips
from compress.edits.graph import folded
from compress.edits.placement import Quantizers, layers_like
from compress.edits.quantizers import activation_quantizers
from compress.edits.ranges import RANGES, Dynamic, Estimator, MovingAverage, MovingRange, Mse
from compress.errors import DataError
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.recipe import Apart, Training, filled
from compress.stages.accuracy_budget import take_over, within_budget
from compress.stages.base import Env, teach
from compress.training.predicting import inputs_of

FEW_IMAGES = 100
BATCH = 64
SCALE_RATE = {
    "lsq": 10.0,
    "pact": 1.0,
}  # times training.lr: at less they hardly move in a few epochs
CORRECTION_IMAGES = 128  # bias correction holds the values of all of them in memory
MOVING_PART = 2 / 3  # of the epochs; then ranges are frozen, so that the last steps see the file's own arithmetic


Ranges = Annotated[Estimator | Dynamic, OneOf(RANGES)]


class Quantize(Config):
    """Make a net int8 (Jacob et al. 2018, arXiv:1712.05877): by training with rounding, or after training.

    `method: qat` starts from calibrated ranges, trains with rounding in place and moves ranges in the first two thirds
    of its epochs, then leaves them alone: `ranges: moving_average` moves with every step, the others are calibrated
    again after each epoch. With `learn: lsq` (Esser et al. 2020, arXiv:1902.08153) or `pact` (Choi et al. 2018,
    arXiv:1805.06085) scales are trained instead, at a rate of their own. `method: ptq` calibrates only.

    `weights` (`int8`, `int7`, `int4`) and `activations` (`uint8`, `int8`) follow from `export.target` where they are
    not given; `granularity` says whether weights have a scale for each channel or one. `ranges` is how activation
    ranges are chosen, from `calibration` training images, the classes taking turns, or `dynamic`. `equalize` evens out
    the ranges of channels and `correct_bias` takes the mean error out of each layer (both Nagel et al. 2019,
    arXiv:1906.04721). `float_layers` are patterns of layers that stay float; `max_accuracy_drop` is how many points
    of validation accuracy rounding may cost before the most sensitive layers go back to float, fewest first.
    """

    name: ClassVar[str] = "quantize"
    method: Literal["qat", "ptq"] = "qat"
    weights: Literal["int8", "int7", "int4"] | None = None
    activations: Literal["uint8", "int8"] | None = None
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    ranges: Ranges = Mse()
    learn: Literal["none", "lsq", "pact"] = "none"
    equalize: bool = False
    correct_bias: bool = False
    float_layers: tuple[str, ...] = ()
    max_accuracy_drop: Annotated[float, Field(ge=0)] | None = None
    calibration: Annotated[int, Field(ge=1)] = 512
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None
    training: Annotated[Training, filled(epochs=6, lr=0.0003)] = Training(epochs=6, lr=0.0003)

    def __call__(self, net: Net, env: Env) -> Net:
        batches = calibration_images(env, self.calibration, few_matter=not isinstance(self.ranges, Dynamic))
        quantized, reference = self.rounding(net, env, batches)
        if self.method == "qat" and self.training.epochs:
            env.beside("ptq", Net(quantized.spec, copy.deepcopy(quantized.module).eval()))
            self.train(quantized, env, batches)
        quantized.module.eval()
        if self.max_accuracy_drop is None:
            return quantized
        assert reference is not None
        again = self.calibrated(batches)
        return within_budget(
            quantized, Net(net.spec, reference), env, self.max_accuracy_drop, again, copy.deepcopy(net.module)
        )

    def rehearsed(self) -> Self:
        """Without a limit on the accuracy, which means nothing where nothing was learnt."""
        return self.model_copy(update={"max_accuracy_drop": None})

    def rounding(self, net: Net, env: Env, batches: Callable[[], Iterable[Tensor]]) -> tuple[Net, nn.Module | None]:
        """The net with calibrated quantizers, and where it is compared with the float net, that one, folded."""
        edit = self.edit(net)
        compared = self.equalize or self.correct_bias or self.max_accuracy_drop is not None
        reference = folded(net.module) if compared else None
        quantized = Net(net.spec.edited(edit), edit(net.module).to(env.device))
        if self.equalize and reference is not None:
            equalization.without_relu6(reference)
            env.note(f"{equalization.equalize(reference)} pairs of layers were equalised")
            take_over(quantized.module, reference)
        if edit.weights == "int4":
            fit_weight_clips(quantized.module)
            env.note("weights are stored in 4 bits; ONNX Runtime widens them when it loads the file, and computes in 8")
        for remark in self.calibrated(batches)(quantized.module):
            env.warn(remark)
        if self.correct_bias and reference is not None:
            assert isinstance(quantized.module, fx.GraphModule)
            images = torch.cat([*itertools.islice(batches(), CORRECTION_IMAGES // BATCH)])
            count = bias_correction.correct_bias(quantized.module, reference.to(env.device), images)
            env.note(f"the biases of {count} layers were corrected")
        return quantized, reference

    def edit(self, net: Net) -> Quantizers:
        """The change to the net's structure that this stage makes."""
        return Quantizers(
            weights=self.weights or "int8",
            activations=self.activations or "uint8",
            granularity=self.granularity,
            ranges="dynamic" if isinstance(self.ranges, Dynamic) else "static",
            equalized=self.equalize,
            float_layers=layers_like(net.module, self.float_layers) if self.float_layers else (),
        )

    def calibrated(self, batches: Callable[[], Iterable[Tensor]]) -> Callable[[nn.Module], list[str]]:
        """A function that sets the ranges of a net, and says what was odd about them."""
        if isinstance(self.ranges, Dynamic):
            return lambda module: []
        estimator = self.ranges
        return lambda module: calibrate(module, batches, estimator)

    def train(self, quantized: Net, env: Env, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Train with rounding in place, ranges moving or learnt."""
        module = quantized.module
        moving = min(round(MOVING_PART * self.training.epochs), self.training.epochs - 1)
        losses = self.losses or (CrossEntropy(),)
        if self.learn != "none":
            learned.learn_scales(module, self.learn)
            apart = Apart(learned.scale_parameters(module), SCALE_RATE[self.learn])
            teach(quantized, env, self.training, losses, apart=apart)
            learned.bake(module)
        elif isinstance(self.ranges, MovingAverage):
            follow_ranges(module, self.ranges.momentum if moving else None)
            freeze = _frozen_after(module, moving)
            teach(quantized, env, self.training, losses, after_epoch=freeze)
        else:
            again = _again_before(module, moving, self.calibrated(batches))
            teach(quantized, env, self.training, losses, after_epoch=again)


def _again_before(module: nn.Module, epochs: int, calibrated: Callable[[nn.Module], object]) -> Callable[[int], None]:
    def after(epoch: int) -> None:
        if epoch < epochs:
            calibrated(module)

    return after


def _frozen_after(module: nn.Module, epochs: int) -> Callable[[int], None]:
    def after(epoch: int) -> None:
        if epoch + 1 == epochs:
            follow_ranges(module, None)

    return after


def follow_ranges(module: nn.Module, momentum: float | None) -> None:
    """Let the range of every quantizer move with each training step, or with None leave it where it is."""
    for _, quantizer in list(activation_quantizers(module)):
        quantizer.moving = None if momentum is None else MovingRange(quantizer, momentum)


def calibration_images(env: Env, count: int, *, few_matter: bool = True) -> Callable[[], Iterable[Tensor]]:
    """A function that gives the same training images, as fed to a net, each time it is called.

    Warns of fewer than 100 where `few_matter`, which they do not for dynamic ranges; raises DataError for none.
    """
    train = env.data.train
    chosen = train.take(spread(train.labels, count))
    if not len(chosen):
        raise DataError("there are no training images to take activation ranges from; quantization needs some")
    if few_matter and len(chosen) < FEW_IMAGES:
        env.warn(f"activation ranges come from {len(chosen)} images only; {FEW_IMAGES} or more give steadier ones")
    return lambda: inputs_of(env.data, chosen, env.device, BATCH)
