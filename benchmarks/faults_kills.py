"""Runs that are killed, and the same command again: everything must end as without.

Small nets on made-up images go through every stage that there is. Each run is killed at a place that is chosen or after
a time that is drawn, some of them while they are being taken up again; then the same command goes to the end.
"""

import hashlib
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from faults_child import HALF, POINTS, ROOT, TINY, Death, Runs
from lines import Line, at_least, at_most

sys.path.insert(0, str(ROOT / "tests"))
from tiny import raw_pipeline

TRAINING = {"epochs": 2, "batch_size": 32, "lr": 0.01}
BLOCKS = {
    "mobilenet_blocks": {
        "stem": 16, "widths": [16, 32], "depths": [1, 1], "kernels": [3, 3], "expansions": [1, 2], "strides": [1, 2],
        "head": 32,
    }
}  # fmt: skip
SPACE = {"widths": [0.5], "depths": [], "kernels": [5], "expansions": []}
PIPELINES: dict[str, dict[str, Any]] = {
    "main": {
        "stages": [
            {"distill": {"training": TRAINING}},
            {"prune": {"keep_macs": 0.6, "training": TRAINING | {"ema": 0.9}}},
            {"quantize": {"training": TRAINING | {"lr": 0.001}}},
        ],
    },
    "more": {
        "stages": [
            {"sensitivity": {"ratios": [0.5], "images": 32}},
            {"mutual": {"training": TRAINING}},
            {"sparsify": {"sparsity": 0.5, "training": TRAINING}},
            {"factorize": {"keep_macs": 0.9, "training": TRAINING}},
            {"quantize": {"learn": "lsq", "training": TRAINING | {"lr": 0.001}}},
        ],
        "teacher": None,
    },
    "search": {
        "student": BLOCKS,
        "teacher": None,
        "stages": [
            {"search": {"keep_macs": 0.8, "space": SPACE, "align": 8, "scored_by": "training",
                        "method": {"evolution": {"population": 2, "generations": 1}}, "training": TRAINING}},
            {"born_again": {"training": TRAINING}},
            {"train": {"training": TRAINING}},
        ],
    },
}  # fmt: skip
QUICK = {"short": {"stages": [{"quantize": {"training": TRAINING}}], "teacher": None}}
CLOCK = ("images_per_s", "seconds", "left_s")
MEASURED = ("net", "stage", "top1", "top5", "top1_onnx", "agreement", "samples", "params", "macs", "bytes", "int8")
OFTEN = 9  # the first of the points are come to again and again
SAID = re.compile(r"Traceback|bug of compress")


@dataclass
class Tally:
    """What became of the runs that were killed."""

    kills: int = 0
    inside: int = 0
    twice: int = 0
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A pipeline, and where its run is killed, one time after the other; the last run lives."""

    pipeline: str
    deaths: tuple[Death, ...]


QUICK_PLANS = (
    Plan("short", (Death("between gradients and optimiser", 8), Death(HALF, 4), Death("before a rename", 5))),
    Plan("short", (Death("after an export", 2),)),
)


def kill_lines(work: Path, *, quick: bool) -> list[Line]:
    """Kill, take up again, compare."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    runs = Runs()
    pipelines = QUICK if quick else PIPELINES
    for name, changes in pipelines.items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump(raw_pipeline(name=name, **changes)))
    with ThreadPoolExecutor(2) as pool:
        wholes = dict(zip(pipelines, pool.map(lambda name: whole(runs, work, name), pipelines), strict=True))
        plans = [*QUICK_PLANS] if quick else [*planned()]
        tallies = [*pool.map(lambda each: suffered(runs, work, wholes, *each), enumerate(plans))]
    wrong = [text for tally in tallies for text in tally.wrong]
    for text in wrong:
        print(text, file=sys.stderr)
    kills, inside = sum(t.kills for t in tallies), sum(t.inside for t in tallies)
    return [
        at_least("kills, at instrumented and random points of every stage", kills, None if quick else 40, "{:.0f}"),
        at_least("of them inside a training, taken up from a step above zero", inside, None if quick else 20, "{:.0f}"),
        at_least("of them during a resume, two or more in a row", sum(t.twice for t in tallies), None if quick else 5,
                 "{:.0f}"),
        at_most("runs that did not end with the same bits as without", len(wrong), 0, "{:.0f}"),
    ]  # fmt: skip


def planned() -> Iterator[Plan]:
    """Which runs are killed where; the same each time. The main flow comes to every place, the others to some."""
    drawn = random.Random(6)
    places, rest = [*[*POINTS][:OFTEN], HALF], [*POINTS][OFTEN:]
    for name in PIPELINES:
        main = name == "main"
        for point in places if main else drawn.sample(places, 5):
            yield Plan(name, (Death(point, drawn.randrange(3, 25)),))
        for point in rest if main else drawn.sample(rest, 2):
            yield Plan(name, (Death(point, drawn.randrange(1, 3)),))
        for _ in range(2):
            yield Plan(name, (Death(seconds=drawn.uniform(1.0, 9.0)),))
        for _ in range(2):
            first, second = drawn.sample(places, 2)
            third = Death(drawn.choice(places), drawn.randrange(2, 9))
            yield Plan(name, (Death(first, drawn.randrange(6, 16)), Death(second, drawn.randrange(2, 9)), third))


def command(work: Path, name: str, out: Path, every: float = 0) -> list[str]:
    """The words of the run."""
    return ["run", str(work / f"{name}.yaml"), "--plugin", str(TINY), "--out", str(out), "--checkpoint-every",
            str(every)]  # fmt: skip


def whole(runs: Runs, work: Path, name: str) -> Mapping[str, Any]:
    """What a run leaves that nobody disturbed, and that kept no checkpoints but its results."""
    out = work / f"{name}-whole"
    code = runs.run(command(work, name, out, 60), work / f"{name}-whole.log")
    assert code in (0, 5), f"{name}: the undisturbed run ended with {code}; see {work}/{name}-whole.log"
    return left_behind(out)


def suffered(runs: Runs, work: Path, wholes: Mapping[str, Any], number: int, plan: Plan) -> Tally:
    """Kill a run as planned, then let it end, and compare."""
    out, log, tally = work / f"{plan.pipeline}-{number}", work / f"{plan.pipeline}-{number}.log", Tally()
    where = f"{plan.pipeline}, killed {', then '.join(map(str, plan.deaths))}"
    try:
        for i, death in enumerate(plan.deaths):
            code = runs.run(command(work, plan.pipeline, out), log, death)
            if code != -9:
                if code not in (0, 5):
                    tally.wrong.append(f"{where}: ended with {code} instead of being killed")
                break  # it was through before it came there
            tally.kills += 1
            tally.twice += i > 0
            tally.inside += begun(out)
        expected = [*resumable(out)]
        seen = len(events(out))
        code = runs.run(command(work, plan.pipeline, out), log)
    except TimeoutError as error:
        tally.wrong.append(f"{where}: {error}")
        return tally
    tally.wrong += [f"{where}: {text}" for text in judged(out, log, code, expected, seen, wholes[plan.pipeline])]
    if not tally.wrong:
        shutil.rmtree(out)
    return tally


def judged(
    out: Path, log: Path, code: int, expected: list[str], seen: int, reference: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong with a run that was taken up again."""
    if code not in (0, 5):
        yield f"the resumed run ended with {code}; see {log}"
        return
    if SAID.search(log.read_text()):
        yield f"something broke aloud; see {log}"
    taken_up = {event["stage"] for event in events(out)[seen:] if event["event"] == "resumed" and event["step"] > 0}
    for stage in expected:
        if stage not in taken_up:
            yield f"{stage} had a checkpoint and was not taken up from it"
    found = left_behind(out)
    for name in sorted(found.keys() | reference.keys()):
        if found.get(name) != reference.get(name):
            yield f"{name} is not what an undisturbed run leaves"


def resumable(out: Path) -> Iterator[str]:
    """The stages that have a checkpoint and are not finished."""
    for folder in out.glob("stages/*.unfinished"):
        if any(folder.glob("checkpoints/*.safetensors")) and not (folder / "stage.json").exists():
            started = [event for event in events(out) if event["event"] == "stage"]
            yield from {e["stage"] for e in started if e["folder"] == folder.name.removesuffix(".unfinished")}


def begun(out: Path) -> bool:
    """Whether a training had a checkpoint and was not through when the run was killed."""
    kept = [path.name for path in out.glob("stages/*.unfinished/checkpoints/*.safetensors")]
    return any("-done-" not in name for name in kept)


def events(out: Path) -> list[dict[str, Any]]:
    """What the run has told; the last line may be torn."""
    found = []
    path = out / "events.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def left_behind(out: Path) -> dict[str, Any]:
    """All that a run leaves that no clock is in: nets, files, predictions, curves, figures."""
    found: dict[str, Any] = {}
    for pattern in ("stages/**/weights.safetensors", "stages/**/net.json", "models/**/*.onnx", "predictions/**/*.csv",
                    "sensitivity/*.csv"):  # fmt: skip
        for path in out.glob(pattern):
            found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in out.glob("stages/*/train.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in each.items() if key not in CLOCK} for each in records]
        found[str(path.relative_to(out))] = kept
    report = json.loads((out / "report.json").read_text())
    for row in (*report["rows"], *report["alternatives"]):
        found[f"row {row['net']}"] = {key: row[key] for key in MEASURED}
    return found | {"verdict": report["verdict"], "rows": len(report["rows"])}
