"""A pipeline, data or versions that changed since the last run in a folder: what is said of it, and what runs again."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_pipeline

from compress.events import Event
from compress.files import durable
from compress.pipeline import Pipeline
from compress.running import runner
from compress.running.changes import Plan, changes, differences, last_plan, plan
from compress.running.making import Maker
from compress.running.sources import load

NONE = {"training": {"epochs": 0}}
STAGES: list[dict[str, Any]] = [{"prune": {"keep_macs": 0.6, **NONE}}, {"quantize": NONE}]


def pipeline(**changed: Any) -> Pipeline:
    return tiny_pipeline(**{"teacher": None, "stages": STAGES, "baseline": NONE} | changed)


def maker(out: Path, chosen: Pipeline) -> Maker:
    return Maker(chosen, load(chosen), out, runner.pick_device("cpu"), lambda _: None, [None] * len(chosen.stages))


def taken_up(out: Path, chosen: Pipeline, *, made: bool = True, plugins: tuple[Path, ...] = ()) -> Event | None:
    """What the start of a run says of changes; afterwards all its stages are there."""
    own = maker(out, chosen)
    own.plugins = plugins
    own.__post_init__()
    said: list[Event] = []

    def tell(event: Event) -> None:
        said.append(event)
        if event["event"] == "plan":
            durable.append(out / "events.jsonl", json.dumps(event))

    runner.take_up(out, chosen, [own], lambda: None, tell)
    for folder in own.folders().values():
        if made:
            folder.mkdir(parents=True, exist_ok=True)
    return next((event for event in said if event["event"] in ("changed", "warning")), None)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 2]}}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2.5}}, ["a.b: 1 → 2.5"]),
        ({"a": 1}, {"b": None}, ["a: 1 → nothing", "b: nothing → null"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a.1: 2 → 3"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a: [1, 2] → [1]"]),
        ({"a": [{"x": {"y": 1}}, {"z": {}}]}, {"a": [{"x": {"y": 2}}, {"z": {}}]}, ["a.0.x.y: 1 → 2"]),
        ({"a": [{"x": {"y": 1}}]}, {"a": [{"w": {}}, {"x": {"y": 2}}]}, ["a: x → w, x"]),
        ({"a": True}, {"a": "yes"}, ['a: true → "yes"']),
        ({"a": {"b": 1}}, {"a": None}, ['a: {"b": 1} → null']),
        ({"a": "é" * 80}, {"a": ""}, ['a: "' + "é" * 58 + '… → ""']),
    ],
)
def test_fields_that_differ(before: Any, now: Any, said: list[str]) -> None:
    assert [*differences(before, now)] == said


def test_a_first_run_and_the_same_again_say_nothing(tmp_path: Path) -> None:
    assert taken_up(tmp_path, pipeline()) is None
    assert taken_up(tmp_path, pipeline()) is None


def test_an_interrupted_run_is_no_change(tmp_path: Path) -> None:
    assert taken_up(tmp_path, pipeline(), made=False) is None
    assert taken_up(tmp_path, pipeline()) is None


def test_fields_and_stages_of_a_changed_pipeline(tmp_path: Path) -> None:
    taken_up(tmp_path, pipeline())
    changed = [{"prune": {"keep_macs": 0.7, **NONE}}, STAGES[1]]
    assert taken_up(tmp_path, pipeline(stages=changed, budget={"max_bytes": 9})) == {
        "event": "changed",
        "fields": ["stages.0.prune.keep_macs: 0.6 → 0.7", "budget.max_bytes: null → 9"],
        "rerun": ["0-prune", "1-quantize"],
        "kept": ["baseline"],
    }


def test_a_change_back_takes_over_what_is_still_there(tmp_path: Path) -> None:
    for chosen in (pipeline(), pipeline(stages=STAGES[:1])):
        taken_up(tmp_path, chosen)
    said = taken_up(tmp_path, pipeline())
    assert said is not None
    assert said["fields"] == ["stages: prune → prune, quantize"]
    assert (said["rerun"], said["kept"]) == ([], ["baseline", "0-prune", "1-quantize"])


def test_of_many_fields_ten_are_named(tmp_path: Path) -> None:
    taken_up(tmp_path, pipeline())
    training = {"epochs": 3, "batch_size": 9, "lr": 0.5, "weight_decay": 0.5, "label_smoothing": 0.5, "l1": 0.5}
    stages = [{"prune": {"keep_macs": 0.5, "training": training}}, {"quantize": {"training": training}}]
    said = taken_up(tmp_path, pipeline(stages=stages))
    assert said is not None
    assert len(said["fields"]) == 11
    assert said["fields"][-1] == "and 3 more"  # of twice these six and keep_macs


def test_other_data_and_versions_are_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_up(tmp_path, pipeline())
    monkeypatch.setattr("compress.running.changes.version", lambda package: "9.9")
    monkeypatch.setattr("compress.running.changes.__version__", "8.8")
    monkeypatch.setattr("compress.running.making.__version__", "8.8")
    plugin = tmp_path / "mine.py"
    plugin.write_text("")
    said = taken_up(
        tmp_path, pipeline(data={"synthetic": {"size": 16, "classes": 3, "samples": 160}}), plugins=(plugin,)
    )
    assert said is not None
    fields = said["fields"]
    assert fields[:3] == ["data.synthetic.classes: 4 → 3", "the data: changed", "the code of plugins: changed"]
    versions = ["compress", "torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime"]
    assert [field.split(": ")[0] for field in fields[3:]] == versions
    assert fields[4].endswith(" → 9.9")
    assert said["kept"] == []


def test_other_weights_under_the_same_name_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_up(tmp_path, pipeline())
    monkeypatch.setattr("compress.running.making.model_key", lambda model: "other content")
    said = taken_up(tmp_path, pipeline())
    assert said is not None
    assert said["fields"] == ["the content of weights: changed"]
    assert said["rerun"] == ["baseline", "0-prune", "1-quantize"]


def test_a_pipeline_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    taken_up(tmp_path, pipeline())
    (tmp_path / "pipeline.yaml").write_text("a: [")
    said = taken_up(tmp_path, pipeline())
    assert said is not None
    assert said["text"].startswith("what changed since the last run cannot be told: ")
    assert taken_up(tmp_path, pipeline()) is None


@pytest.mark.parametrize(
    "line", ['{"event": "plan"', '{"event": "plan"}', '["plan"]', '{"event": "x", "plan": 1}', "\0"]
)
def test_damaged_events_are_passed_over(line: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    known = Plan({"baseline": "baseline-a"}, {"torch": "1"})
    path.write_text(json.dumps(known.event()) + f"\n{line}\n" + '{"event": "plan", "sta')
    assert last_plan(path) == known


def test_seeds_have_folders_of_their_own(tmp_path: Path) -> None:
    makers = maker(tmp_path, pipeline()).repeats(2)
    found = plan(makers)
    assert [*found.stages][:3] == ["baseline", "0-prune", "1-quantize"]
    assert [*found.stages][3:] == ["baseline-seed-1", "0-prune-seed-1", "1-quantize-seed-1"]
    assert changes(tmp_path, pipeline(), found) is None
