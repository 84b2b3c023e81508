"""The pipeline file, as types: reading it, overriding parts of it, writing it back fully resolved."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from compress.config import Config, OneOf, as_named, described, fingerprint, no_such_key, relocated
from compress.data import DATASETS, Dataset
from compress.data.base import Channel, Deviation, one_for_all
from compress.data.unlabelled import Unlabelled
from compress.errors import ConfigError, ModelError
from compress.export.onnx import Export
from compress.export.targets import TARGETS
from compress.losses import CrossEntropy, Loss
from compress.measure.robustness import Robustness
from compress.models import MODELS, Architecture
from compress.recipe import Training
from compress.stages import STAGES, Distill, Quantize, Stage
from compress.stages.base import losses_of, trainings_of
from compress.stages.distill import DEFAULT_LOSSES
from compress.stages.targeting import against_itself, against_target, for_target
from compress.weights import PublishedPreprocessing, is_file, preprocessing, published
from compress.yamlfile import apply_override, parse_yaml

OUTSIDE = ("weights", "keep_head")


class Model(Config):
    """An architecture and where its weights come from: none (random), torchvision's by name, or a file.

    In a file the two keys stand among the architecture's own: `mobilenet_v2: {width: 1.0, weights: net.safetensors}`.
    """

    architecture: Annotated[Architecture, OneOf(MODELS)]
    weights: str | None = None
    keep_head: bool = False

    @classmethod
    def parse(cls, raw: object) -> "Model":
        """Turn `name` or `{name: {field: value}}` into a model; raises ValidationError with all that is wrong."""
        if isinstance(raw, Model):
            return raw
        outside: dict[str, Any] = {}
        problems: list[InitErrorDetails] = []
        if isinstance(raw, dict) and len(raw) == 1:
            ((name, fields),) = raw.items()
            if isinstance(fields, dict) and name in MODELS:
                known = [*MODELS[name].model_fields, *OUTSIDE]  # type: ignore[attr-defined]
                # Said here, because the architecture does not know of the two keys that it might suggest.
                problems = [no_such_key((name, str(key)), key, known) for key in fields if key not in known]
                outside = {key: fields[key] for key in OUTSIDE if key in fields}
                raw = {name: {key: value for key, value in fields.items() if key in known and key not in OUTSIDE}}
        try:
            model = cls.model_validate({"architecture": raw, **outside})
        except ValidationError as error:
            # `architecture` is our word for it and stands in no file.
            for problem in relocated(error, ()):
                where = problem["loc"]
                problems.append(problem | {"loc": where[1:] if where[0] == "architecture" else (name, *where)})
        if problems:
            raise ValidationError.from_exception_data("model", problems)
        return model

    def written(self) -> dict[str, Any]:
        """The inverse of `parse`."""
        ((name, fields),) = as_named(self.architecture).items()
        return {name: fields | {"weights": self.weights, "keep_head": self.keep_head}}

    @property
    def preprocessing(self) -> PublishedPreprocessing | None:
        """What published weights want images to go through."""
        return preprocessing(self.architecture.name, self.weights)


class _AsModel:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            Model.parse, serialization=core_schema.plain_serializer_function_ser_schema(Model.written)
        )


class View(Config):
    """How a teacher sees the images, where not as the student does: the keys of `data` that are another for it.

    Both see the same part of an image, moved and mirrored alike; with `augmented: false` the teacher sees it whole.
    """

    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    channels: Literal[1, 3] | None = None
    mean: Annotated[tuple[Channel, ...] | None, BeforeValidator(one_for_all)] = None
    std: Annotated[tuple[Deviation, ...] | None, BeforeValidator(one_for_all)] = None
    resize: Literal["squash", "crop", "letterbox"] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    augmented: bool = True

    def of(self, data: Dataset) -> Dataset:
        """The data set as this view has it; mean and std are its own unless given, where colours or sizes differ."""
        given = self.model_dump(exclude={"augmented"}, exclude_none=True)
        current: Any = data
        if current.channels != given.get("channels", current.channels):
            given = {"mean": None, "std": None} | given
        return type(current).model_validate(current.model_dump() | given)  # type: ignore[no-any-return]


class Teacher(Config):
    """The net that teaches: trained first, or loaded. Left untrained where it has weights and no `training`.

    A file may give the model's name alone, and `weights` and `keep_head` beside `model` or among the model's own keys.
    `view` is how it sees the images, where that is not as the student does.
    """

    also: ClassVar[tuple[str, ...]] = OUTSIDE
    newer: ClassVar[tuple[str, ...]] = ("view",)

    model: Annotated[Model, _AsModel()]
    training: Training | None = None
    view: View | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            return {"model": raw}
        if not isinstance(raw, dict):
            return raw
        outside = {key: raw[key] for key in OUTSIDE if key in raw}
        rest = {key: value for key, value in raw.items() if key not in OUTSIDE}
        model = rest.get("model")
        named = {model: None} if isinstance(model, str) else model
        if outside and isinstance(named, dict) and len(named) == 1:
            ((name, fields),) = named.items()
            if isinstance(fields, dict | None):
                twice = next((key for key in outside if key in (fields or {})), None)
                if twice:
                    raise ValueError(f"{twice} stands beside the model and among its keys; give it once")
                rest["model"] = {name: (fields or {}) | outside}
        return rest


class _Teachers:
    """One teacher or a list of them in a file, always a tuple here."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(self.written)
        )

    @staticmethod
    def parse(raw: Any) -> tuple[Teacher, ...]:
        if raw is None or isinstance(raw, tuple):
            return raw or ()
        if not isinstance(raw, list):
            return (Teacher.model_validate(raw),)
        found, problems = [], []
        for i, each in enumerate(raw):
            try:
                found.append(Teacher.model_validate(each))
            except ValidationError as error:
                problems += relocated(error, (str(i),))
        if problems:
            raise ValidationError.from_exception_data("teacher", problems)
        return tuple(found)

    @staticmethod
    def written(teachers: tuple[Teacher, ...]) -> Any:
        written = [teacher.model_dump(mode="json") for teacher in teachers]
        return None if not written else written[0] if len(written) == 1 else written


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

    name: Annotated[str, Field(min_length=1, max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Annotated[Dataset, OneOf(DATASETS)]
    unlabelled: Unlabelled | None = None
    teacher: Annotated[tuple[Teacher, ...], _Teachers()] = ()
    student: Annotated[Model, _AsModel()]
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
        """The name as a folder name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.") or "run"


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
        problems = list(contradictions(pipeline))
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
