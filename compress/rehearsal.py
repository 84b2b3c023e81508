"""What `compress validate` tries beyond reading the file: data, weights, nets and stages, on a handful of images."""

from collections.abc import Iterator

import torch

from compress.errors import CompressError, DataError
from compress.pipeline import Pipeline
from compress.preflight import ready, untrained
from compress.smoke import CLASSES, few_images, for_smoke, made_up
from compress.stages import Env

IMAGES = 2


def objections(pipeline: Pipeline) -> Iterator[CompressError]:
    """All that would stop a smoke run, as far as it shows without training and exporting; nothing is downloaded."""
    brief = for_smoke(pipeline, [])
    try:
        # These would be downloaded, and nothing in them depends on the pipeline.
        data = made_up(brief, IMAGES) if brief.data.name in CLASSES else few_images(brief, []).smaller(IMAGES)
    except DataError as error:
        yield error
        data = made_up(brief, IMAGES)
    if brief.teacher is not None:
        try:
            ready(brief.teacher.model, data, brief.seed)
        except CompressError as error:
            yield type(error)(f"teacher: {error}")
    where = "student"
    try:
        net = ready(brief.student, data, brief.seed)
        for i, stage in enumerate(brief.stages):
            where = f"stages.{i}.{stage.name}"
            env = Env(data=data, teachers=(), device=torch.device("cpu"), seed=brief.seed, stage=stage.name)
            net = untrained(stage)(net, env)
    except CompressError as error:
        yield type(error)(f"{where}: {error}")
