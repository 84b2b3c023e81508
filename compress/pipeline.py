"""The pipeline file, as types: reading it, overriding parts of it, writing it back fully resolved."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from compress.config import Config, OneOf, as_named, described, fingerprint, near
from compress.data import DATASETS, Dataset
from compress.errors import CompressError, ConfigError, ModelError
from compress.export.onnx import Export
from compress.losses import CrossEntropy, Loss
from compress.models import MODELS, Architecture
from compress.stages import STAGES, Distill, Quantize, Stage
from compress.train import Training
from compress.weights import PublishedPreprocessing, is_file, preprocessing, published

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
        """Turn `name` or `{name: {field: value}}` into a model."""
        if isinstance(raw, Model):
            return raw
        inner: dict[str, Any] = {}
        if isinstance(raw, dict) and len(raw) == 1:
            ((name, fields),) = raw.items()
            if isinstance(fields, dict):
                known = MODELS[name].model_fields if name in MODELS else None  # type: ignore[attr-defined]
                wrong = [] if known is None else [key for key in fields if key not in known and key not in OUTSIDE]
                if wrong:
                    raise _errors(
                        name,
                        [((name, str(key)), f"no such key.{near(key, [*(known or ()), *OUTSIDE])}") for key in wrong],
                    )
                inner = {key: fields[key] for key in OUTSIDE if key in fields}
                raw = {name: {key: value for key, value in fields.items() if key not in OUTSIDE}}
        return cls.model_validate({"architecture": raw, **inner})

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
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(Model.written)
        )

    def parse(self, raw: object) -> Model:
        try:
            return Model.parse(raw)
        except ValidationError as error:
            # `architecture` is our word for it, not the file's.
            lines = [(tuple(p for p in e["loc"] if p != "architecture"), e["msg"]) for e in error.errors()]
            raise _errors("model", lines) from None


class Teacher(Config):
    """The net that teaches: trained first, or loaded. Left untrained where it has weights and no `training`."""

    model: Annotated[Model, _AsModel()]
    training: Training | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            return {"model": raw}
        if isinstance(raw, dict) and any(key in raw for key in OUTSIDE):
            # `weights` may stand beside `model`, where the file's reader looks for it first.
            model = raw.get("model")
            named = {model: {}} if isinstance(model, str) else model
            if isinstance(named, dict) and len(named) == 1:
                ((name, fields),) = named.items()
                outside = {key: raw[key] for key in OUTSIDE if key in raw}
                rest = {key: value for key, value in raw.items() if key not in OUTSIDE}
                return rest | {"model": {name: dict(fields or {}) | outside}}
        return raw


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

    name: Annotated[str, Field(min_length=1, max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Annotated[Dataset, OneOf(DATASETS)]
    teacher: Teacher | None = None
    student: Annotated[Model, _AsModel()]
    baseline: Baseline = Baseline()
    stages: tuple[Annotated[Stage, OneOf(STAGES)], ...]
    export: Export = Export()
    benchmark: Benchmark = Benchmark()
    budget: Budget = Budget()

    def as_yaml(self) -> str:
        """The file that means this pipeline, nothing left out."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110))

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


def parse_yaml(path: Path) -> Any:
    """The content of a YAML file, duplicate keys refused; raises ConfigError with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no pipeline file {path}; `compress init` writes one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a text file: {error}") from error
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key should be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one value in place, `stages.prune.keep_macs=0.4` or `stages.1.prune.keep_macs=0.4`; raises ConfigError.

    In a list, a part of the path is a position or the name of the one item that has it.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override}: should read path.to.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    node: Any = raw
    *parents, last = path.split(".")
    for part, following in zip(parents, path.split(".")[1:], strict=True):
        node = _child(node, part, following, override)
    if isinstance(node, list):
        position = _position(node, last, override)
        node[position] = {last: value} if not last.isdigit() else value
    else:
        node[last] = value


def _child(node: Any, part: str, following: str, override: str) -> Any:
    if isinstance(node, list):
        position = _position(node, part, override)
        if part.isdigit():
            inside = node[position]
            if isinstance(inside, str):
                inside = node[position] = {inside: {}}
            return inside
        if isinstance(node[position], str):
            node[position] = {part: {}}
        node = node[position]
    if node.get(part) is None:
        node[part] = {}
    if isinstance(node[part], str) and node[part] == following:
        node[part] = {following: {}}  # `student: mobilenet_v2` and student.mobilenet_v2.width=0.5
    if not isinstance(node[part], dict | list):
        raise ConfigError(f"--set {override}: {part} is {node[part]!r}, which has no {following}")
    return node[part]


def _position(items: list[Any], part: str, override: str) -> int:
    if part.isdigit():
        if int(part) >= len(items):
            raise ConfigError(f"--set {override}: there are {len(items)} items, counted from 0, and no {part}")
        return int(part)
    names = [item if isinstance(item, str) else next(iter(item), None) for item in items]
    if names.count(part) != 1:
        known = ", ".join(str(name) for name in names)
        raise ConfigError(f"--set {override}: {part!r} names {names.count(part)} of the items {known}; use a position")
    return names.index(part)


def resolved(pipeline: Pipeline) -> Pipeline:
    """The pipeline with every default that depends on other parts filled in."""
    stages = tuple(
        stage.model_copy(update={"losses": default_losses(pipeline)}) if stage.losses is None else stage  # type: ignore[attr-defined]
        for stage in pipeline.stages
    )
    update: dict[str, Any] = {"stages": stages}
    if pipeline.baseline.training is None and pipeline.student.weights is None:
        update["baseline"] = Baseline(training=baseline_training(pipeline))
    if pipeline.teacher and pipeline.teacher.training is None and pipeline.teacher.model.weights is None:
        update["teacher"] = pipeline.teacher.model_copy(update={"training": Training()})
    update["data"] = _with_preprocessing(pipeline)
    return pipeline.model_copy(update=update)


def default_losses(pipeline: Pipeline) -> tuple[Loss, ...]:
    """What a stage learns from unless it says so: the distill stage's losses with a teacher, else the labels."""
    if pipeline.teacher is None:
        return (CrossEntropy(),)
    distill = [stage for stage in pipeline.stages if isinstance(stage, Distill)]
    return distill[-1].losses if distill else Distill().losses


def baseline_training(pipeline: Pipeline) -> Training:
    """The distill stage's schedule, stretched over the epochs of all stages together."""
    epochs = sum(stage.training.epochs for stage in pipeline.stages)
    schedule = next((s.training for s in pipeline.stages if isinstance(s, Distill)), Training())
    stretch = epochs / schedule.epochs if schedule.epochs else 1
    milestones = tuple(max(1, round(m * stretch)) for m in schedule.milestones)
    return schedule.model_copy(update={"epochs": epochs, "milestones": milestones})


def _with_preprocessing(pipeline: Pipeline) -> Dataset:
    """The data set with the preprocessing that published weights bring along, where the file gives none."""
    models = [pipeline.student, *([pipeline.teacher.model] if pipeline.teacher else [])]
    try:
        found = next((model.preprocessing for model in models if model.preprocessing), None)
    except ModelError:
        return pipeline.data  # weights that do not exist are reported with the other contradictions
    if found is None:
        return pipeline.data
    given = pipeline.data.model_fields_set  # type: ignore[attr-defined]
    brought = {
        "mean": found.mean,
        "std": found.std,
        "resize": found.resize,
        "interpolation": found.interpolation,
    }
    return pipeline.data.model_copy(update={k: v for k, v in brought.items() if k not in given})  # type: ignore[attr-defined,no-any-return]


def contradictions(pipeline: Pipeline) -> list[str]:
    """What is well formed and cannot work, one line each."""
    problems = [] if pipeline.stages else ["stages: should name at least one stage, such as `- distill`"]
    for i, stage in enumerate(pipeline.stages):
        if stage.losses == ():
            problems.append(f"stages.{i}.{stage.name}.losses: should name at least one loss, such as `- kd`")
        where = f"stages.{i}.{stage.name}"
        for loss in stage.losses or ():
            if loss.needs_teacher and pipeline.teacher is None:
                problems.append(f"{where}.losses: {loss.name} needs a teacher; add `teacher: {{model: resnet50}}`")
        earlier = pipeline.stages[:i]
        if any(isinstance(s, Quantize) for s in earlier):
            what = "quantized twice" if isinstance(stage, Quantize) else f"{stage.name} after quantize"
            problems.append(f"{where}: {what} cannot work: rounding is fixed to the layers; put quantize last")
    models = {"student": pipeline.student} | ({"teacher": pipeline.teacher.model} if pipeline.teacher else {})
    for role, model in models.items():
        if model.weights is not None and not is_file(model.weights):
            try:
                published(model.architecture.name, model.weights)
            except CompressError as error:
                problems.append(f"{role}.weights: {error}")
    return problems


def _errors(title: str, lines: Sequence[tuple[tuple[str | int, ...], str]]) -> ValidationError:
    details = [
        InitErrorDetails(type=PydanticCustomError("config", message), loc=where, input=None)  # type: ignore[arg-type]
        for where, message in lines
    ]
    return ValidationError.from_exception_data(title, details)
