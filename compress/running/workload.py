"""How much work a run is: the nets that it trains, one after the other, each weighed by what its images cost here."""

import torch

from compress.errors import CompressError
from compress.named_nets import Model
from compress.net import Net, Spec, build, probe
from compress.pipeline import Pipeline
from compress.recipe import Training
from compress.running.plan import BACKWARD, forward_seconds
from compress.running.smoke import for_smoke
from compress.showing.remaining import Piece
from compress.stages import Stage
from compress.stages.base import losses_of, trainings_of

FEW = 4  # images timed together: a run should begin at once
CLASSES = 10  # how many there are is known once the images are read, and hardly matters here


def pieces(pipeline: Pipeline, *, smoke: bool = False, seeds: int = 1) -> tuple[Piece, ...]:
    """What a run makes, in its order. The unit of work is the time of a forward pass here, in seconds an image.

    Empty where a net cannot be built: the run says so itself, with more words.
    """
    if smoke:
        pipeline = for_smoke(pipeline, [])
    try:
        with torch.random.fork_rng(devices=[]):
            return _pieces(pipeline, seeds)
    except CompressError:
        return ()


def _pieces(pipeline: Pipeline, seeds: int) -> tuple[Piece, ...]:
    teachers, lesson = [], 0.0
    for name, teacher in zip(pipeline.teacher_names, pipeline.teacher, strict=True):
        data = teacher.view.of(pipeline.data) if teacher.view is not None else pipeline.data
        cost = forward_seconds(_net(teacher.model, data), FEW)
        lesson += cost
        teachers.append(Piece(name, _work(teacher.training, cost), teacher.model.architecture.name))
    cost, kind = forward_seconds(_net(pipeline.student, pipeline.data), FEW), "student"
    students = [Piece("baseline", _work(pipeline.baseline.training, cost), kind)]
    for stage in pipeline.stages:
        cost *= getattr(stage, "keep_macs", None) or 1.0
        students.append(Piece(stage.name, _stage_work(stage, cost, lesson), kind))
    return (*teachers, *students * seeds)


def _stage_work(stage: Stage, cost: float, lesson: float) -> float:
    taught = any(loss.needs_teacher for loss in losses_of(stage))
    epochs = sum(training.epochs for training in trainings_of(stage))
    return epochs * (cost * (1 + BACKWARD) + lesson * taught)


def _work(training: Training | None, cost: float) -> float:
    return 0.0 if training is None else training.epochs * cost * (1 + BACKWARD)


def _net(model: Model, data: object) -> Net:
    size, channels = getattr(data, "size"), getattr(data, "channels")  # noqa: B009 - of every data set, see `catalogue`
    net = build(Spec(architecture=model.architecture, classes=CLASSES, image=(channels, size, size)), 0)
    probe(net)
    net.module.eval()
    return net
