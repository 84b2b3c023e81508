"""Everything that can fail before training does, tried with stand-ins: seconds now instead of hours later."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from compress.data.base import Data
from compress.net import Net, Spec, build, probe
from compress.pipeline import Model, Pipeline
from compress.proof import Prover
from compress.stages import Ending, Env, untrained
from compress.weights import load_weights

IMAGES = 32


def preflight(pipeline: Pipeline, data: Data, prover: Prover, endings: Sequence[Ending | None]) -> None:
    """Build every net untrained, put the student through all stages without training, export and judge the graphs.

    `endings` tell each stage what the file of a net would cost, if there is time to measure. Raises what the real thing
    would: ModelError, ConfigError or ExportError.
    """
    few = data.smaller(IMAGES)
    teacher = ready(pipeline.teacher.model, data, pipeline.seed) if pipeline.teacher else None
    net = ready(pipeline.student, data, pipeline.seed)
    if teacher is not None:
        prover.graph(teacher, "teacher")
    prover.graph(net, "baseline")
    for stage, ending in zip(pipeline.stages, endings, strict=True):
        cpu = torch.device("cpu")
        env = Env(data=few, teachers=(), device=cpu, seed=pipeline.seed, stage=stage.name, ending=ending)
        net = untrained(stage)(net, env)
    prover.graph(net, pipeline.stages[-1].name)


def ready(model: Model, data: Data, seed: int) -> Net:
    """A model's net, built and tried, its weights loaded if it has any; raises ModelError."""
    net = stand_in(model, data, seed)
    if model.weights is not None:
        load_weights(net.module, model.architecture.name, model.weights, keep_head=model.keep_head)
    return net


def stand_in(model: Model, data: Data, seed: int) -> Net:
    """The untrained net of a model, tried on images of zeros."""
    net = build(spec_of(model, data), seed)
    probe(net)
    return replace(net, module=net.module.eval())


def spec_of(model: Model, data: Data) -> Spec:
    """The description of a model's net for these data."""
    return Spec(architecture=model.architecture, classes=data.classes, image=data.image)
