"""The schema that editors check pipelines by: what is accepted here passes it, and a slip does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import done

from compress.losses import LOSSES
from compress.losses.kd import KD
from compress.pipeline import parsed, read
from compress.verbs.catalogue import TABLES
from compress.verbs.schema import as_json, schema

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parent.parent
SHIPPED = sorted([*(ROOT / "pipelines").rglob("*.yaml"), *(ROOT / "examples").glob("*.yaml")])
SHIPPED += sorted((ROOT / "compress" / "starters").glob("*.yaml"))
PLAIN: dict[str, Any] = {"name": "x", "data": "digits", "student": "resnet18", "stages": ["train"]}


@pytest.fixture(scope="module")
def validator() -> Any:
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_ships_passes_as_written_and_resolved(path: Path, validator: Any) -> None:
    assert [*validator.iter_errors(yaml.safe_load(path.read_text()))] == []
    assert [*validator.iter_errors(yaml.safe_load(read(path).as_yaml()))] == []


TAUGHT = {"teacher": "resnet50"}
GOOD: list[dict[str, Any]] = [
    {},
    {"data": {"digits": None}},
    {"data": {"digits": {"mean": 0.5, "std": [0.2], "channels": 1, "class_names": list(range(10))}}},
    {"teacher": "resnet50", "stages": ["distill"]},
    {"teacher": [{"model": "resnet50"}, {"model": {"resnet18": {"weights": "a.pth"}}, "view": {"mean": 0.4}}]},
    {"teacher": {"model": "resnet18", "weights": "a.safetensors", "keep_head": True}, "stages": ["distill"]},
    {"student": {"mobilenet_v2": {"width": 0.5, "weights": "a.safetensors"}}},
    {"student": {"resnet18": None}, "seed": 3},
    {"stages": [{"distill": {"losses": ["kd", {"hint": {"layers": [1, {"student": 2, "teacher": 3}]}}]}}]} | TAUGHT,
    {"stages": [{"distill": {"losses": [{"kd": {"weight": {"warm_up": {"to": 1, "epochs": 2}}}}]}}]} | TAUGHT,
    {"stages": [{"distill": {"blend": [0.7, 0.3], "phases": [{"losses": ["kd"]}]}}], "teacher": ["resnet50", "vgg11"]},
    {"stages": [{"prune": {"importance": "taylor", "allocation": {"annealing": {}}}}, {"quantize": {"ranges": "mse"}}]},
]  # fmt: skip


@pytest.mark.parametrize("change", GOOD, ids=str)
def test_short_forms_pass_both(change: dict[str, Any], validator: Any) -> None:
    assert len(parsed(PLAIN | change, "x").stages) == len((PLAIN | change)["stages"])
    assert [error.message for error in validator.iter_errors(PLAIN | change)] == []


BAD: list[dict[str, Any]] = [
    {"datas": "digits"},
    {"data": "digit"},
    {"data": {"digits": {"sizes": 32}}},
    {"data": {"digits": {"size": 4}}},
    {"data": {"digits": {}, "synthetic": {}}},
    {"student": "resnet19"},
    {"student": {"mobilenet_v2": {"widht": 1}}},
    {"student": {"resnet18": {"keep_head": "maybe so"}}},
    {"teacher": {"modle": "resnet50"}},
    {"teacher": 3},
    {"stages": "train"},
    {"stages": ["trane"]},
    {"stages": [{"prune": {"importance": "l3"}}]},
    {"stages": [{"prune": {"keep_macs": 1.5}}]},
    {"stages": [{"train": {"training": {"epochs": -1}}}]},
    {"stages": [{"train": {"losses": ["cross_entropie"]}}]},
    {"stages": [{"quantize": {"method": "qt"}}]},
    {"stages": [{"distill": {"blend": "median"}}], "teacher": "resnet50"},
    {"export": {"target": "tensort"}},
    {"budget": {"max_bites": 1}},
    {"seed": -1},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_a_slip_fails_both(change: dict[str, Any], validator: Any) -> None:
    with pytest.raises(Exception, match="is not a pipeline"):
        parsed(PLAIN | change, "x")
    assert not validator.is_valid(PLAIN | change)


@pytest.mark.parametrize("lost", ["data", "student", "stages"])
def test_what_no_pipeline_can_do_without(lost: str, validator: Any) -> None:
    assert not validator.is_valid({key: value for key, value in PLAIN.items() if key != lost})


@pytest.mark.parametrize("kind", TABLES)
def test_everything_that_can_be_named_is_in_it(kind: str) -> None:
    text = as_json()
    assert [name for name in TABLES[kind] if json.dumps(name) not in text] == []


def test_the_shipped_schema_is_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in TABLES.values():  # other tests put networks of their own there
        for name in [name for name, member in table.items() if not member.__module__.startswith("compress.")]:
            monkeypatch.delitem(table, name)  # type: ignore[arg-type]
    printed = done(tmp_path, "schema")
    assert printed == as_json()
    again = "compress schema > pipelines/schema.json"
    assert (ROOT / "pipelines" / "schema.json").read_text(encoding="utf-8") == printed, f"run `{again}`"


def test_a_plugin_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(KD):
        """One more."""

        depth: int = 3

    Own.name = "own_loss"
    monkeypatch.setitem(LOSSES, "own_loss", Own)
    found = jsonschema.Draft202012Validator(schema())
    stages = [{"distill": {"losses": [{"own_loss": {"depth": 4}}]}}]
    assert found.is_valid(PLAIN | {"stages": stages})
    assert not found.is_valid(PLAIN | {"stages": [{"distill": {"losses": [{"own_loss": {"deep": 4}}]}}]})
