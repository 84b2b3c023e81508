"""The only training loop."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.augment import draw
from compress.averaging import update_average
from compress.data.base import Data, Split
from compress.edits.graph import evaluating
from compress.engine import Engine, fastest, quick
from compress.errors import ConfigError, DataError, TrainingError
from compress.events import Listener, ignore
from compress.feed import feeds_of
from compress.losses.base import Loss, Outputs
from compress.objective import Blend, Objective, Sum, Tutor
from compress.recipe import NONE_APART, Apart, Training, optimizer_for, schedule_for
from compress.sums import Sums

STEP_EVENT_EVERY_S = 0.5
CUDA_CHECK_EVERY = 50  # steps between looks at the loss: each look makes the GPU wait


@dataclass(frozen=True)
class Progress:
    """Who trains, and who wants to hear of it."""

    stage: str
    emit: Listener = ignore


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
) -> None:
    """Train a net in place on the training split, minimising the sum of `losses`; it ends in evaluation mode.

    `apart` are parameters with a rate of their own, such as learned scales; `blend` says how several teachers count.

    Order, augmentation and dropout follow from `seed` and the epoch alone, so on one machine with one number of
    threads the CPU gives the same bits again. Teachers run in evaluation mode on the same augmented images, or have
    their say looked up. Emits an `epoch` event after each epoch, with the accuracy on the validation split, and `step`
    events between. Nothing is selected: the last epoch counts. Raises TrainingError when the loss is no longer finite,
    ConfigError for a `bn_l1` where there is no batch-norm, and for losses that do not fit the nets.
    """
    if training.bn_l1 and not _gammas(module):
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
                _Loop(module, data, training, objective, device, seed, progress, apart).run(after_epoch)
    module.eval()


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


@dataclass
class _Loop:
    """One training: what `fit` is given, and what changes while it runs."""

    module: nn.Module
    data: Data
    training: Training
    objective: Objective
    device: torch.device
    seed: int
    progress: Progress
    apart: Apart = NONE_APART

    def run(self, after_epoch: Callable[[int], None] | None) -> None:
        """All epochs; the averaged weights, if there are any, take the net's place at the end."""
        self.batch_size = batch_size_for(self.data.samples, self.training.batch_size)
        self.steps = self.data.samples // self.batch_size
        self.optimizer = optimizer_for(self.module, self.training, self.apart, self.objective.parameters)
        self.schedule = schedule_for(self.optimizer, self.training, self.steps)
        self.average = copy.deepcopy(self.module).eval() if self.training.ema else None
        self.averaged = 0
        self.labels = torch.from_numpy(self.data.labels).to(self.device)
        self.feeds = feeds_of(self.data, [tutor.data for tutor in self.objective.tutors], self.device)
        self.engine = Engine("plain", self.forward)
        with _dropout(self.module, self.training.dropout), quick(self.device):
            self.choose_engine()
            began = time.perf_counter()
            for epoch in range(self.training.epochs):
                self.epoch(epoch, began)
                if after_epoch is not None:
                    after_epoch(epoch)
        if self.average is not None:
            update_average(self.average, self.module, decay=1.0)  # what is not averaged may have changed since
            self.module.load_state_dict(self.average.state_dict())
        self.require_finite("after the last step")

    def epoch(self, epoch: int, began: float) -> None:
        """One pass over the training images in a new order, then the accuracy on the validation split."""
        start, said = time.perf_counter(), time.perf_counter()
        random = torch.Generator().manual_seed(_mixed(self.seed, epoch))
        torch.manual_seed(_mixed(self.seed, epoch) + 1)
        self.module.train()
        order = torch.randperm(self.data.samples, generator=random)[: self.steps * self.batch_size]
        sums = Sums(self.device)
        lr = self.optimizer.param_groups[0]["lr"]
        batches = torch.split(order, self.batch_size)
        for step, (indices, *images) in enumerate(zip(batches, *(feed(batches) for feed in self.feeds), strict=True)):
            look = self.device.type == "cpu" or step % CUDA_CHECK_EVERY == 0
            self.step(sums, indices, images, epoch, random, look)
            if time.perf_counter() - said > STEP_EVENT_EVERY_S:
                said = time.perf_counter()
                self.tell("step", epoch, step + 1, start, began, lr, sums)
        self.require_finite(f"in epoch {epoch + 1}")
        judged = self.average if self.average is not None else self.module
        val = predict(judged, self.data, self.data.val, self.device)
        more: dict[str, Any] = {"val_accuracy": accuracy(val, self.data.val.labels)}
        if len(self.objective.losses) > 1:
            more["losses"] = sums.losses()
        self.tell("epoch", epoch, self.steps, start, began, lr, sums, **more)

    def step(
        self, sums: Sums, indices: Tensor, images: list[Tensor], epoch: int, random: torch.Generator, look: bool
    ) -> None:
        """One update; what it comes to is added to `sums`."""
        training, objective = self.training, self.objective
        inputs, taught = self.lesson(indices, images, random)
        labels = self.labels[indices.to(self.device, non_blocking=True)]
        self.engine.begin_step()
        found = objective(self.engine.run, inputs, taught, labels, indices, epoch)
        total = found.total
        if training.l1:
            total = total + training.l1 * _l1(self.module)
        if training.bn_l1:
            total = total + training.bn_l1 * torch.cat(_gammas(self.module)).abs().sum()
        if look and not torch.isfinite(total):
            raise TrainingError(self.blame(epoch, inputs, taught, found))
        self.optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:  # an epoch in which no loss has any weight moves nothing
            total.backward()  # type: ignore[no-untyped-call]
        if training.clip is not None:
            nn.utils.clip_grad_norm_([*self.module.parameters(), *objective.parameters], training.clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None and training.ema is not None:
            # The first weights are random: let them be forgotten sooner than the decay would.
            self.averaged += 1
            decay = min(training.ema, (1 + self.averaged) / (10 + self.averaged))
            update_average(self.average, self.module, decay)
        sums.add(found._replace(total=total), labels)

    def choose_engine(self) -> None:
        """Find out how to run the student for so many steps, and say so where there was something to find out."""
        some = np.arange(self.batch_size) % len(self.data.train)
        images = self.data.inputs(self.data.train.images[some].to(self.device))
        self.module.train()
        self.engine = fastest(
            self.module,
            self.forward,
            images.contiguous(memory_format=torch.channels_last),
            compiling=self.training.compile,
            steps=self.steps * self.training.epochs,
            watched=bool(self.objective.watches[0].places),
        )
        if self.engine.step_ms:
            self.progress.emit({
                "event": "engine", "stage": self.progress.stage, "engine": self.engine.name,
                "step_ms": self.engine.step_ms, "text": self.engine.describe(),
            })  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """The student's logits."""
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.module(inputs)  # type: ignore[no-any-return]

    def lesson(
        self, indices: Tensor, images: list[Tensor], random: torch.Generator
    ) -> tuple[Tensor, tuple[Outputs, ...]]:
        """The augmented images as the student is fed, and what each teacher says of them."""
        kept = next((t.targets for t in self.objective.tutors if t.targets is not None), None)
        among = None if kept is None or kept.views_of is None else kept.views_of[indices]
        kind, mirror, size = self.training.augment, self.data.mirror, self.data.image[-1]
        change = draw(kind, mirror, size, len(indices), random, among=among)
        inputs = self.data.inputs(change.applied(images[0]))
        taught = []
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            views = iter(images[1:])
            for i, tutor in enumerate(self.objective.tutors):
                view = inputs
                if tutor.data is not None:
                    own = next(views)
                    view = tutor.data.inputs(change.applied(own) if tutor.augmented else own)
                elif not tutor.augmented:
                    view = self.data.inputs(images[0])
                if tutor.targets is not None:
                    taught.append(Outputs(tutor.targets.logits(indices, change.views())))
                else:
                    taught.append(self.objective.said(i, view))
        return inputs, tuple(taught)

    def tell(
        self, event: str, epoch: int, step: int, start: float, began: float, lr: float, sums: Sums, **more: Any
    ) -> None:
        """Emit an event with the means over the epoch so far, the speed, and the time that is left."""
        now = time.perf_counter()
        done, images = (epoch + step / self.steps) / self.training.epochs, step * self.batch_size
        self.progress.emit({
            "event": event, "stage": self.progress.stage, "epoch": epoch + 1, "epochs": self.training.epochs,
            "step": step, "steps": self.steps, "loss": sums.loss(), "accuracy": sums.accuracy(),
            **more, "lr": lr, "images_per_s": images / (now - start), "seconds": now - start,
            "left_s": (now - began) * (1 - done) / done,
        })  # fmt: skip

    def blame(self, epoch: int, inputs: Tensor, taught: Sequence[Outputs], found: Sum) -> str:
        """Name the first tensor that is not finite, in the order in which they come to be."""
        named: list[tuple[str, Tensor]] = [*_gradients(self.module), *self.module.named_parameters()]
        named += [("the images", inputs)]
        named += [(f"teacher {i + 1}'s logits", o.logits) for i, o in enumerate(taught)]
        # Behind the images: batch-norm's running statistics take from the images what is wrong with them.
        named += [*self.module.named_buffers(), ("the student's logits", found.logits)]
        named += [(f"the loss {name}", term) for name, term in found.terms]
        return self.sentence(first_non_finite(named) or "the sum of the losses", f"in epoch {epoch + 1}")

    def require_finite(self, when: str) -> None:
        module = self.module
        bad = first_non_finite([*_gradients(module), *module.named_parameters(), *module.named_buffers()])
        if bad:
            raise TrainingError(self.sentence(bad, when))

    def sentence(self, bad: str, when: str) -> str:
        """What to tell a user of a tensor that is no longer finite, with advice that fits it."""
        advice = f"Lower training.lr (now {self.training.lr:g}) or set training.clip, for example to 1.0"
        if bad == "the images":
            advice = f"See that data.std (now {', '.join(f'{s:g}' for s in self.data.std)}) fits the images"
        elif bad.startswith("teacher "):
            advice = "Train this teacher again with a lower training.lr, or give it other weights"
        return (
            f"stage {self.progress.stage}: a value of {bad} is not finite {when}; nothing of this stage was saved. "
            f"{advice}"
        )


def batch_size_for(images: int, wanted: int) -> int:
    """The batch size to use: as wanted, or all images where there are fewer.

    A last batch that is not full is left out of an epoch, so that batch-norm never sees a handful. Raises DataError
    for a single image, from which batch-norm cannot estimate a variance.
    """
    if images < 2:
        raise DataError("there is one training image, and batch-norm cannot learn from a single one; give at least 2")
    return min(images, wanted)


def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or None."""
    floats = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
    if not floats:
        return None
    # One look for all: on a GPU each makes the program wait.
    fine = torch.stack([torch.isfinite(tensor).all() for _, tensor in floats])
    return None if bool(fine.all()) else floats[int(fine.long().argmin())][0]


def _gradients(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(f"{name}'s gradient", p.grad) for name, p in module.named_parameters() if p.grad is not None]


@contextmanager
def _dropout(module: nn.Module, probability: float | None) -> Iterator[None]:
    """Another probability while training: a net rebuilt from its description has its architecture's own."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if probability is None else probability
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p


def _l1(module: nn.Module) -> Tensor:
    weights = [m.weight.abs().sum() for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return torch.stack(weights).sum()


def _gammas(module: nn.Module) -> list[Tensor]:
    """Every γ of a batch-norm."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [layer.weight for layer in module.modules() if isinstance(layer, norms) and layer.affine]


def _mixed(seed: int, epoch: int) -> int:
    # Distinct for all (seed, epoch) that occur, and within what torch takes as a seed.
    return (seed * 1_000_003 + epoch * 2) % 2**62
