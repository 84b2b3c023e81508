"""What `compress validate` tries beyond reading the file: data, weights, nets and stages, on a handful of images."""

from collections.abc import Iterator

import torch

from compress.edits.graph import folded
from compress.errors import CompressError, DataError
from compress.pipeline import Pipeline
from compress.preflight import ready, rehearse_losses
from compress.smoke import CLASSES, few_images, for_smoke, made_up
from compress.stages import Env, untrained

IMAGES = 2


def objections(pipeline: Pipeline) -> Iterator[CompressError]:
    """All that would stop a smoke run, as far as it shows without training and exporting; nothing is downloaded."""
    brief = for_smoke(pipeline, [])
    try:
        # These may have to be downloaded; what the pipeline says of them is checked on made-up ones.
        sources = made_up(brief, IMAGES) if brief.data.name in CLASSES else few_images(brief, []).smaller(IMAGES)
    except DataError as error:
        yield error
        try:
            sources = made_up(brief, IMAGES)
        except DataError:
            return  # what the pipeline says of its data is what is wrong
    teachers = []
    for i, (name, teacher) in enumerate(zip(brief.teacher_names, brief.teacher, strict=True)):
        try:
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
            )
            if heard:
                rehearse_losses(stage, net, env)
            net = untrained(stage)(net, env)
    except CompressError as error:
        yield type(error)(f"{where}: {error}")
