"""Pipeline files that must be refused, made from a seed: every key of all that can be named, given what it is not.

What a key takes is read from its annotation, so that new members of the tables are covered as they come.
"""

import io
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from compress import cli
from compress.config import Config, OneOf
from compress.data.unlabelled import Unlabelled
from compress.edits.ranges import RANGES
from compress.export.onnx import Export
from compress.measure.robustness import Robustness
from compress.named_nets import Teacher, View
from compress.pipeline import Baseline, Benchmark, Budget, Pipeline
from compress.recipe import Training
from compress.verbs.catalogue import TABLES

CANARY = "touched"  # what must never come to be in the current folder
Case = tuple[str, bytes]


class Raw(str):
    """Text that stands in a file as it is."""


VALID: dict[str, Any] = {
    "name": "valid",
    "data": {"synthetic": {"size": 16, "classes": 4, "samples": 16}},
    "teacher": {"model": "mobilenet_v1"},
    "student": {"mobilenet_v1": {"width": 0.25}},
    "stages": [{"distill": {"training": {"epochs": 1}}}, {"quantize": {"training": {"epochs": 1}}}],
}
CALLS = Raw(f'!!python/object/apply:os.system ["touch {CANARY}"]')
# Nothing in a pipeline may be one of these, whatever the key.
NEVER: dict[str, Any] = {
    "an unknown mapping": {"zzz": {"zzz": "zzz"}},
    "lists in lists": [[["zzz"]]],
    "an escape sequence": "\x1b]0;zzz\x07",
    "half a surrogate": Raw(r'"\uD800"'),
    "a NUL": "zzz\0",
    "a call": CALLS,
    "an object": Raw("!!python/object/new:pathlib.Path [zzz]"),
    "a module": Raw("!!python/module:os zzz"),
    "bytes": Raw("!!binary enp6"),
    "a set": Raw("!!set {zzz, yyy}"),
    "an own tag": Raw("!zzz 1"),
    "a list that holds itself": Raw("&loop [*loop]"),
    "a mapping that holds itself": Raw("&loop {zzz: *loop}"),
    "an alias of nothing": Raw("*nowhere"),
    "fifty levels": Raw("[" * 50 + "]" * 50),
    "an integer of 200 digits": Raw("9" * 200),
    "hexadecimal of 200 digits": Raw("0x" + "f" * 200),
    "a key twice": Raw("{zzz: 1, zzz: 2}"),
    "a merge of a number": Raw("{<<: 3}"),
    "a list as a key": Raw("{[1, 2]: 3}"),
}
NO_NUMBER = {
    "true": True, "on": Raw("on"), "a word": "zzz", "not a number": Raw(".nan"), "infinity": Raw(".inf"),
    "minus infinity": Raw("-.inf"), "a huge power": "1e999", "two numbers": "1 2", "a list": [1], "empty": "",
}  # fmt: skip
WRONG: dict[str, dict[str, Any]] = {
    "int": NO_NUMBER | {"a fraction": 1.5},
    "float": NO_NUMBER,
    "bool": {"seven": 7, "a word": "zzz", "a fraction": 1.5, "a list": [True], "empty": ""},
    "text": {"true": True, "a list": ["zzz"]},
    "choice": {"a word": "zzz", "a number": 3.25, "a list": ["zzz"], "empty": "", "true": True},
    "list": {"a number": 7, "a word": "zzz", "true": True},
    "fields": {"a number": 7, "a word": "zzz", "a list": [7], "true": True},
    "named": {"a number": 7, "a word": "zzz", "true": True, "two names": {"zzz": {}, "yyy": {}}},
}


def bad_pipelines(seed: int = 0, count: int = 1200) -> list[Case]:
    """At least `count` different files that exit code 2 is due for, the same for the same seed, with a name each."""
    rng = random.Random(seed)
    fixed = {content: name for name, content in (*broken(rng), *bombs())}
    by_key = {content: name for name, content in (*wrong_values(), *unknown_keys(), *missing_keys())}
    rest = [content for content in by_key if content not in fixed]
    chosen = rng.sample(rest, min(len(rest), max(count - len(fixed), 0)))
    return [(name, content) for content, name in fixed.items()] + [(by_key[content], content) for content in chosen]


def written(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def file(**changes: Any) -> bytes:
    """The valid pipeline with other values, a key a line; None takes a key out."""
    given = {key: value for key, value in (VALID | changes).items() if value is not None}
    return "".join(f"{key}: {written(value)}\n" for key, value in given.items()).encode()


@dataclass(frozen=True)
class Place:
    """Where the fields of a class stand in a file."""

    where: str
    kind: type[Config]

    def file(self, fields: Any) -> bytes:
        """The valid pipeline with `fields` in this place."""
        top, *inner = self.where.split("/")
        for part in reversed(inner):
            fields = [fields] if part == "[]" else {part: fields}
        return file(**{top: fields})


def places() -> Iterator[Place]:
    """Every place in a pipeline file that has fields."""
    outer = {"data": "data", "models": "student", "losses": "stages/[]/distill/losses/[]", "stages": "stages/[]"}
    for kind, where in outer.items():
        # Torchvision's models are many and take the same keys.
        members = {member: name for name, member in reversed(TABLES[kind].items())}
        for member, name in members.items():
            yield Place(f"{where}/{name}", member)
    for name, member in RANGES.items():
        yield Place(f"stages/[]/quantize/ranges/{name}", member)
    stages = {"prune": ("allocation",), "search": ("method", "space"), "distill": ("training", "phases/[]")}
    for stage, keys in stages.items():
        for key in keys:
            name = key.split("/")[0]
            field = TABLES["stages"][stage].model_fields[name]
            table = next((each.table for each in field.metadata if isinstance(each, OneOf)), None)
            if table is None:
                inner = next(each for each in (*get_args(field.annotation), field.annotation) if is_config(each))
                yield Place(f"stages/[]/{stage}/{key}", inner)
            else:
                yield from (Place(f"stages/[]/{stage}/{key}/{each}", member) for each, member in table.items())
    sections = {"baseline": Baseline, "baseline/training": Training, "export": Export, "benchmark": Benchmark}
    sections |= {"budget": Budget, "robustness": Robustness, "unlabelled": Unlabelled, "teacher": Teacher}
    sections |= {"teacher/[]": Teacher, "teacher/view": View, "teacher/training": Training}
    yield from (Place(where, kind) for where, kind in sections.items())


def is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def takes(annotation: Any, metadata: Iterable[Any] = ()) -> set[str]:
    """What a key takes, in the words of WRONG; `anything` where a function of its own decides."""
    for each in metadata:
        if isinstance(each, OneOf):
            return {"named"}
        if type(each).__name__ in ("BeforeValidator", "PlainValidator", "AsModel", "Teachers"):
            return {"anything"}
    origin = get_origin(annotation)
    if origin is Annotated:
        return takes(get_args(annotation)[0], get_args(annotation)[1:])
    if origin in (Union, UnionType):
        return set().union(*map(takes, get_args(annotation))) - {"nothing"}
    if origin is Literal:
        return {"choice"}
    if origin is tuple:
        return {"list"}
    known = {int: "int", float: "float", bool: "bool", str: "text", Path: "text", NoneType: "nothing"}
    return {known.get(annotation, "fields" if is_config(annotation) else "named")}


def wrong_for(annotation: Any, metadata: Iterable[Any]) -> dict[str, Any]:
    """Values that a key cannot have, by what they are."""
    found = takes(annotation, metadata)
    return NEVER | (WRONG.get(*found, {}) if len(found) == 1 else {})  # type: ignore[arg-type]


def wrong_values() -> Iterator[Case]:
    """Every key with values that it does not take."""
    for key, field in Pipeline.model_fields.items():
        for what, value in wrong_for(field.annotation, field.metadata).items():
            yield f"{key}: {what}", file(**{key: value})
    for place in places():
        for key, field in place.kind.model_fields.items():
            for what, value in wrong_for(field.annotation, field.metadata).items():
                yield f"{place.where}/{key}: {what}", place.file({key: value})


def unknown_keys() -> Iterator[Case]:
    """Keys that do not exist, and keys with a letter too many, a letter too few, in capitals."""
    for place in places():
        known = [*place.kind.model_fields, *place.kind.also]
        odd = {"zzz", "__class__", "name ", *(f"{key}s" for key in known), *(key[:-1] for key in known)}
        for key in sorted((odd | {key.upper() for key in known}) - {*known, ""}):
            if not place.where.startswith(("student/", "teacher")) or key not in ("weights", "keep_head"):
                yield f"{place.where}: the key {key!r}", place.file({key: 1})
    for key in ("zzz", "stage", "Data", "teachers", "1", "null", "true", "plugin", "plugins", "import", "!!str plugin"):
        yield f"the key {key}", file() + f"{key}: 1\n".encode()


def missing_keys() -> Iterator[Case]:
    """Files without a key that they need, in every combination, and with a key twice."""
    needed = ("data", "student", "stages")
    for chosen in range(1, 8):
        gone = [key for bit, key in enumerate(needed) if chosen >> bit & 1]
        yield f"no {', '.join(gone)}", file(**dict.fromkeys(gone))
        yield f"null for {', '.join(gone)}", file(**{key: Raw("null") for key in gone})
    yield "no teacher for a loss that needs one", file(teacher=None)
    yield "no stages", file(stages=[])
    for place in places():
        required = [key for key, field in place.kind.model_fields.items() if field.is_required()]
        if required and place.kind is not Teacher and "phases" not in place.where:  # a phase takes over the stage's
            yield f"{place.where}: without {required[0]}", place.file({})
    for key in VALID:
        yield f"{key} twice", file() + f"{key}: {written(VALID[key])}\n".encode()


def broken(rng: random.Random) -> Iterator[Case]:
    """What is no pipeline, no YAML or no text at all."""
    whole = ("{" + ", ".join(f"{key}: {written(value)}" for key, value in VALID.items()) + "}").encode()
    for _ in range(60):
        end = rng.randrange(1, len(whole))
        yield f"cut off after {end} bytes", whole[:end]
    for byte in (*range(9), *range(14, 32), 127, 0xC0, 0xC1, *range(0xF5, 0x100)):
        at = rng.randrange(len(whole))
        yield f"byte {byte:#04x} at {at}", whole[:at] + bytes([byte]) + whole[at:]
    for length in (1, 16, 300, 5000, 100_000):
        yield f"{length} random bytes", bytes([0x89]) + rng.randbytes(length)
    for codec in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "cp037"):
        yield f"in {codec}", file().decode().encode(codec)
    texts = {
        "empty": "", "a comment": "# data: digits", "a list": "- data\n- student", "a word": "zzz", "a number": "3",
        "null": "~", "two documents": file().decode() + "---\n" + file().decode(), "an end": "...\n", "dashes": "---",
        "a tab": "data:\n\tdigits: {}\n", "a quote": file().decode() + '"', "a brace": file().decode() + "}",
        "a page": "<!doctype html><script>alert(1)</script>", "JSON lines": '{"a": 1}\n{"b": 2}\n',
        "another version": "%YAML 3.0\n---\n" + file().decode(),
        "a directive": "%TAG ! tag:yaml.org,2002:python/\n---\n"
        f'{file().decode()}zzz: !object/apply:os.system ["touch {CANARY}"]\n',
        "a call at the top": str(CALLS), "a shell": f"$(touch {CANARY})",
        "a pickle": f"cos\nsystem\n(S'touch {CANARY}'\ntR.",
        "a template": "{{ 7 * 7 }}", "an environment variable": file(data=None).decode() + "data: ${DATA}\n",
        "an include": file(data=None).decode() + "data: !include /etc/passwd\n",
    }  # fmt: skip
    yield from ((name, text.encode()) for name, text in texts.items())


def bombs() -> Iterator[Case]:
    """Files that are small and mean much, or are large and mean nothing."""
    for name, inner, first in (("lists", "[{}]", "[zzz]"), ("mappings", "{{{}}}", "{zzz: 1}")):
        lines = [f"a0: &a0 {first}"]
        for level in range(1, 12):
            parts = [f"*a{level - 1}" if name == "lists" else f"k{i}: *a{level - 1}" for i in range(10)]
            lines.append(f"a{level}: &a{level} {inner.format(', '.join(parts))}")
        for key in ("zzz", *VALID, "budget"):
            content = file(**{key: None}).decode() + "\n".join(lines) + f"\n{key}: *a11\n"
            yield f"aliases of aliases, {name} in {key}", content.encode()
    merges = [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    yield "merges of merges", file() + "\n".join(["m0: &m0 {zzz: 1}", *merges]).encode()
    for opening in ("[", "{", "{zzz: ", "- ", "? ", "!!seq [", "&a [", '"', "'", "|\n ", "*", "%"):
        yield f"100,000 times {opening!r}", opening.encode() * (100_000 // len(opening))
    yield "steps", "".join(f"{' ' * i}a:\n" for i in range(600)).encode()
    long = {"numbers": "1", "words": "zzz", "lists": "[]", "stages": "distill", "mappings": "{zzz: 1}"}
    for what, item in long.items():
        yield f"30,000 {what}", file(stages=Raw("[" + ", ".join([item] * 30_000) + "]"))
    yield "30,000 keys", file() + b"".join(b"k%d: 1\n" % i for i in range(30_000))
    yield "200 stages", file(stages=["quantize"] * 200)
    yield "a number of 400,000 digits", file(seed=Raw("9" * 400_000))
    yield "a number of 400,000 sixtieths", file(seed=Raw("1" + ":59" * 133_000))
    yield "a name of 400,000 letters", file(name="z" * 400_000)
    yield "a model of 400,000 letters", file(student="z" * 400_000)
    yield "a key of 400,000 letters", file() + b"? " + b"z" * 400_000 + b"\n: 1\n"
    yield "five megabytes of comments", file() + b"# " + b"z" * 5_000_000
    yield "five megabytes of values", file() + b"zzz: [" + b"1," * 2_500_000 + b"]"
    yield "a megabyte of NUL", bytes(1_000_000)
    yield "400,000 blank lines and no key", b"\n" * 400_000


@dataclass(frozen=True)
class Answer:
    """What the command line said to a file: its name, exit code, text, and the seconds that it took."""

    name: str
    code: object
    said: str
    seconds: float


def answers(cases: Iterable[Case], path: Path) -> Iterator[Answer]:
    """What `compress validate` says to each file, in this process; the file is written to `path`."""
    before = sys.argv
    sys.argv = ["compress", "validate", str(path)]
    try:
        for name, content in cases:
            path.write_bytes(content)
            out, err = io.StringIO(), io.StringIO()
            began = time.perf_counter()
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    cli.main()
                except SystemExit as ended:
                    code = ended.code
            yield Answer(name, code, out.getvalue() + err.getvalue(), time.perf_counter() - began)
    finally:
        sys.argv = before
