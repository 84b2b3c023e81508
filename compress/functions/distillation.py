"""Distillation as a function."""

import copy
from collections.abc import Iterable, Sequence, Sized
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compress.config import cut
from compress.edits.graph import evaluating
from compress.errors import ConfigError, DataError, TrainingError
from compress.functions.given import (
    LOG,
    checked,
    classes_of,
    data_of,
    device_of,
    pairs,
    require_again,
    require_module,
)
from compress.losses.base import Outputs
from compress.recipe import Training, optimizer_for, schedule_for
from compress.stages.distill import DEFAULT_LOSSES, Distill
from compress.training.objective import Objective, Tutor

REMEMBERING = ("crd",)  # losses that know images by their place in the data, which batches do not have


def distill(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    losses: Sequence[Any] | None = None,
    blend: Any = "mean",
    epochs: int = 10,
    lr: float = 0.001,
    optimizer: str = "adamw",
    schedule: str = "one_cycle",
    weight_decay: float | None = None,
    label_smoothing: float = 0.0,
    clip: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of the student, trained to say what its teachers say (Hinton et al. 2015, arXiv:1503.02531).

    `batches` are pairs of normalised inputs, float32 (n, C, H, W), and labels, int64 (n,): a list or a DataLoader, gone
    through once for each of `epochs`; augmentation is theirs. The loss is the mean over the batch of the weighted sum
    of `losses`, each as in a pipeline file (`"kd"`, `{"dkd": {"weight": 1}}`) or an object of `compress.losses`; left
    out, 0.1 of cross-entropy and 0.9 of soft labels at temperature 4. `blend` says how several teachers count. `lr` is
    the highest rate; the other arguments are the keys of the same names of `training`.

    The student may be a result of `quantize`: that is quantization-aware training. Students and teachers are left as
    they were, and have to be on one device; batches are brought there. Teachers run in evaluation mode beside the
    student. The result is in evaluation mode: the last epoch's, nothing is selected. The mean loss of each epoch is
    said to the logger `compress`. Dropout and the parameters of losses follow from `seed`.

    Raises ConfigError for wrong arguments, for losses whose layers are not found and for teachers of other classes;
    DataError without batches and for labels that are no classes; TrainingError where the loss is no longer finite.
    """
    teachers = [teacher] if isinstance(teacher, nn.Module) else teacher
    _require_nets(student, teachers)
    training = checked(
        Training,
        {"epochs": epochs, "lr": lr, "optimizer": optimizer, "schedule": schedule, "weight_decay": weight_decay,
         "label_smoothing": label_smoothing, "clip": clip},
        "distill",
    )  # fmt: skip
    terms = _losses(losses, blend)
    again = require_again(batches, "distill")
    first = next(pairs(again, "distill"), None)
    if first is None:
        raise DataError("distill: there are no batches to learn from")
    inputs = first[0]
    image, classes = (inputs.shape[1], inputs.shape[2], inputs.shape[3]), classes_of(student, inputs, "distill")
    student = copy.deepcopy(student)
    with torch.random.fork_rng(), ExitStack() as stack:
        torch.manual_seed(seed)
        for each in teachers:
            stack.enter_context(evaluating(each))
        objective = Objective(
            student, data_of(image, classes), terms.losses, [Tutor(each) for each in teachers], device_of(student),
            training.label_smoothing, terms.blend,
        )  # fmt: skip
        stack.enter_context(objective.open())
        _train(student, objective, again, training)
    return student.eval()


def _train(student: nn.Module, objective: Objective, batches: Iterable[Any], training: Training) -> None:
    optimizer = optimizer_for(student, training, beside=objective.parameters)
    steps = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    rate = schedule_for(optimizer, training, steps)
    for epoch in range(training.epochs):
        student.train()
        total, images = 0.0, 0
        for inputs, labels in pairs(batches, "distill"):
            loss = _loss(student, objective, inputs, labels, epoch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if training.clip is not None:
                nn.utils.clip_grad_norm_([*student.parameters(), *objective.parameters], training.clip)
            optimizer.step()
            rate.step()
            total, images = total + loss.item() * len(inputs), images + len(inputs)
        LOG.info("distill: epoch %d of %d: loss %.4f", epoch + 1, training.epochs, total / max(images, 1))


def _loss(student: nn.Module, objective: Objective, inputs: Tensor, labels: Tensor, epoch: int) -> Tensor:
    """The sum of the losses for a batch."""
    inputs, labels = inputs.to(objective.device), labels.to(objective.device)
    classes = objective.data.classes
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"distill: labels run from 0 to {classes - 1}, and there are {sorted({*labels.tolist()})[:10]}")
    with torch.no_grad():
        taught: tuple[Outputs, ...] = tuple(objective.said(i, inputs) for i in range(len(objective.tutors)))
    loss = objective(student, inputs, taught, labels, torch.arange(len(inputs)), epoch).total
    if not torch.isfinite(loss):
        raise TrainingError(f"distill: the loss is no longer finite in epoch {epoch + 1}; lower lr, or set clip=1.0")
    return loss


def _losses(losses: Sequence[Any] | None, blend: Any) -> Distill:
    """The losses and how teachers count, as the stage has them."""
    if losses is not None and (isinstance(losses, str) or not losses):
        raise ConfigError(f"distill: losses should be a list such as ['cross_entropy', 'kd'], not {losses!r}")
    given = DEFAULT_LOSSES if losses is None else tuple(losses)
    found = checked(Distill, {"losses": given, "blend": blend}, "distill")
    for loss in found.losses:
        if loss.name in REMEMBERING:
            raise ConfigError(f"distill: {loss.name} knows images by their place in the data; use compress.run for it")
    return found


def _require_nets(student: nn.Module, teachers: Sequence[nn.Module]) -> None:
    require_module(student, "distill", "student")
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ConfigError(f"distill: {type(student).__name__} has no parameter that wants a gradient; unfreeze some")
    if not teachers or not isinstance(teachers, list | tuple):
        raise ConfigError(f"distill: teacher should be a torch.nn.Module or a list of them, not {cut(repr(teachers))}")
    for teacher in teachers:
        require_module(teacher, "distill", "teacher")
        if teacher is student:
            raise ConfigError("distill: student and teacher are one module; give a copy of it as the teacher")
        if device_of(teacher) != device_of(student):
            where = f"the teacher is on {device_of(teacher)} and the student on {device_of(student)}"
            raise ConfigError(f"distill: {where}; bring both to one device")
