"""Everything that can fail before training does, tried with stand-ins: seconds now instead of hours later."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from compress.data.base import Data
from compress.errors import ConfigError
from compress.named_nets import Model
from compress.net import Net, Spec, build, probe
from compress.pipeline import Pipeline
from compress.running.ending import int8_in_the_end
from compress.running.proof import Prover
from compress.running.sources import Sources
from compress.stages import BornAgain, Distill, Ending, Env, Mutual, Stage, untrained
from compress.stages.born_again import taught_by
from compress.training.objective import Objective
from compress.weights.loading import load_weights

IMAGES = 32


def preflight(
    pipeline: Pipeline,
    sources: Sources,
    prover: Prover,
    endings: Sequence[Ending | None],
    *,
    exporting: bool = True,
) -> None:
    """Build every net untrained, put the student through all stages without training, export and judge the graphs.

    `endings` tell each stage what the file of a net would cost, if there is time to measure. Without `exporting` graphs
    are left to the run itself, where it takes seconds only. Raises what the real thing would: ModelError, ConfigError,
    ExportError or ResourceError.
    """
    few = sources.smaller(IMAGES)
    teachers = [ready(t.model, sources.of_teacher(i), pipeline.seed) for i, t in enumerate(pipeline.teacher)]
    net = ready(pipeline.student, few.data, pipeline.seed)
    if exporting:
        for i, (teacher, name) in enumerate(zip(teachers, pipeline.teacher_names, strict=True)):
            prover.seeing(sources.of_teacher(i)).graph(teacher, name)
        prover.graph(net, "baseline")
    for i, (stage, ending) in enumerate(zip(pipeline.stages, endings, strict=True)):
        env = Env(
            data=few.data,
            teachers=tuple(teachers),
            views=few.views,
            device=torch.device("cpu"),
            seed=pipeline.seed,
            stage=stage.name,
            ending=ending,
            int8=int8_in_the_end(pipeline),
        )
        try:
            rehearse_losses(stage, net, env)
        except ConfigError as error:
            raise ConfigError(f"stages.{i}.{stage.name}: {error}") from error
        require_room(stage, pipeline, sources.data, prover.out)
        net = untrained(stage)(net, env)
    if exporting:
        prover.graph(net, pipeline.stages[-1].name)


def require_room(stage: Stage, pipeline: Pipeline, data: Data, folder: Path) -> None:
    """See that the disk has room for the teachers' outputs that a stage keeps; raises ResourceError."""
    if isinstance(stage, Distill):
        teachers = sum(teacher.view is None or teacher.view.augmented for teacher in pipeline.teacher)
        for part in stage.parts:
            stage.soft_labels.require_room(part.losses, part.training, data, teachers, folder)


def rehearse_losses(stage: Stage, net: Net, env: Env) -> None:
    """See that a stage's losses find their layers and shapes in the net it is given; raises ConfigError.

    Stages that change the net before they train are seen to when they do.
    """
    if isinstance(stage, BornAgain):
        Objective(net.module, env.data, stage.losses, taught_by(net, env).tutors(), env.device)
    if isinstance(stage, Mutual):
        Objective(net.module, env.data, stage.losses, env.tutors(), env.device)
    if not isinstance(stage, Distill):
        return
    for part in stage.parts:
        Objective(net.module, env.data, part.losses, env.tutors(), env.device, blend=stage.blend)
        stage.soft_labels.kept(part.losses, part.training, env.data)


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
