"""The main job's promises, measured: `make bench`.

Runs pipelines/mobilenet.yaml for seeds 0, 1 and 2 and seed 0 once more, each from scratch through the command line,
takes time and memory from the operating system, reads accuracy from the reports, and opens the int8 files in
ONNX Runtime 1.18 (in .venv-old). Prints a table against the bounds, writes benchmarks/main_job.json, and exits 1 if
one is missed. About half an hour on two cores.

    python benchmarks/main_job.py [--work FOLDER] [--only smoke]
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = ROOT / "pipelines" / "mobilenet.yaml"
SEEDS = (0, 1, 2)
RECORD = ROOT / "benchmarks" / "main_job.json"
OLD_PYTHON = ROOT / ".venv-old" / "bin" / "python"


@dataclass(frozen=True)
class Line:
    """One promise: what, the bound in words, what was measured, whether it holds."""

    what: str
    bound: str
    measured: str
    ok: bool


@dataclass(frozen=True)
class Run:
    """One run of the command line: wall seconds and peak resident bytes of its process."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Run everything, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, help="where run folders go; those that are there already are taken over")
    options.add_argument("--only", choices=["smoke"], help="measure this again and keep the other lines of the record")
    chosen = options.parse_args()
    work = chosen.work or Path(tempfile.mkdtemp(prefix="compress-bench-"))
    record: dict[str, Any] = {"lines": []}
    if chosen.only:
        record = json.loads(RECORD.read_text())
        lines = [smoke_line(work)]
    else:
        lines = measure(work)
        record["environment"] = report(work / "seed-0")["environment"]
    width = max(len(line.what) for line in lines)
    for line in lines:
        print(f"{'ok  ' if line.ok else 'MISS'}  {line.what:{width}}  {line.bound:18}  {line.measured}")
    kept = [line for line in record["lines"] if line["what"] not in {new.what for new in lines}]
    record["lines"] = kept + [asdict(line) for line in lines]
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not all(line.ok for line in lines))


def measure(work: Path) -> list[Line]:
    """All promises of the main job in order."""
    lines = []
    runs = [compress("run", PIPELINE, "--set", f"seed={seed}", "--out", work / f"seed-{seed}") for seed in SEEDS]
    again = compress("run", PIPELINE, "--set", "seed=0", "--out", work / "seed-0-again")
    slowest = max(run.seconds for run in (*runs, again))
    lines.append(at_most("whole pipeline, teacher included, s", slowest, 480))
    lines.append(at_most("peak memory, GB", max(run.peak_bytes for run in runs) / 1e9, 3))
    before = weights_of(work / "seed-0")
    second = compress("run", PIPELINE, "--set", "seed=0", "--out", work / "seed-0")
    lines.append(at_most("second run of the same pipeline, s", second.seconds, 30))
    rerun = [e for e in last_events(work / "seed-0") if e["event"] == "stage"]
    lines.append(Line("… stages rerun", "0", str(len(rerun)), not rerun and before == weights_of(work / "seed-0")))
    lines.append(smoke_line(work))
    lines += accuracy_lines([report(work / f"seed-{seed}") for seed in SEEDS])
    same = weights_of(work / "seed-0") == weights_of(work / "seed-0-again")
    lines.append(Line("two runs from scratch: weights and ONNX", "same bytes", "same" if same else "differ", same))
    return lines + [old_runtime(work / f"seed-{seed}") for seed in SEEDS]


def smoke_line(work: Path) -> Line:
    """The promise that the whole flow takes under a minute."""
    return at_most(
        "pipelines/smoke.yaml, s",
        compress("run", ROOT / "pipelines" / "smoke.yaml", "--out", work / "smoke").seconds,
        60,
    )


def accuracy_lines(reports: list[dict[str, Any]]) -> list[Line]:
    """Promises on accuracy, size, MACs and agreement, over the seeds' reports."""
    top1 = {
        net: statistics.mean(row(r, net)["top1_onnx"] for r in reports) for net in ("teacher", "baseline", "distill")
    }
    final = statistics.mean(r["rows"][-1]["top1_onnx"] for r in reports)
    bytes_share = max(100 * r["rows"][-1]["bytes"] / row(r, "baseline")["bytes"] for r in reports)
    macs_share = max(100 * r["rows"][-1]["macs"] / row(r, "baseline")["macs"] for r in reports)
    agreement = min(r["rows"][-1]["agreement"] for r in reports)
    faster = statistics.median(
        row(r, "baseline")["latency_ms"]["p50"] / r["rows"][-1]["latency_ms"]["p50"] for r in reports
    )
    verdicts = [r["verdict"] for r in reports]
    return [
        at_least("top-1 of the file, mean of seeds: teacher", top1["teacher"], 98.5),
        at_least("… baseline", top1["baseline"], 98.5),
        at_least("… distilled against the baseline, points", top1["distill"] - top1["baseline"], -0.2),
        at_least("… final int8 file against the baseline, points", final - top1["baseline"], -1.0),
        at_most("final int8 file, bytes, % of the baseline's", bytes_share, 13.5),
        at_most("final int8 file, MACs, % of the baseline's", macs_share, 50),
        at_least("agreement with the fake-quantized net, %", agreement, 99.5),
        at_least("speed of the int8 file, times the baseline's", faster, 1.0),
        Line("verdicts", "pass", " ".join(verdicts), verdicts == ["pass"] * len(verdicts)),
    ]


def old_runtime(folder: Path) -> Line:
    """Open the int8 file in the old ONNX Runtime: every Conv int8, at most 2 Q and 2 DQ, the same predictions."""
    what = f"{folder.name}: int8 graph in the old runtime"
    bound = "0 float Conv, ≤ 2 Q/DQ"
    if not OLD_PYTHON.exists():
        return Line(what, bound, "not measured: make .venv-old first (`make bench` does)", False)
    script = ROOT / "benchmarks" / "old_runtime.py"
    done = subprocess.run([OLD_PYTHON, script, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        return Line(what, bound, done.stderr.strip().splitlines()[-1], False)
    found = json.loads(done.stdout)
    counts = found["operators"]
    floats = sum(counts.get(kind, 0) for kind in ("Conv", "FusedConv", "NhwcFusedConv"))
    pairs = counts.get("QuantizeLinear", 0), counts.get("DequantizeLinear", 0)
    measured = (
        f"{found['version']}: {counts.get('QLinearConv', 0)} QLinearConv, {floats} float Conv, {counts.get('Clip', 0)} "
        f"Clip, {pairs[0]} Q, {pairs[1]} DQ; {found['agreement']:.2f} % as here; {found['speed']:.2f}× the float file"
    )
    ok = floats == 0 and counts.get("Clip", 0) == 0 and max(pairs) <= 2 and found["agreement"] >= 99.5
    return Line(what, bound, measured, ok)


def compress(*words: object) -> Run:
    """Run the command line; its exit code must be 0 or 5 (a budget missed is a line of the table)."""
    command = [sys.executable, "-m", "compress", *map(str, words)]
    print("$", *command[1:], file=sys.stderr)
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) not in (0, 5):
        raise SystemExit(f"compress ended with {os.waitstatus_to_exitcode(status)}")
    return Run(seconds, usage.ru_maxrss * 1024)


def report(folder: Path) -> dict[str, Any]:
    """A run's report.json."""
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def row(found: dict[str, Any], net: str) -> dict[str, Any]:
    """The row of a net."""
    return next(r for r in found["rows"] if r["net"] == net)


def weights_of(folder: Path) -> dict[str, str]:
    """The hash of every weight and ONNX file of a run, by its path."""
    files = sorted([*folder.rglob("*.onnx"), *folder.rglob("*.safetensors")])
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def last_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a folder's last run."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    start = max(i for i, event in enumerate(events) if event["event"] == "started")
    return events[start:]


def at_most(what: str, value: float, bound: float) -> Line:
    """A promise that a figure stays under a bound."""
    return Line(what, f"≤ {bound:g}", f"{value:.2f}", value <= bound)


def at_least(what: str, value: float, bound: float) -> Line:
    """A promise that a figure reaches a bound."""
    return Line(what, f"≥ {bound:g}", f"{value:.2f}", value >= bound)


if __name__ == "__main__":
    main()
