"""Whole runs of two processes: as one process does, killed and taken up again, asked to stop, refused."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import two_runs
import yaml
from commandline import done
from safetensors.numpy import load_file
from tiny import raw_pipeline

TRAINING = {"epochs": 2, "batch_size": 16, "lr": 0.001}
STEPS = 5  # an epoch
LOSSES = [{"cross_entropy": {"weight": 0.1}}, "kd", "watched"]
PIPELINE = raw_pipeline(
    data={"synthetic": {"size": 16, "classes": 4, "samples": 16 * STEPS}},
    student="smooth",
    teacher={"model": {"smooth": {"width": 48}}, "training": TRAINING},
    stages=[
        {"distill": {"losses": LOSSES, "training": TRAINING}},
        {"prune": {"keep_macs": 0.6, "training": TRAINING}},
        {"quantize": {"training": TRAINING}},
    ],
)
KILLED_AT = STEPS + 2  # of the distill stage; the first after all earlier ones have a checkpoint
TERMINATED_AT = (2 * STEPS - KILLED_AT + 1) + 2 * STEPS + 3  # behind what is left of it: in the quantize stage
RUN = ["run", "pipeline.yaml", "--device", "cpu"]
CLOSE = 1e-4
MOST_S = 60  # after a process was killed


@dataclass(frozen=True)
class Left:
    """What the pairs of processes left in a folder, and how and when they ended."""

    folder: Path
    ended: dict[str, list[list[float]]]

    def codes(self, name: str) -> list[int]:
        return [int(code) for code, _ in self.ended[name]]

    def said(self, name: str, rank: int) -> str:
        return (self.folder / f"{name}-{rank}.log").read_text()

    def rows(self, name: str, rank: int) -> list[Any]:
        return [json.loads(line) for line in (self.folder / f"{name}-{rank}.jsonl").read_text().splitlines()]

    def content(self, run: str, pattern: str) -> dict[str, bytes]:
        root = self.folder / run
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob(pattern))}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE))
    (folder / "wrong.yaml").write_text("student: tiny\n")
    (folder / "held").mkdir()
    broken = [*RUN, "--out", "broken", "--checkpoint-every", "0"]
    runs: list[dict[str, Any]] = [
        {"name": "whole", "words": [*RUN, "--out", "whole"]},
        {"name": "killed", "words": broken, "signals": [{}, {KILLED_AT: signal.SIGKILL}]},
        {"name": "stopped", "words": broken, "signals": [{}, {TERMINATED_AT: signal.SIGTERM}]},
        {"name": "finished", "words": broken, "fails": True},
        {"name": "busy", "words": [*RUN, "--out", "held"], "held": "held"},
        {"name": "wrong", "words": ["run", "wrong.yaml"]},
        {"name": "called", "pipeline": PIPELINE | {"teacher": None, "stages": [{"quantize": {"method": "ptq"}}]}},
    ]
    (folder / "runs.json").write_text(json.dumps([{"signals": [{}, {}]} | run for run in runs]))
    found = subprocess.run([sys.executable, two_runs.__file__, folder], capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stderr
    return Left(folder, json.loads((folder / "ended.json").read_text()))


@pytest.fixture(scope="module")
def alone(left: Left) -> Path:
    """The folder of the same run in a single process."""
    with two_runs.quickly():
        done(left.folder, *RUN, "--out", "alone")
    return left.folder / "alone"


def test_two_processes_end_well_and_one_of_them_talks(left):
    assert left.codes("whole") == [0, 0]
    assert "report: whole/report.html" in left.said("whole", 0)
    assert left.said("whole", 1) == ""


STAGES = ("teacher", "baseline", "0-distill", "1-prune", "2-quantize", "2-quantize-*/ptq")


@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_are_those_of_a_single_process(left, alone, stage):
    pattern = f"stages/{stage}-*/" if "/" not in stage else f"stages/{stage}/"
    (ours,) = left.content("whole", f"{pattern}weights.safetensors")
    here, there = load_file(left.folder / "whole" / ours), load_file(alone / ours)
    assert here.keys() == there.keys()
    for name, value in there.items():
        np.testing.assert_allclose(here[name], value, rtol=0, atol=CLOSE, err_msg=name)


@pytest.mark.parametrize("pattern", ["stages/**/net.json", "predictions/*.csv"])
def test_widths_and_predictions_are_those_of_a_single_process(left, alone, pattern):
    expected = left.content("alone", pattern)
    assert len(expected) == 6
    assert left.content("whole", pattern) == expected


def test_the_report_says_how_many_trained(left, alone):
    ours, theirs = (json.loads((left.folder / run / "report.json").read_text()) for run in ("whole", "alone"))
    assert (ours["environment"]["processes"], theirs["environment"]["processes"]) == (2, 1)
    assert any("2 processes trained together" in note for note in ours["notes"])
    assert not any("processes" in note for note in theirs["notes"])


def test_called_from_python_they_share_the_work_and_get_the_same_rows(left):
    assert left.codes("called") == [0, 0]
    first, second = ([json.loads(line) for line in left.said("called", rank).splitlines()] for rank in (0, 1))
    assert [found[:3] for found in first] == [found[:3] for found in second]
    assert first[0][:3] == first[1][:3]
    assert "stage finished" in first[0][3]
    assert "unchanged" in first[1][3]
    assert [found[3] for found in second] == [[], []], "the first process alone talks"
    told = json.loads((left.folder / "called" / "report.json").read_text())
    assert told["environment"]["processes"] == 2
    assert [row["top1_onnx"] for row in told["rows"]] == first[1][2]


def test_a_killed_process_ends_the_other_which_says_so(left):
    assert left.codes("killed") == [6, -signal.SIGKILL]
    killed = float((left.folder / "killed-1.signalled").read_text())
    assert 0 <= left.ended["killed"][0][1] - killed < MOST_S / 6
    last = left.said("killed", 0).splitlines()[-1]
    assert last.startswith("error: process 0 of 2 lost another one")
    assert last.endswith("The same command, started again, goes on from the last checkpoint")
    assert left.said("killed", 1) == ""


def test_a_signal_to_one_process_ends_both_with_a_checkpoint(left):
    assert left.codes("stopped") == [143, 143]
    assert (left.folder / "stopped-1.signalled").exists()
    assert left.said("stopped", 0).splitlines()[-1] == (
        "terminated; finished stages are kept, and the training as it is: the same command goes on from there"
    )
    assert left.said("stopped", 1) == ""


def test_both_were_taken_up_inside_a_stage(left):
    events = [json.loads(line) for line in (left.folder / "broken" / "events.jsonl").read_text().splitlines()]
    resumed = [(event["stage"], event["step"]) for event in events if event["event"] == "resumed"]
    assert resumed == [("distill", KILLED_AT - 1), ("quantize", 3)]


def test_after_a_kill_and_a_signal_all_is_as_if_nothing_had_been(left):
    expected = left.content("whole", "stages/**/weights.safetensors")
    assert len(expected) == 6
    assert left.content("broken", "stages/**/weights.safetensors") == expected


def test_no_image_is_repeated_or_skipped(left):
    whole = [left.rows("whole", rank) for rank in range(2)]
    broken = [[left.rows(name, rank) for name in ("killed", "stopped", "finished")] for rank in range(2)]
    # The step in which the second was killed the first had begun, and begins again.
    assert broken[0][0].pop() == broken[0][1][0]
    assert [[*chain(*parts)] for parts in broken] == whole
    # In each epoch each image is one process's once.
    assert len(whole[0]) == 3 * 2 * STEPS
    for start in range(0, len(whole[0]), STEPS):
        epoch = [row for rank in range(2) for _, _, rows in whole[rank][start : start + STEPS] for row in rows]
        assert sorted(epoch) == [*range(16 * STEPS)]
        assert len({kind for rank in range(2) for kind, _, _ in whole[rank][start : start + STEPS]}) == 1


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("busy", 7, "error: another run uses held"),
        ("wrong", 2, "error: wrong.yaml"),
        ("finished", 4, "error: not proven"),
    ],
)
def test_an_error_of_the_first_is_said_once_and_ends_all_alike(left, name, code, words):
    assert left.codes(name) == [code, code]
    assert left.said(name, 0).count(words) == 1
    assert left.said(name, 1) == ""
