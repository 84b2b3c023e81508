"""One student of the accuracy part: a form of teaching, on one data set, with one seed."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from distillation_forms import ALONE, forms

from compress import net as nets
from compress.config import fingerprint
from compress.data import DATASETS
from compress.data.base import Data
from compress.models import MODELS
from compress.net import Net, Spec
from compress.recipe import Training
from compress.stages import Env, Train
from compress.training.predicting import accuracy, predict

CPU = torch.device("cpu")
Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One data set with its nets and recipes; `views` of each image are asked for where logits are kept, None all."""

    data: dict[str, Any]
    teacher: dict[str, Any]
    student: dict[str, Any]
    teachers_training: Training
    training: Training
    views: int | None = None


def settings(cifar: Path | None) -> dict[str, Setting]:
    """By data set; `cifar` is the subset's archive."""
    # A teacher that has seen digits moved and turned, and a student that has not: chosen on the validation split with
    # seeds 10 to 13, after settings in which both saw the same had nothing to teach (docs/LOG.md).
    small = Training(epochs=40, batch_size=32, lr=0.01, clip=5.0, augment="affine", ema=0.99)
    plain = Training(epochs=40, batch_size=32, lr=0.01, clip=5.0, augment="none")
    # Four stages each, which is what some losses look at unless they are told otherwise.
    cnn, thin = ({"plain_cnn": {"widths": widths}} for widths in ((24, 48, 96, 128), (6, 12, 24, 32)))
    found = {"digits": Setting({"digits": {"size": 16, "channels": 1}}, cnn, thin, small, plain)}
    if cifar is not None:
        wide, narrow = ({"plain_cnn": {"widths": widths}} for widths in ((48, 96, 192, 256), (16, 32, 64, 96)))
        long = Training(epochs=20, batch_size=64, lr=0.004, clip=5.0, augment="shift_flip")
        images = {"npz": {"path": str(cifar), "size": 32}}
        found["cifar100"] = Setting(images, wide, narrow, long, long.model_copy(update={"epochs": 12}), views=12)
    return found


@dataclass(frozen=True)
class Job:
    """One student: a form of teaching, on one data set, with one seed."""

    data: str
    setting: Setting
    form: str
    seed: int
    folder: Path
    epochs: int | None = None
    quick: bool = False

    @property
    def key(self) -> str:
        """Of all that the result comes from."""
        form, training = forms()[self.form], self.training
        says = form.with_training(training, self.setting.views).model_dump(mode="json")  # type: ignore[attr-defined]
        return fingerprint(self.known, form.needs, says, self.seed, torch.__version__)

    @property
    def known(self) -> tuple[Any, ...]:
        """What a teacher comes from."""
        setting, quick = self.setting, self.quick
        return (setting.data, setting.teacher, setting.student, self.teachers_training.model_dump(mode="json"), quick)

    @property
    def training(self) -> Training:
        """The student's, as the command line has it."""
        epochs = 1 if self.quick else self.epochs or self.setting.training.epochs
        return self.setting.training.model_copy(update={"epochs": epochs})

    @property
    def teachers_training(self) -> Training:
        """The teacher's."""
        training = self.setting.teachers_training
        return training.model_copy(update={"epochs": 1}) if self.quick else training

    def __call__(self) -> Result:
        """Train the student and try it on the test images."""
        torch.set_num_threads(1)
        form, env = forms()[self.form], self.env()
        stage = form.with_training(self.training, self.setting.views)
        began = time.perf_counter()
        student = nets.build(self.spec(self.setting.student, env.data), self.seed)
        if form.stage == "born_again":  # it goes on from the student that nobody taught
            student = forms()[ALONE].with_training(self.training, None)(student, env)
        teachers = [self.teacher(env.data, i) for i in range(form.needs)]
        keys = tuple(fingerprint(self.known, i) for i in range(form.needs))
        taught = stage(student, replace(env, teachers=tuple(teachers), teacher_keys=keys))
        seconds = time.perf_counter() - began
        return self.named | {"top1": top1(taught, env.data), "seconds": round(seconds, 1)}

    @property
    def named(self) -> Result:
        """What a result belongs to."""
        return {"data": self.data, "form": self.form, "seed": self.seed, "key": self.key}

    def env(self) -> Env:
        """The images, and where the teachers' logits are kept. The split is the same for all seeds."""
        ((kind, source),) = self.setting.data.items()
        data: Data = DATASETS[kind].model_validate(source)(0)  # type: ignore[attr-defined]
        data = data.smaller(64) if self.quick else data
        return Env(data=data, teachers=(), device=CPU, seed=self.seed, stage="distill", out=self.folder)

    def teacher(self, data: Data, i: int) -> Net:
        """The i-th teacher, trained once and kept."""
        kept = self.folder / f"teacher-{fingerprint(self.known, i)}"
        if (kept / "net.json").exists():
            return nets.load(kept)
        env = replace(self.env(), data=data, seed=1000 + i)
        net = Train(training=self.teachers_training)(nets.build(self.spec(self.setting.teacher, data), 1000 + i), env)
        unfinished = kept.with_suffix(".unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        nets.save(net, unfinished)
        unfinished.rename(kept)
        return net

    def spec(self, model: dict[str, Any], data: Data) -> Spec:
        """A net for the data."""
        ((name, fields),) = model.items()
        architecture = MODELS[name].model_validate(fields)  # type: ignore[attr-defined]
        return Spec(architecture=architecture, classes=data.classes, image=data.image)


def top1(net: Net, data: Data) -> float:
    """Per cent of the test images that a net gets right."""
    return accuracy(predict(net.module, data, data.test, CPU), data.test.labels)
