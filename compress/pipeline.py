"""The pipeline file, as types: reading it, overriding parts of it, writing it back fully resolved."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import AfterValidator, Field, ValidationError

from compress.config import MOST_PROBLEMS, Config, OneOf, described, fingerprint
from compress.console import plain
from compress.data import DATASETS, Dataset
from compress.data.unlabelled import Unlabelled
from compress.errors import ConfigError, ModelError
from compress.export.onnx import Export
from compress.export.targets import TARGETS
from compress.losses import CrossEntropy, Loss
from compress.measure.robustness import Robustness
from compress.named_nets import AsModel, Model, Teacher, Teachers
from compress.recipe import Training
from compress.stages import STAGES, Distill, Quantize, Stage
from compress.stages.base import losses_of, trainings_of
from compress.stages.distill import DEFAULT_LOSSES
from compress.stages.targeting import against_itself, against_target, for_target
from compress.weights.loading import is_file, published
from compress.yamlfile import apply_override, parse_yaml

# What Windows takes for a device, with any ending.
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}


def _one_line(name: str) -> str:
    if plain(name) != name or len(name.splitlines()) != 1:
        raise ValueError(f"should be one line of visible characters, not {name!r}")
    return name


class Baseline(Config):
    """The student trained alone. By default on the distill stage's schedule, for the epochs of all stages together."""

    training: Training | None = None


class Benchmark(Config):
    """How latency is measured: `threads` of ONNX Runtime, images a run, rounds in which all nets take turns."""

    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 30


class Budget(Config):
    """What the last net may cost. `max_accuracy_drop` is in points of top-1, all against the baseline."""

    max_accuracy_drop: float | None = None
    max_bytes: Annotated[int, Field(gt=0)] | None = None
    max_bytes_ratio: Annotated[float, Field(gt=0)] | None = None
    max_macs_ratio: Annotated[float, Field(gt=0)] | None = None
    max_latency_ratio: Annotated[float, Field(gt=0)] | None = None


class Pipeline(Config):
    """A whole pipeline: what a file says, with everything left out filled in."""

    newer: ClassVar[tuple[str, ...]] = ("unlabelled", "robustness")

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_line)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Annotated[Dataset, OneOf(DATASETS)]
    unlabelled: Unlabelled | None = None
    teacher: Annotated[tuple[Teacher, ...], Teachers()] = ()
    student: Annotated[Model, AsModel()]
    baseline: Baseline = Baseline()
    stages: tuple[Annotated[Stage, OneOf(STAGES)], ...]
    export: Export = Export()
    benchmark: Benchmark = Benchmark()
    robustness: Robustness | None = None
    budget: Budget = Budget()

    def as_yaml(self) -> str:
        """The file that means this pipeline, nothing left out."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110))

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """What the teachers are called: `teacher`, or `teacher`, `teacher-2` and so on."""
        return tuple("teacher" if i == 0 else f"teacher-{i + 1}" for i in range(len(self.teacher)))

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that change when anything in the pipeline does."""
        return fingerprint(self.model_dump(mode="json"))

    @property
    def slug(self) -> str:
        """The name as a folder name that every system takes; names that differ in other letters stay different."""
        name = unicodedata.normalize("NFC", self.name)
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        slug = slug if name.isascii() else f"{slug}-{fingerprint(name)[:6]}"
        return f"run-{slug}" if slug.split(".")[0].upper() in DEVICES else slug


def read(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file, apply `a.b=c` overrides, check it as a whole and fill in what is left out.

    Raises ConfigError that lists all problems at once.
    """
    raw = parse_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is not a pipeline: it should be a mapping with the keys data, student and stages")
    for override in overrides:
        apply_override(raw, override)
    raw.setdefault("name", path.stem)
    return parsed(raw, str(path))


def parsed(raw: Mapping[str, Any], source: str) -> Pipeline:
    """Check a mapping as `read` does a file; `source` stands in the error's first line."""
    try:
        pipeline = resolved(Pipeline.model_validate(raw))
    except ValidationError as error:
        problems = described(error)
    else:
        problems = list(islice(contradictions(pipeline), MOST_PROBLEMS))
        if not problems:
            return pipeline
    raise ConfigError("\n  ".join([f"{source} is not a pipeline:", *problems]))


def resolved(pipeline: Pipeline) -> Pipeline:
    """The pipeline with every default that depends on other parts filled in."""
    stages = tuple(
        stage.model_copy(update={"losses": default_losses(pipeline)}) if stage.losses is None else stage  # type: ignore[attr-defined]
        for stage in pipeline.stages
    )
    # Calibration alone trains nothing, whatever its default says.
    stages = tuple(
        s.model_copy(update={"training": s.training.model_copy(update={"epochs": 0})})
        if isinstance(s, Quantize) and s.method == "ptq"
        else s
        for s in stages
    )
    stages = tuple(for_target(stage, TARGETS[pipeline.export.target]) for stage in stages)
    pipeline = pipeline.model_copy(update={"stages": stages})
    update: dict[str, Any] = {}
    if pipeline.baseline.training is None and pipeline.student.weights is None:
        update["baseline"] = Baseline(training=baseline_training(pipeline))
    update["teacher"] = tuple(
        t.model_copy(update={"training": Training()}) if t.training is None and t.model.weights is None else t
        for t in (_with_own_preprocessing(teacher, pipeline.data) for teacher in pipeline.teacher)
    )
    update["data"] = _with_preprocessing(pipeline)
    return pipeline.model_copy(update=update)


def default_losses(pipeline: Pipeline) -> tuple[Loss, ...]:
    """What a stage learns from unless it says so: the distill stage's losses with a teacher, else the labels."""
    if not pipeline.teacher:
        return (CrossEntropy(),)
    distill = [stage for stage in pipeline.stages if isinstance(stage, Distill)]
    losses = distill[-1].all_losses if distill else DEFAULT_LOSSES
    # A cut or rounded net has other layers, and weights that change from epoch to epoch belong to their own training.
    plain = [loss for loss in losses if _plain(loss)]
    return tuple(plain) if any(loss.needs_teacher for loss in plain) else DEFAULT_LOSSES


def _plain(loss: Loss) -> bool:
    """Whether a loss looks at logits alone, has nothing of its own to train, and always weighs the same."""
    return not getattr(loss, "layers", ()) and not hasattr(loss, "build") and isinstance(loss.weight, int | float)


def baseline_training(pipeline: Pipeline) -> Training:
    """The distill stage's schedule, stretched over the epochs of all stages together."""
    epochs = sum(training.epochs for stage in pipeline.stages for training in trainings_of(stage))
    schedule = next((s.training for s in pipeline.stages if isinstance(s, Distill)), Training())
    stretch = epochs / schedule.epochs if schedule.epochs else 1
    milestones = tuple(max(1, round(m * stretch)) for m in schedule.milestones)
    return schedule.model_copy(update={"epochs": epochs, "milestones": milestones})


def _with_preprocessing(pipeline: Pipeline) -> Dataset:
    """The data set with the preprocessing that published weights bring along, where the file gives none."""
    models = [pipeline.student, *(teacher.model for teacher in pipeline.teacher if teacher.view is None)]
    try:
        found = next((model.preprocessing for model in models if model.preprocessing), None)
    except ModelError:
        return pipeline.data  # weights that do not exist are reported with the other contradictions
    if found is None:
        return pipeline.data
    data: Any = pipeline.data
    if getattr(data, "channels", 3) == 1:
        found = found.grey()
    brought = {key: value for key, value in vars(found).items() if key in type(data).model_fields}
    chosen: Dataset = data.model_copy(update={k: v for k, v in brought.items() if k not in data.model_fields_set})
    return chosen


def _with_own_preprocessing(teacher: Teacher, data: Dataset) -> Teacher:
    """A teacher with a view, into which its published weights bring their preprocessing where the file gives none."""
    view = teacher.view
    try:
        found = teacher.model.preprocessing
    except ModelError:
        return teacher  # reported with the other contradictions
    if view is None or found is None:
        return teacher
    if (view.channels or getattr(data, "channels", 3)) == 1:
        found = found.grey()
    brought = {key: value for key, value in vars(found).items() if getattr(view, key) is None}
    return teacher.model_copy(update={"view": view.model_copy(update=brought)})


def contradictions(pipeline: Pipeline) -> Iterator[str]:
    """What is well formed and cannot work, one line each."""
    if not pipeline.stages:
        yield "stages: should name at least one stage, such as `- distill`"
    quantized = False
    target = TARGETS[pipeline.export.target]
    for i, stage in enumerate(pipeline.stages):
        where = f"stages.{i}.{stage.name}"
        if stage.losses == ():
            yield f"{where}.losses: should name at least one loss, such as `- kd`"
        for loss in losses_of(stage):
            if loss.needs_teacher and not pipeline.teacher:
                yield f"{where}.losses: {loss.name} needs a teacher; add `teacher: {{model: resnet50}}`"
        if quantized:
            what = "quantized twice" if isinstance(stage, Quantize) else f"{stage.name} after quantize"
            yield f"{where}: {what} cannot work: rounding is fixed to the layers; put quantize last"
        for problem in (*against_target(stage, target, pipeline.export.opset), *against_itself(stage)):
            yield f"{where}{problem}"
        quantized = quantized or isinstance(stage, Quantize)
    if target.batch is not None and pipeline.benchmark.batch != target.batch:
        one = f"files for target {target.name} take {target.batch} image at a time"
        yield f"benchmark.batch: {one}, not {pipeline.benchmark.batch}"
    models = {"student": pipeline.student}
    for i, teacher in enumerate(pipeline.teacher):
        models["teacher.model" if len(pipeline.teacher) == 1 else f"teacher.{i}.model"] = teacher.model
    for role, model in models.items():
        if model.weights is not None and not is_file(model.weights):
            try:
                published(model.architecture.name, model.weights)
            except ModelError as error:
                yield f"{role}.{model.architecture.name}.weights: {error}"
