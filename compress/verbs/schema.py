"""The JSON schema of a pipeline file, for editors: what can be named, with which keys, and what each means.

It is made from the same types that read a file. What only the whole file shows, such as a loss without its teacher, is
for `compress validate` to say.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from compress.config import NameIn, OneOf
from compress.models import MODELS
from compress.named_nets import Model, Teacher, Teachers
from compress.pipeline import Pipeline

DIALECT = "https://json-schema.org/draft/2020-12/schema"
WHERE = "#/$defs/"
OURS = "$named"  # stands for `$ref` until all is there: pydantic looks every reference up among definitions of its own
# What a file may leave out though the type has no default: it is filled in from the stage, or from the file's name.
FILLED_IN = {"Phase": {"losses", "training"}, "Pipeline": {"name"}}
TEXT: JsonSchemaValue = {"type": ["string", "null"]}
BESIDE: dict[str, JsonSchemaValue] = {"weights": TEXT, "keep_head": {"type": "boolean"}}


def schema() -> dict[str, Any]:
    """The schema of a pipeline file with all that the tables hold now, plugins' members included."""
    collected = _Collected()
    whole = collected.of(Pipeline)
    whole |= {"title": "A pipeline of compress", "$defs": dict(sorted(collected.defs.items()))}
    return {"$schema": DIALECT, **_referring(whole)}


def as_json() -> str:
    """The same as text: equal tables give equal bytes."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


class _Collected:
    """The schemas of all types that a file can name, one definition for each that differs."""

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self.names: dict[type, str] = {}
        self.same: dict[str, str] = {}

    def reference(self, member: type[Any]) -> JsonSchemaValue:
        """A reference to the schema of a type."""
        if member not in self.names:
            found = self.of(member)
            content = json.dumps({key: value for key, value in found.items() if key != "title"})
            # Torchvision's eighty networks take the same keys.
            name = self.same.setdefault(content, self._free(member.__name__))
            self.names[member] = name
            self.defs[name] = found
        return {OURS: self.names[member]}

    def of(self, member: type[Any]) -> JsonSchemaValue:
        """The schema of a type, what it refers to being among the definitions."""
        found = _generator(self)(by_alias=True, ref_template=WHERE + "{model}").generate(
            member.__pydantic_core_schema__, mode="validation"
        )
        for name, inner in found.pop("$defs", {}).items():
            self.defs[name] = inner
        return found

    def named(self, table: Mapping[str, Any]) -> JsonSchemaValue:
        """What `OneOf` takes: a name, or one `name: {key: value}`."""
        each = {name: {"anyOf": [self.reference(member), {"type": "null"}]} for name, member in table.items()}
        return _name_or(each)

    def model(self) -> JsonSchemaValue:
        """A model, `weights` and `keep_head` among its own keys."""
        each = {}
        for name, member in MODELS.items():
            own = self.defs[self.reference(member)[OURS]]
            with_weights = self.reference_to(f"{own['title']}WithWeights", {
                **own, "properties": {**own.get("properties", {}), **BESIDE},
            })  # fmt: skip
            each[name] = {"anyOf": [with_weights, {"type": "null"}]}
        return _name_or(each)

    def reference_to(self, title: str, content: JsonSchemaValue) -> JsonSchemaValue:
        """A reference to a schema that belongs to no type."""
        name = self.same.setdefault(json.dumps({**content, "title": ""}), self._free(title))
        self.defs[name] = content
        return {OURS: name}

    def _free(self, name: str) -> str:
        while name in self.defs:
            name += "_"
        return name


def _referring(part: Any) -> Any:
    """The same with real references."""
    if isinstance(part, list):
        return [_referring(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {"$ref": WHERE + part[OURS]} if OURS in part else {key: _referring(each) for key, each in part.items()}


def _name_or(each: Mapping[str, JsonSchemaValue]) -> JsonSchemaValue:
    inside = {"type": "object", "properties": dict(each), "additionalProperties": False}
    return {"anyOf": [{"enum": list(each)}, {**inside, "minProperties": 1, "maxProperties": 1}]}


def _generator(collected: _Collected) -> type[GenerateJsonSchema]:
    """Pydantic's generator, which is told what our own validators take."""

    class Generator(GenerateJsonSchema):
        def function_plain_schema(self, schema: Any) -> JsonSchemaValue:
            """What a value may be that one of our validators alone reads."""
            function = schema["function"]["function"]
            owner = getattr(function, "__self__", None)
            if isinstance(owner, OneOf):
                return collected.named(owner.table)
            if function == Model.parse:
                return collected.model()
            if function is Teachers.parse:
                one = {"anyOf": [{"enum": list(MODELS)}, collected.reference(Teacher)]}
                return {"anyOf": [*one["anyOf"], {"type": "array", "items": one}, {"type": "null"}]}
            return super().function_plain_schema(schema)

        def function_after_schema(self, schema: Any) -> JsonSchemaValue:
            owner = getattr(schema["function"]["function"], "__self__", None)
            if isinstance(owner, NameIn):
                return {"enum": list(owner.table)}
            return super().function_after_schema(schema)

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

        def str_schema(self, schema: Any) -> JsonSchemaValue:
            # Numbers become text where text is wanted, as in `class_names: [0, 1]`.
            return {**super().str_schema(schema), "type": ["string", "number"]}

        def default_schema(self, schema: Any) -> JsonSchemaValue:
            found = super().default_schema(schema)
            if isinstance(found.get("default"), dict | list):
                del found["default"]  # a whole object, not as a file would have it
            return found

        def model_schema(self, schema: Any) -> JsonSchemaValue:
            cls = schema["cls"]
            found = super().model_schema(schema)
            body = found if "properties" in found else {}
            body.get("properties", {}).update({key: BESIDE.get(key, {}) for key in getattr(cls, "also", ())})
            required = [key for key in body.get("required", ()) if key not in FILLED_IN.get(cls.__name__, ())]
            body.pop("required", None)
            return {**found, **({"required": required} if required else {})}

    return Generator
