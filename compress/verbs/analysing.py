"""`compress sensitivity`: where a pipeline's baseline can be cut, before any stage is decided upon."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compress.distributed.group import current
from compress.distributed.launch import pick_device
from compress.events import Listener, ignore
from compress.files import durable
from compress.net import Net
from compress.pipeline import Pipeline
from compress.pruning.sensitivity_picture import drawn
from compress.pruning.sensitivity_table import Row, Table, summary
from compress.running.making import Maker
from compress.running.runner import taken
from compress.running.sources import load
from compress.stages import Env, Sensitivity


@dataclass(frozen=True)
class Analysed:
    """The rows of an analysis, where they are, and what they come to in words."""

    rows: tuple[Row, ...]
    table: Path
    picture: Path
    sentences: tuple[str, ...]


def analyse(
    pipeline: Pipeline, out: Path, *, device: str = "auto", plugins: Sequence[Path] = (), emit: Listener = ignore
) -> Analysed:
    """Measure the sensitivity of a pipeline's baseline; the rows go to sensitivity.csv in the folder `out`.

    The baseline is trained there, or taken over where `compress run` or an earlier analysis finished it; rows that are
    there are taken over as well. Settings are those of the pipeline's first `sensitivity` stage, or that stage's
    defaults. Raises CompressError of every kind.
    """
    group = current()
    chosen = pick_device(device) if group.size == 1 else group.device
    with taken(out):
        images = group.in_turn(partial(load, pipeline))
        data = images.data
        for warning in data.warnings:
            emit({"event": "warning", "text": warning})
        maker = Maker(pipeline, images, out, chosen, emit, [None] * len(pipeline.stages), plugins)
        stage = next((each for each in pipeline.stages if isinstance(each, Sensitivity)), Sensitivity())
        env = Env(data, (), chosen, pipeline.seed, Sensitivity.name, emit)
        net, path = baseline(maker), out / "sensitivity.csv"
        picture = path.with_suffix(".svg")

        def measure() -> list[list[Any]]:
            found = stage.analysis(net, env).rows(Table(path, partial(_warn, emit)), stage.telling(env))
            durable.write(picture, drawn(found))
            return [[*astuple(row)] for row in found]

        rows = tuple(Row(*values) for values in group.first(measure))
        return Analysed(rows, path, picture, tuple(summary(rows)))


def baseline(maker: Maker) -> Net:
    """The pipeline's baseline, made or taken over."""
    make = partial(maker.alone, maker.pipeline.student, maker.pipeline.baseline.training)
    env = maker.env("baseline", maker.baseline_key)
    return maker.finished_or(maker.folders()["baseline"], make, maker.baseline_key, env).net


def _warn(emit: Listener, text: str) -> None:
    emit({"event": "warning", "text": text})
