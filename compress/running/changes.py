"""What is different from the run before in the same folder, and what that means for the stages kept there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compress import __version__
from compress.config import fingerprint
from compress.environment import version
from compress.events import Event
from compress.files import durable
from compress.files.run_folder import EVENTS, PIPELINE
from compress.pipeline import Pipeline
from compress.running.making import Maker
from compress.yamlfile import parse_yaml

MOST_FIELDS = 10
MOST_CHARACTERS = 60  # of a value
ABSENT = "nothing"


@dataclass(frozen=True)
class Plan:
    """What a run is going to do: the folder of each net by its label, and what besides the pipeline they follow from.

    `circumstances` are named as a user would: data, versions, the code of plugins.
    """

    stages: Mapping[str, str]
    circumstances: Mapping[str, str]

    def event(self) -> Event:
        """The event by which the next run knows of this one."""
        return {"event": "plan", "stages": dict(self.stages), "circumstances": dict(self.circumstances)}


def plan(makers: Sequence[Maker]) -> Plan:
    """The plan of a run; all makers share all but chance."""
    folders = [(path.name.rpartition("-")[0], path.name) for maker in makers for path in maker.folders().values()]
    first = makers[0]
    packages = ("torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime")
    circumstances = {
        "the data": first.data.fingerprint,
        "the code of plugins": fingerprint([file.read_text() for file in first.plugins]),
        "the device": first.device.type,
        "compress": __version__,
        **{name: str(version(name)) for name in packages},
    }
    return Plan(dict(folders), circumstances)


def changes(out: Path, pipeline: Pipeline, now: Plan) -> Event | None:
    """What differs from the last run in the folder, with the stages that run again and those that are taken over.

    None where nothing differs, or where there is nothing to compare with. Raises ConfigError where the folder's
    pipeline.yaml cannot be read.
    """
    path = out / PIPELINE
    if not path.exists():
        return None
    fields = [*differences(parse_yaml(path), yaml.safe_load(pipeline.as_yaml()))]
    before = last_plan(out / EVENTS)
    if before is not None:
        fields += _circumstances(before, now, bool(fields))
    if not fields:
        return None
    more = len(fields) - MOST_FIELDS
    again = [label for label, name in now.stages.items() if not (out / "stages" / name).is_dir()]
    return {
        "event": "changed",
        "fields": fields[:MOST_FIELDS] + ([f"and {more} more"] if more > 0 else []),
        "rerun": again,
        "kept": [label for label in now.stages if label not in again],
    }


def _circumstances(before: Plan, now: Plan, known: bool) -> Iterator[str]:
    """What differs besides the pipeline; `known` where the pipeline itself does, which explains the stages."""
    found = False
    for name, value in now.circumstances.items():
        old = before.circumstances.get(name, value)
        if old != value:
            found = True
            # A fingerprint says nothing to a reader.
            yield f"{name}: changed" if name.startswith("the data") or "code" in name else f"{name}: {old} → {value}"
    shared = now.stages.keys() & before.stages.keys()
    if not found and not known and any(now.stages[label] != before.stages[label] for label in shared):
        yield "the content of weights: changed"


def last_plan(events: Path) -> Plan | None:
    """The plan of the last run that wrote one, None where there is none."""
    for line in reversed(durable.lines(events)):
        if '"plan"' not in line:
            continue
        try:
            found = json.loads(line)
            if found["event"] == "plan":
                return Plan(dict(found["stages"]), dict(found["circumstances"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Each field that differs between two pipelines as YAML has them: `a.b: old → new`.

    Lists of other members, such as stages, differ as a whole.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from differences(before.get(key, _ABSENT), now.get(key, _ABSENT), f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and _names(before) == _names(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{path}.{i}")
    elif before != now:
        yield f"{path}: {_shown(before)} → {_shown(now)}"


class _Absent:
    """What stands nowhere."""


_ABSENT = _Absent()


def _names(values: list[Any]) -> list[str]:
    """What the members of a list are called, where they have names; only their number else."""
    return [next(iter(each)) if isinstance(each, dict) and len(each) == 1 else "" for each in values]


def _shown(value: Any) -> str:
    if isinstance(value, list) and any(_names(value)):
        text = ", ".join(name or str(each) for name, each in zip(_names(value), value, strict=True))
    elif isinstance(value, _Absent):
        text = ABSENT
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
