"""The nets that a pipeline file names: the student's model and the teachers, with their weights and views."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from compress.config import Config, OneOf, as_named, no_such_key, relocated
from compress.data import Dataset
from compress.data.base import Channel, Deviation, one_for_all
from compress.models import MODELS, Architecture
from compress.recipe import Training
from compress.weights.loading import PublishedPreprocessing, preprocessing

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


class AsModel:
    """Annotate a field with it that holds a model: written and read as in a file."""

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
    mean: Annotated[tuple[Channel, ...] | None, BeforeValidator(one_for_all, Channel | tuple[Channel, ...] | None)] = (
        None
    )
    std: Annotated[
        tuple[Deviation, ...] | None, BeforeValidator(one_for_all, Deviation | tuple[Deviation, ...] | None)
    ] = None
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

    model: Annotated[Model, AsModel()]
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


class Teachers:
    """One teacher or a list of them in a file, always a tuple here."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(self.written)
        )

    @staticmethod
    def parse(raw: Any) -> tuple[Teacher, ...]:
        """What a file has, or nothing, as a tuple; raises ValidationError with all that is wrong."""
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
        """The inverse of `parse`."""
        written = [teacher.model_dump(mode="json") for teacher in teachers]
        return None if not written else written[0] if len(written) == 1 else written
