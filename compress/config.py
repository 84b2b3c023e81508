"""The one idea of this package: whatever a YAML file names is a frozen object you can call.

`kd: {temperature: 4}` in a file becomes `KD(temperature=4.0)`, and that object is the loss.
`Config` is the base of everything that comes from YAML or JSON; `OneOf(TABLE)` looks a name up in a table.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from compress.spelling import nearest

MOST_PROBLEMS = 100  # that are told one by one
MOST_NAMED = 100  # stages, losses and the like in one list
MOST_INT = 2**53  # what JSON's readers agree on
LONGEST = 80  # characters of what a user gave, in a sentence about it


def _bound(schema: Any) -> None:
    """Make a schema stricter in place: `true` is no number, integers and lists of things by name have an end.

    Pydantic takes `true` for 1, and YAML takes `on` and `yes` for `true`.
    """
    if isinstance(schema, list):
        for each in schema:
            _bound(each)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "function-before" and schema["function"]["function"] is _no_bool:
        return  # of another Config, done before
    if kind == "int" and not {"le", "lt"} & schema.keys():
        schema["le"] = MOST_INT
    if kind in ("int", "float") or (kind == "literal" and any(type(each) is int for each in schema["expected"])):
        plain = dict(schema)
        schema.clear()
        schema.update(core_schema.no_info_before_validator_function(_no_bool, plain))
        return
    if kind == "tuple" and "variadic_item_index" in schema and _by_name(schema["items_schema"]):
        schema.setdefault("max_length", MOST_NAMED)
    for key, each in schema.items():
        if key not in ("default", "metadata"):
            _bound(each)


def _by_name(items: Any) -> bool:
    return any(each["type"] == "function-plain" for each in items)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("config", f"should be a number, not {str(value).lower()}")
    return value


class Config(BaseModel):
    """Frozen, typed and strict about unknown keys, for which it suggests the nearest known one.

    A YAML file picks one by its class's `name`, as `name` or `{name: {field: value}}`. `also` are keys that a file may
    give besides the fields; a class that has some turns them into fields in a validator of its own. `newer` are fields
    younger than published results: seeds follow from what is written down, so they stay out of it while they are at
    their defaults.
    """

    # Numbers become text where text is wanted, because `class_names: [0, 1]` is how anyone would write it. What checks
    # a class is built when it is first used, because a command uses few of them.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        defer_build=True,
    )
    also: ClassVar[tuple[str, ...]] = ()
    newer: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _bound(schema)
        return schema

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        unused = {key for key in self.newer if getattr(self, key) == type(self).model_fields[key].default}
        return {key: value for key, value in written.items() if key not in unused}

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_keys(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(raw, Mapping):
            return handler(raw)
        known = [*cls.model_fields, *cls.also]
        problems = [no_such_key((cut(str(key)),), key, known) for key in raw if key not in known]
        if not problems:
            return handler(raw)
        try:
            handler({key: value for key, value in raw.items() if key in known})
        except ValidationError as error:
            problems += relocated(error, ())
        raise ValidationError.from_exception_data(cls.__name__, problems)


class OneOf:
    """Annotate a field with the table its name is looked up in: `Annotated[Loss, OneOf(LOSSES)]`."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table

    def parse(self, raw: object) -> Any:
        """Turn `name` or `{name: {field: value}}` into the object that the table has under that name."""
        fields: Any
        if isinstance(raw, Config):
            return raw
        match raw:
            case str():
                name, fields = raw, {}
            case dict() if len(raw) == 1:
                ((name, fields),) = raw.items()
            case _:
                said = "should be a name, or one `name: {key: value}`"
                raise PydanticCustomError("one_of", f"{said}{self.misplaced(raw)}")
        if name not in self.table:
            raise PydanticCustomError("one_of", f"no {cut(repr(name))} here.{near(name, self.table)}")
        try:
            return self.table[name].model_validate({} if fields is None else fields)
        except ValidationError as error:
            raise ValidationError.from_exception_data(name, relocated(error, (name,))) from None

    def misplaced(self, raw: object) -> str:
        """A hint where keys of a member stand beside its name instead of inside it, as one level too far out."""
        names = [key for key in raw if key in self.table] if isinstance(raw, dict) else []
        if not isinstance(raw, dict) or len(names) != 1:
            return ""
        (name,) = names
        beside = [key for key in raw if key in getattr(self.table[name], "model_fields", {})]
        return f"; did you mean `{name}: {{{beside[0]}: …}}`?" if beside else ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(as_named)
        )


class NameIn:
    """Annotate a text field with the table that it is a name of: `Annotated[str, NameIn(IMPORTANCES)]`."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table

    def check(self, name: str) -> str:
        """The name itself."""
        if name not in self.table:
            raise PydanticCustomError("config", f"no {cut(repr(name))} here.{near(name, self.table)}")
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def as_named(value: Any) -> dict[str, Any]:
    """The inverse of `OneOf.parse`: `{name: {field: value}}`."""
    return {value.name: value.model_dump(mode="json")}


def near(name: object, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest of the known names, or the names themselves if none is near."""
    return _near(cut(str(name)), tuple(sorted(known)))


@lru_cache(maxsize=1024)
def _near(name: str, names: tuple[str, ...]) -> str:
    close = nearest(name, names)
    if close:
        return close
    if not names:
        return " There are none."
    return f" Known: {', '.join(names)}" if len(names) <= 30 else " `compress ls` lists what there is."


def relocated(error: ValidationError, prefix: tuple[str, ...]) -> list[InitErrorDetails]:
    """The same problems, seen from `prefix`, ready for `ValidationError.from_exception_data`."""
    return [_problem((*prefix, *e["loc"]), _plain(e["msg"], e["input"], e["type"]), e["input"]) for e in error.errors()]


def described(error: ValidationError) -> list[str]:
    """One line for each problem: `where.it.is: what is wrong`; of very many the first ones, and how many more."""
    found = error.errors()
    lines = [
        f"{'.'.join(cut(str(part)) for part in e['loc']) or 'the file'}: {_plain(e['msg'], e['input'], e['type'])}"
        for e in found[:MOST_PROBLEMS]
    ]
    return lines if len(found) <= MOST_PROBLEMS else [*lines, f"and {len(found) - MOST_PROBLEMS:,} more"]


def cut(text: str) -> str:
    """What a user gave, short enough to be part of a sentence."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def fingerprint(*parts: object) -> str:
    """Twelve hexadecimal digits that change when any of the JSON-like parts does."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def no_such_key(where: tuple[str | int, ...], key: object, known: Iterable[str]) -> InitErrorDetails:
    """The problem of an unknown key, with the nearest known one."""
    return _problem(where, f"no such key.{near(key, known)}", key)


def _problem(where: tuple[str | int, ...], message: str, value: object) -> InitErrorDetails:
    # A template without context is shown as it is, so braces in a user's name are harmless.
    return InitErrorDetails(type=PydanticCustomError("config", message), loc=where, input=value)


def _plain(message: str, value: object, kind: str) -> str:
    """Pydantic's sentence in ours: `Input should be greater than 0` becomes `should be greater than 0, not -4`."""
    if kind in ("config", "one_of"):
        return message
    if kind == "missing":
        return "is missing"
    message = re.sub(r"^\w+ should ", "should ", message.removeprefix("Value error, ")).replace(" after validation", "")
    shown = isinstance(value, str | int | float | bool) or value is None
    hint = ""
    if kind == "literal_error" and isinstance(value, str):
        close = nearest(cut(value), re.findall("'([^']*)'", message))
        hint = close and f".{close}"
    return f"{message}, not {cut(repr(value))}{hint}" if shown and kind != "value_error" else message
