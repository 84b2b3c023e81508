"""What a student minimises: the sum of its losses, built for one student, its teachers and its data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.base import Data
from compress.distributed.slices import gather, own
from compress.distributed.synchronized import synchronized
from compress.edits.graph import evaluating
from compress.errors import ConfigError
from compress.losses.base import UNLABELLED, Batch, Lesson, Loss, Outputs, Term
from compress.losses.layers import Pair, Where, key
from compress.training.features import Place, Watch, find, watching
from compress.training.targets import Targets
from compress.weighting import at

# How several teachers count: all alike, each by a weight of its own, or for each image by how sure it is of the truth.
Blend = Literal["mean", "confidence"] | tuple[float, ...]


@dataclass(frozen=True)
class Tutor:
    """A teacher while it teaches.

    `data` holds the same examples as this teacher sees them, where that is not as the student does; `augmented` is off
    where it sees them neither moved nor mirrored. `targets` are its outputs as kept on disk, so that it need not run.
    """

    module: nn.Module
    data: Data | None = None
    augmented: bool = True
    targets: Targets | None = None


class Sum(NamedTuple):
    """The sum of the losses for a batch, each loss's own value by name where it took part, and the student's logits."""

    total: Tensor
    terms: tuple[tuple[str, Tensor], ...]
    logits: Tensor


@dataclass
class Objective:
    """The losses of a training, their layers found, their parameters built on the device.

    Raises ConfigError where a layer does not exist, features do not fit or a teacher knows other classes; all that is
    wrong is said together. Parameters are drawn from torch's global random state.
    """

    module: nn.Module
    data: Data
    losses: Sequence[Loss]
    tutors: Sequence[Tutor]
    device: torch.device
    label_smoothing: float = 0.0
    blend: Blend = "mean"
    terms: list[Term] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layered = [loss for loss in self.losses if getattr(loss, "layers", ())]
        taught = any(loss.needs_teacher for loss in self.losses)
        self.tutors = self.tutors if taught else ()
        problems: list[str] = []
        with evaluating(self.module):
            self.watches = self._watches(problems)
            example = self._example()
        problems += self._other_classes(example)
        if not problems:  # a loss can say what it thinks of features only where they are there
            lesson = Lesson(example, self.data.samples, self.data.classes, torch.from_numpy(self.data.labels))
            problems += [f"losses.{loss.name}: {said}" for loss in self.losses if (said := _objection(loss, lesson))]
        if problems:
            raise ConfigError("\n  ".join(dict.fromkeys(problems)))
        self.terms = [loss.build(lesson).to(self.device) if hasattr(loss, "build") else loss for loss in self.losses]

    @property
    def modules(self) -> list[nn.Module]:
        """Those of the losses' terms that have parameters or memory."""
        return [term for term in self.terms if isinstance(term, nn.Module)]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the student, such as adapters."""
        return [p for module in self.modules for p in module.parameters() if p.requires_grad]

    @property
    def runs_teachers(self) -> bool:
        """Whether any teacher has to run: for its features, or because its outputs are not kept."""
        return any(watch.places for watch in self.watches[1:]) or any(tutor.targets is None for tutor in self.tutors)

    @contextmanager
    def open(self) -> Iterator["Objective"]:
        """Watch the layers that the losses look at."""
        with ExitStack() as stack:
            for module in self.modules:
                module.train()
            for watch in self.watches:
                stack.enter_context(watch.open())
            yield self

    def said(self, tutor: int, inputs: Tensor) -> Outputs:
        """What a teacher says of a batch, every process running it on its rows."""
        said = self.watches[1 + tutor].outputs(self.tutors[tutor].module(own(inputs)).float())
        return gathered(said, len(inputs))

    def __call__(
        self, run: Any, inputs: Tensor, taught: tuple[Outputs, ...], labels: Tensor, indices: Tensor, epoch: int
    ) -> Sum:
        """The sum for a batch; `run` is the student, or what runs it faster, every process doing so on its rows."""
        with synchronized(len(inputs)):
            student = self.watches[0].outputs(run(own(inputs)).float())
        student = gathered(student, len(inputs))
        shares = shares_of(self.blend, taught, labels)
        batch = Batch(student, taught, labels, indices, epoch, self.label_smoothing, inputs, shares)
        labelled = batch
        if self.data.unlabelled is not None:
            labelled = batch.labelled()
        terms, total = [], torch.zeros((), device=student.logits.device)
        for loss, term in zip(self.losses, self.terms, strict=True):
            weight, seen = at(loss.weight, epoch), labelled if loss.needs_labels else batch
            if weight and len(seen.student.logits):
                value = term(seen)
                terms.append((loss.name, value))
                total = total + weight * value
        return Sum(total, tuple(terms), student.logits)

    def _watches(self, problems: list[str]) -> list[Watch]:
        """One for the student and one for each teacher, with the layers that the losses look at, as far as found."""
        nets: list[tuple[str, nn.Module, Data]] = [("student", self.module, self.data)]
        nets += [(_role(i, self.tutors), tutor.module, tutor.data or self.data) for i, tutor in enumerate(self.tutors)]
        places: list[dict[str, list[Place]]] = [{} for _ in nets]
        for loss in self.layered:
            for where in loss.layers:  # type: ignore[attr-defined]
                for found, (role, module, data) in zip(places, nets, strict=True):
                    if role != "student" and not loss.needs_teacher:
                        continue
                    try:
                        found[key(where)] = find(module, _own(where, role), _blank(data, module))
                    except ConfigError as error:
                        problems.append(f"losses.{loss.name}.layers: {role}: {error}")
        problems += _unequal(places, nets)
        return [
            watching(module, found, _blank(data, module)) for found, (_, module, data) in zip(places, nets, strict=True)
        ]

    def _example(self) -> Batch:
        """What the nets say of two black images."""
        with ExitStack() as stack, torch.no_grad():
            for watch in self.watches:
                stack.enter_context(evaluating(watch.module))
                stack.enter_context(watch.open())
            outputs = [
                watch.outputs(watch.module(_blank(data or self.data, watch.module)).float())
                for watch, data in zip(self.watches, [None, *(t.data for t in self.tutors)], strict=True)
            ]
            inputs = _blank(self.data, self.module)
        labels = torch.zeros(2, dtype=torch.int64, device=inputs.device)
        return Batch(outputs[0], tuple(outputs[1:]), labels, torch.arange(2), 0, self.label_smoothing, inputs)

    def _other_classes(self, example: Batch) -> Iterator[str]:
        """Teachers that know other classes, and a blend for another number of teachers."""
        for i, teacher in enumerate(example.teachers):
            if teacher.logits.shape != example.student.logits.shape:
                yield (
                    f"{_role(i, self.tutors)}: it knows {teacher.logits.shape[1]} classes and the student "
                    f"{example.student.logits.shape[1]}; a teacher must have been trained on the student's classes"
                )
        if isinstance(self.blend, tuple) and self.tutors and len(self.blend) != len(self.tutors):
            weights = "1 weight" if len(self.blend) == 1 else f"{len(self.blend)} weights"
            teachers = "1 teacher" if len(self.tutors) == 1 else f"{len(self.tutors)} teachers"
            yield f"blend: {weights} for {teachers}; give one for each"


def gathered(outputs: Outputs, count: int) -> Outputs:
    """What a net says of a whole batch of `count`, given what it says of this process's rows."""
    features = {name: tuple(gather(each, count) for each in found) for name, found in outputs.features.items()}
    return Outputs(gather(outputs.logits, count), features)


def shares_of(blend: Blend, taught: Sequence[Outputs], labels: Tensor | None) -> Tensor | None:
    """How much each teacher counts for each image, (teachers, batch), the sum over teachers being 1; None for alike.

    By confidence: (1 - e^L_k / Σ_j e^L_j) / (K - 1) for K teachers with the cross-entropies L_k to the true label
    (Zhang et al. 2022, arXiv:2201.00007, eq. 3); where there is no label, to the teacher's own answers, their entropy.
    """
    if blend == "mean" or len(taught) < 2:
        return None
    if isinstance(blend, tuple):
        weights = torch.tensor(blend, device=taught[0].logits.device)
        return (weights / weights.sum())[:, None].expand(-1, len(taught[0].logits))
    logs = torch.stack([F.log_softmax(each.logits.detach(), dim=1) for each in taught])
    doubt = -(logs.exp() * logs).sum(2)
    if labels is not None:
        known = labels != UNLABELLED
        loss = -logs.gather(2, labels.clamp(min=0)[None, :, None].expand(len(taught), -1, 1)).squeeze(2)
        doubt = torch.where(known, loss, doubt)
    return (1 - doubt.softmax(0)) / (len(taught) - 1)


def _objection(loss: Loss, lesson: Lesson) -> str | None:
    found: str | None = loss.objection(lesson) if hasattr(loss, "objection") else None
    return found


def _own(where: Where, role: str) -> int | str:
    """A place as the student or a teacher is asked for it."""
    if isinstance(where, Pair):
        return where.student if role == "student" else where.teacher
    return where


def _role(i: int, tutors: Sequence[Tutor]) -> str:
    return "teacher" if len(tutors) == 1 else f"teacher {i + 1}"


def _unequal(places: Sequence[Mapping[str, Sequence[Place]]], nets: Sequence[Any]) -> Iterator[str]:
    """Patterns that mean more layers in one net than in another."""
    mine = places[0]
    for found, (role, _, _) in zip(places[1:], nets[1:], strict=True):
        for name, its in found.items():
            if name in mine and len(mine[name]) != len(its):
                yield (
                    f"layers {name!r}: {len(mine[name])} layers of the student and {len(its)} of the {role}; "
                    "give a pattern that means as many of both"
                )


def _blank(data: Data, module: nn.Module) -> Tensor:
    """Two black images as a net is fed, where the net is."""
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return data.inputs(torch.from_numpy(np.zeros((2, *data.image), np.uint8)).to(device))
