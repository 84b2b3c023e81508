"""Training a net in place."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from compress.data.base import Data
from compress.errors import ConfigError
from compress.losses.base import Loss
from compress.recipe import NONE_APART, Apart, Training
from compress.training.checkpoint import Checkpoints, Keeper
from compress.training.loop import Loop
from compress.training.loop import Progress as Progress
from compress.training.objective import Blend, Objective, Tutor
from compress.training.regularizing import gammas
from compress.training.state import Companion


def fit(
    module: nn.Module,
    data: Data,
    training: Training,
    losses: Sequence[Loss],
    *,
    tutors: Sequence[Tutor] = (),
    blend: Blend = "mean",
    device: torch.device,
    seed: int,
    progress: Progress,
    after_epoch: Callable[[int], None] | None = None,
    apart: Apart = NONE_APART,
    keeper: Keeper | None = None,
    companions: Sequence[Companion] = (),
) -> None:
    """Train a net in place on the training split, minimising the sum of `losses`; it ends in evaluation mode.

    `apart` are parameters with a rate of their own, such as learned scales; `blend` says how several teachers count.
    `keeper` keeps checkpoints, and the training goes on from the last one that it has to the very same end;
    `companions` are what changes along with the net and belongs into them.

    Order, augmentation and dropout follow from `seed` and the epoch alone, so on one machine with one number of
    threads the CPU gives the same bits again. Teachers run in evaluation mode on the same augmented images, or have
    their say looked up. Emits an `epoch` event after each epoch, with the accuracy on the validation split, and `step`
    events between. Nothing is selected: the last epoch counts. Where a number is not finite the training goes back to
    its last good state, three times at most, and where memory runs out it cuts batches into parts; both is told by a
    `mended` event. Raises TrainingError when numbers do not stay finite, ResourceError when memory or disk do not
    suffice, ConfigError for a `bn_l1` where there is no batch-norm, and for losses that do not fit the nets.
    """
    if training.bn_l1 and not gammas(module):
        raise ConfigError(
            f"stage {progress.stage}: training.bn_l1 is a penalty on the scales of batch-norms, and "
            f"{type(module).__name__} has none (in a quantized net they are folded). Leave bn_l1 out of this stage."
        )
    if data.unlabelled is not None and all(loss.needs_labels for loss in losses):
        # Nothing would be learnt from images without labels, and they would thin out the batches.
        data = replace(data, unlabelled=None)
        tutors = [replace(each, data=each.data and replace(each.data, unlabelled=None)) for each in tutors]
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for tutor in tutors:
        tutor.module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if training.epochs and data.samples:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            objective = Objective(module, data, losses, tutors, device, training.label_smoothing, blend)
            with objective.open():
                keeper = keeper or Checkpoints().next()
                loop = Loop(
                    module, data, training, objective, device, seed, progress, keeper, apart, companions
                )  # fmt: skip
                loop.run(after_epoch)
    module.eval()
