"""One student of the script for a big GPU, trained in whatever process."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from distillation_gpu_place import Epochs, Place, Result, fitted
from distillation_recipes import STUDENT, Recipe

from compress import net as nets
from compress.config import fingerprint
from compress.data.base import Data
from compress.recipe import Training
from compress.training.objective import Tutor
from compress.training.predicting import accuracy, predict

HELD_OUT = 10  # a tenth of the training images judges a search


@dataclass(frozen=True)
class Run:
    """One training of the student: `group` is what it is for, `held_out` judges it on training images that it never
    sees, for a share `part` of the epochs.
    """

    group: str
    recipe: Recipe
    seed: int
    held_out: bool = False
    part: float = 1.0

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.recipe.name}, seed {self.seed}" + (" (search)" if self.held_out else "")

    def training(self, place: Place) -> Training:
        """What is trained, with the epochs of this run."""
        training = self.recipe.training
        return place.trained(training.model_copy(update={"epochs": max(1, round(training.epochs * self.part))}))

    def kept(self, place: Place) -> Path:
        """Where its result is written; another recipe, teacher or version has another file."""
        says = [loss.model_dump(mode="json") | {"name": loss.name} for loss in self.recipe.losses]  # type: ignore[attr-defined]
        key = fingerprint(
            self.group, says, self.training(place).model_dump(mode="json"), self.seed, self.held_out, place.targets_key
        )
        return place.folder / "runs" / f"{self.group}-{key}.json"

    def found(self, place: Place) -> Result | None:
        """What an earlier run of it came to."""
        try:
            result: Result = json.loads(self.kept(place).read_text())
        except (OSError, ValueError):
            return None
        return result


def train(place: Place, run: Run) -> Result:
    """Train one student in this process and write down what it came to, or say why that failed."""
    try:
        if place.on.type == "cuda":
            torch.compiler.reset()  # what was compiled for another net counts against the limit for this one
        result = _trained(place, run)
    except Exception as error:  # noqa: BLE001  (one run that fails, for want of memory say, is no reason to stop all)
        said = str(error).strip().splitlines() or ["no word of why"]
        return {"name": run.name, "error": f"{type(error).__name__}: {said[0]}"}
    finally:
        if place.on.type == "cuda":
            torch.cuda.empty_cache()
    kept = run.kept(place)
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(f".{run.seed}.unfinished")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(kept)
    return result


def _trained(place: Place, run: Run) -> Result:
    data = held_out(place.images()) if run.held_out else place.images()
    tutors = []
    if any(loss.needs_teacher for loss in run.recipe.losses):
        teacher, targets = place.teacher(), place.targets()
        if teacher is None or targets is None:
            raise FileNotFoundError("the teacher or its logits are not there")
        tutors = [Tutor(teacher.module, targets=targets)]
    net, epochs, training = nets.build(place.spec(STUDENT), run.seed), Epochs(), run.training(place)
    seconds = fitted(net.module, data, training, tutors, place, run.seed, epochs, run.recipe.losses)
    steps = training.epochs * (data.samples // min(training.batch_size, data.samples))
    judged = data.val if run.held_out else data.test
    logits = predict(net.module, data, judged, place.on)
    return {
        "name": run.name, "group": run.group, "recipe": run.recipe.name, "seed": run.seed,
        "top1": accuracy(logits, judged.labels), "seconds": seconds, "epochs": training.epochs,
        "batch_size": training.batch_size, "step_ms": 1e3 * seconds / steps, "loss": epochs.loss,
        "epochs_s": epochs.seconds, "engine": epochs.engine,
    }  # fmt: skip


def held_out(data: Data) -> Data:
    """The last tenth of the training images kept apart for judging; the others keep their places."""
    first = len(data.train) - len(data.train) // HELD_OUT
    train, val = data.train.first(first), data.train.take(np.arange(first, len(data.train)))
    return replace(data, train=train, val=val, fingerprint=f"{data.fingerprint}-held-out")
