"""docs/pipeline.md and docs/runs.md: every key, default, stage, verb and flag that there is, and no other."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from compress.cli import app
from compress.config import Config
from compress.data import DATASETS
from compress.data.base import Preprocessing
from compress.data.image_folder import ImageFolder
from compress.data.synthetic import Synthetic
from compress.export.onnx import Export
from compress.measure.robustness import Robustness
from compress.named_nets import OUTSIDE, Model
from compress.pipeline import Benchmark, Budget, Pipeline, parsed
from compress.recipe import Training
from compress.row import Latency, Row
from compress.stages import STAGES

DOCS = Path(__file__).parent.parent / "docs"
PAGE, RUNS = ((DOCS / name).read_text(encoding="utf-8") for name in ("pipeline.md", "runs.md"))
SECTIONS = dict(re.findall(r"^##? (.+?)\n(.*?)(?=^##? |\Z)", PAGE, re.DOTALL | re.MULTILINE))
CONFIGS: dict[str, type[Config]] = {
    "The pipeline file": Pipeline, "Data": Preprocessing, "Training": Training, "Export": Export,
    "Benchmark": Benchmark, "Budget": Budget,
}  # fmt: skip


def table(section: str) -> dict[str, Any]:
    """The first two columns of a section's table: what is named, and its default as YAML has it."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)` )?\|", SECTIONS[section], re.MULTILINE)
    return {name: yaml.safe_load(default) if default else None for name, default in rows}


def defaults(config: type[Config]) -> dict[str, Any]:
    """As YAML has them; None for what is required, and for parts that have a section of their own."""
    fields = {name: field.default for name, field in config.model_fields.items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return {name: value if isinstance(value, str | int | float | list) else None for name, value in plain.items()}


@pytest.mark.parametrize("section", CONFIGS)
def test_all_keys_and_their_defaults(section: str) -> None:
    expected = defaults(CONFIGS[section])
    if section == "The pipeline file":
        assert expected.pop("teacher") == []
        expected["teacher"] = None
    assert table(section) == expected


def test_the_keys_of_models() -> None:
    assert table("Models") == {name: Model.model_fields[name].default for name in OUTSIDE}


def test_all_stages_and_how_long_they_train() -> None:
    found = {}
    for name, stage in STAGES.items():
        given: dict[str, Any] = {"sparsity": 0.5} if name == "sparsify" else {}
        training = stage.model_validate(given).training  # type: ignore[attr-defined]
        found[name] = {"epochs": training.epochs, "lr": training.lr}
    assert table("Stages") == found


def test_what_is_said_of_data_sets() -> None:
    text = SECTIONS["Data"]
    assert all(f"`{name}" in text for name in DATASETS)
    assert ImageFolder.model_fields["size"].default == 224
    assert [Synthetic.model_fields[key].default for key in ("classes", "samples")] == [10, 1000]
    assert DATASETS["cifar10"]().path == Path("data")  # type: ignore[attr-defined]


def test_the_shortest_file_and_the_parts_in_the_text_are_pipelines() -> None:
    shortest = "".join(line[4:] for line in SECTIONS["The pipeline file"].splitlines(True) if line.startswith("    "))
    assert [stage.name for stage in parsed(yaml.safe_load(shortest) | {"name": "x"}, "the page").stages]
    robustness = re.search(r"`(\{corruptions.*?\})`", PAGE)
    assert robustness is not None
    assert Robustness.model_validate(yaml.safe_load(robustness[1])) == Robustness()


def test_the_fields_of_a_row() -> None:
    said = RUNS.split("A row has")[1].split("Rows are")[0]
    rows, parts = ({field.name for field in fields(each)} for each in (Row, Latency))
    assert set(re.findall(r"`(\w+)`", said)) == rows | parts


def test_every_verb_and_flag_is_explained() -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows = dict(re.findall(r"^\| `compress (\w+).*?` \| (.*) \|$", RUNS, re.MULTILINE))
    assert rows.keys() == verbs.keys()
    shared = set(re.findall(r"`(--[\w-]+)", RUNS.split("## Every verb")[1].split("\n| verb |")[0]))
    for verb, said in rows.items():
        flags = {option for each in verbs[verb].params for option in each.opts if option.startswith("--")}
        told = set(re.findall(r"`(--[\w-]+)", said))
        assert told <= flags, f"{verb}: {told - flags} are no flags of it"
        assert flags <= told | shared, f"{verb}: {flags - told - shared} are explained nowhere"
