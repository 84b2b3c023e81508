"""Where the script for a big GPU keeps everything, and how it trains: by the program's own loop."""

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from distillation_data import everything
from distillation_recipes import ALONE, STUDENT, TEACHER, TEACHERS
from torch import nn

from compress import net as nets
from compress.config import fingerprint
from compress.data import DATASETS
from compress.data.base import Data
from compress.errors import ArtifactError
from compress.events import Event
from compress.models import MODELS
from compress.net import Net, Spec
from compress.recipe import Training
from compress.training.objective import Tutor
from compress.training.predicting import accuracy, predict
from compress.training.targets import Targets, find
from compress.training.train import Progress, fit

TRIAL: dict[str, Any] = {"epochs": 1, "batch_size": 16, "warmup": 0}
TRIAL_WIDTH = 0.1
Result = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where the images are, where everything is kept, and what computes. In a `trial` images and nets are tiny."""

    data: Path | None
    folder: Path
    device: str
    trial: bool = False

    @property
    def on(self) -> torch.device:
        """What computes."""
        return torch.device(self.device)

    def trained(self, training: Training) -> Training:
        """A recipe as it is, or in a trial next to nothing of it."""
        return training.model_copy(update=TRIAL) if self.trial else training

    def images(self) -> Data:
        """Read once in each process."""
        return _images(self)

    def spec(self, name: str) -> Spec:
        """A net for the images; in a trial always the student's, and thin."""
        model, fields = (STUDENT, {"width": TRIAL_WIDTH}) if self.trial else (name, {})
        data = self.images()
        architecture = MODELS[model].model_validate(fields)  # type: ignore[attr-defined]
        return Spec(architecture=architecture, classes=data.classes, image=data.image)

    @property
    def teacher_key(self) -> str:
        """Of all that the teacher comes from."""
        training, data = self.trained(TEACHERS).model_dump(mode="json"), self.images()
        return fingerprint(self.spec(TEACHER).key, training, data.fingerprint, torch.__version__)

    def teacher(self) -> Net | None:
        """The trained teacher, if there is one."""
        kept = self.folder / f"teacher-{self.teacher_key}"
        try:
            return nets.load(kept) if kept.exists() else None
        except ArtifactError:
            return None

    @property
    def targets_key(self) -> str:
        """Of the teacher's logits on all views."""
        return fingerprint("targets", self.teacher_key, self.device)

    def targets(self) -> Targets | None:
        """The teacher's logits on all views, if they are there and whole; on the GPU where they fit."""
        return _targets(self)


@lru_cache(maxsize=1)
def _images(place: Place) -> Data:
    if place.data is not None:
        return everything(place.data)
    made = DATASETS["synthetic"].model_validate({"size": 32, "classes": 10, "samples": 64})(0)  # type: ignore[attr-defined]
    return replace(made, mirror=True)


@lru_cache(maxsize=1)
def _targets(place: Place) -> Targets | None:
    found, _ = find(place.folder, place.targets_key)
    return None if found is None else found.to(place.on)


def fitted(
    module: nn.Module, data: Data, training: Training, tutors: list[Tutor], place: Place, seed: int, epochs: "Epochs",
    losses: Any = None,
) -> float:  # fmt: skip
    """Train by the program's own loop; the seconds of all of it, choosing and compiling the step included."""
    wait(place.on)
    began = time.perf_counter()
    fit(
        module, data, training, losses or ALONE, tutors=tutors, device=place.on, seed=seed,
        progress=Progress("benchmark", epochs),
    )  # fmt: skip
    wait(place.on)
    return time.perf_counter() - began


class Epochs:
    """Listens to a training: its last loss, how it was run, the epochs' seconds; tells `say` of each epoch."""

    def __init__(self, say: Any = None) -> None:
        self.say, self.loss, self.engine, self.seconds = say, float("nan"), "plain, nothing else tried", 0.0

    def __call__(self, event: Event) -> None:
        if event["event"] == "engine":
            self.engine = event["text"]
        if event["event"] == "epoch":
            self.loss = event["loss"]
            self.seconds += event["seconds"]
            if self.say is not None:
                self.say(event)


def top1(module: nn.Module, data: Data, device: torch.device) -> float:
    """Per cent of the test images that a net gets right."""
    return accuracy(predict(module, data, data.test, device), data.test.labels)


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
