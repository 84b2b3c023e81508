"""The same flow in seconds: a handful of images, one epoch a stage, nothing downloaded."""

from typing import Any

from compress.data import Data, MissingData
from compress.data.cifar import Cifar10, Cifar100
from compress.data.synthetic import Synthetic
from compress.named_nets import Model
from compress.pipeline import Budget, Pipeline
from compress.recipe import Training
from compress.running.sources import Sources, load, sources
from compress.stages import Distill, Stage
from compress.stages.base import rehearsed, retrained
from compress.weights.loading import is_file

IMAGES, IMAGES_LARGE = 32, 16
LARGE = 96  # pixels
BATCH = 16
KEPT = 2  # views of an image
CLASSES = {"cifar10": 10, "cifar100": 100}


def for_smoke(pipeline: Pipeline, warnings: list[str]) -> Pipeline:
    """The pipeline with at most one epoch a stage, small batches, no downloads, no budget; it tells `warnings`."""
    stages = tuple(few_views(retrained(rehearsed(stage), brief)) for stage in pipeline.stages)
    update: dict[str, Any] = {
        "stages": stages,
        "student": without_download(pipeline.student, warnings),
        "budget": Budget(),
        "benchmark": pipeline.benchmark.model_copy(update={"rounds": 3}),
    }
    if pipeline.baseline.training is not None:
        update["baseline"] = pipeline.baseline.model_copy(update={"training": brief(pipeline.baseline.training)})
    teachers = []
    for teacher in pipeline.teacher:
        training = teacher.training and brief(teacher.training)
        model = without_download(teacher.model, warnings)
        teachers.append(teacher.model_copy(update={"model": model, "training": training}))
    update["teacher"] = tuple(teachers)
    warnings.append("this is a smoke run: a handful of images, one epoch a stage; its figures mean nothing")
    return pipeline.model_copy(update=update)


def brief(training: Training) -> Training:
    """At most one epoch of small batches."""
    return training.model_copy(
        update={
            "epochs": min(training.epochs, 1),
            "batch_size": min(training.batch_size, BATCH),
            "milestones": training.milestones and (1,),
            "warmup": min(training.warmup, 0.5),
        }
    )


def few_views(stage: Stage) -> Stage:
    """The stage with at most two views of each image kept, where a teacher's outputs are."""
    if not isinstance(stage, Distill) or (stage.targets != "cached" and stage.views is None):
        return stage
    return stage.model_copy(update={"views": min(stage.views or KEPT, KEPT)})


def without_download(model: Model, warnings: list[str]) -> Model:
    """The model with random weights where its own would have to be downloaded."""
    if model.weights is None or is_file(model.weights):
        return model
    warnings.append(f"random weights stand in for {model.architecture.name}'s {model.weights}")
    return model.model_copy(update={"weights": None})


def few_images(pipeline: Pipeline, warnings: list[str]) -> Sources:
    """A handful of the pipeline's images, or made-up ones where they are missing."""
    given: Any = pipeline.data
    count = IMAGES if given.size < LARGE else IMAGES_LARGE
    try:
        return without_fetching(pipeline).smaller(count)
    except MissingData as error:
        warnings.append(f"made-up images stand in for the data, which are missing: {error}")
    return made_up(pipeline, count)


def without_fetching(pipeline: Pipeline) -> Sources:
    """The pipeline's data; raises MissingData where they would have to be downloaded first, or are not there."""
    given = pipeline.data
    if isinstance(given, Cifar10 | Cifar100) and not given.on_disk():
        raise MissingData(f"{given.name} is not in {given.path} yet; a full run fetches it")
    return load(pipeline)


def made_up(pipeline: Pipeline, samples: int) -> Sources:
    """Images to stand in for data that are not there: as many classes and pixels, at most `samples` of them a split.

    Where the number of classes is not known, 10. Raises DataError where mean, std or class names do not fit.
    """

    def images(dataset: Any) -> Data:
        classes = CLASSES.get(dataset.name) or len(getattr(dataset, "class_names", None) or ()) or 10
        taken_over = {key: getattr(dataset, key, None) for key in ("mean", "std", "class_names")}
        made = Synthetic(
            size=dataset.size, channels=dataset.channels, classes=classes, samples=max(classes, samples), **taken_over
        )
        return made(pipeline.seed).smaller(samples)

    return sources(pipeline.model_copy(update={"unlabelled": None}), images)
