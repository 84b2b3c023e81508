"""What `compress validate` tries beyond reading the file: data, weights, nets and stages, on a handful of images."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from compress.edits.graph import folded
from compress.errors import CompressError, DataError
from compress.pipeline import Pipeline
from compress.running.ending import int8_in_the_end
from compress.running.preflight import ready, rehearse_losses
from compress.running.smoke import CLASSES, few_images, for_smoke, made_up
from compress.running.sources import Sources
from compress.stages import Env, untrained

IMAGES = 2
# Where torch lets a mode take over: initialisations of its layers, and the filling of a tensor that the others use.
RANDOM = ("kaiming_uniform_", "uniform_", "normal_")


class Zeros(TorchFunctionMode):
    """Inside, weights start at zero: of a teacher only shapes are asked, and random numbers take a big net seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any call of torch."""
        if getattr(func, "__name__", "") in RANDOM and args:
            with torch.no_grad():
                return args[0].zero_()
        return func(*args, **kwargs or {})


def objections(pipeline: Pipeline, notes: list[str]) -> Iterator[CompressError]:
    """All that would stop a smoke run, as far as it shows without training and exporting; nothing is downloaded.

    `notes` gathers what is to be said of the data besides.
    """
    brief = for_smoke(pipeline, [])
    try:
        sources = handful(brief, notes)
    except DataError as error:
        yield error
        try:
            sources = made_up(brief, IMAGES)
        except DataError:
            return  # what the pipeline says of its data is what is wrong
    teachers = []
    for i, (name, teacher) in enumerate(zip(brief.teacher_names, brief.teacher, strict=True)):
        try:
            with Zeros():
                teachers.append(ready(teacher.model, sources.of_teacher(i), brief.seed))
            folded(teachers[-1].module)
        except CompressError as error:
            yield type(error)(f"{name}: {error}")
    heard = len(teachers) == len(brief.teacher)
    data = sources.data
    where = "student"
    try:
        net = ready(brief.student, data, brief.seed)
        folded(net.module)  # what cannot be traced cannot be exported
        for i, stage in enumerate(brief.stages):
            where = f"stages.{i}.{stage.name}"
            env = Env(
                data=data,
                teachers=tuple(teachers),
                views=sources.views,
                device=torch.device("cpu"),
                seed=brief.seed,
                stage=stage.name,
                int8=int8_in_the_end(brief),
            )
            if heard:
                rehearse_losses(stage, net, env)
            net = untrained(stage)(net, env)
    except CompressError as error:
        yield type(error)(f"{where}: {error}")


def handful(brief: Pipeline, notes: list[str]) -> Sources:
    """A few images, made up for data that may have to be downloaded: what is said of those is checked all the same."""
    if brief.data.name in CLASSES:
        return made_up(brief, IMAGES)
    found = few_images(brief, notes).smaller(IMAGES)
    notes += found.data.warnings
    return found
