"""How fast the int8 files are against float and against ONNX Runtime's own quantizer, how big, and how int8."""

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lines import Line, at_least, at_most
from quantization_files import FLOAT_CONVS, files_of, float_convs

from compress.measure.latency import measure_latency

ROOT = Path(__file__).resolve().parent.parent
OLD_PYTHON = ROOT / ".venv-old" / "bin" / "python"
RUNS = 5
TURN_MS, MIN_RUNS = 20.0, 3  # of a file in a round, as measure_latency has them
RUN_MS = 2000.0  # about what one run of the interleaved timing may take
AGAINST_FLOAT = {"mobilenet_v1": 2.1, "mobilenet_v2": 1.7, "mobilenet_v3_large": 1.1, "resnet50": 2.9}
AGAINST_DEFAULTS = {"mobilenet_v2": 1.7}
AGAINST_BEST = {"mobilenet_v3_small": 1.25, "mobilenet_v3_large": 1.25}
ALL_INT8 = ("mobilenet", "resnet", "vgg", "regnet")
SIZE = 28.0  # per cent of the float file


def latency_lines(nets: Sequence[str], size: int, folder: Path, *, timed: bool, runs: int = RUNS) -> list[Line]:
    """The lines of every net; without `timed` only those that take no clock. A net's peers are deleted behind it."""
    lines: list[Line] = []
    pairs = {}
    for name in nets:
        files, missing = files_of(name, size, folder)
        lines += structure_lines(name, files)
        if timed:
            lines += speed_lines(name, files, missing, runs)
        for kind in files.keys() - {"float", "int8"}:
            files[kind].unlink()
        pairs[name] = {kind: str(files[kind]) for kind in ("float", "int8")}
    return lines + (old_lines(pairs, folder) if timed else [])


def structure_lines(name: str, files: dict[str, Path]) -> list[Line]:
    """Size and float convolutions of our int8 file."""
    share = 100 * files["int8"].stat().st_size / files["float"].stat().st_size
    bound = 0 if name.startswith(ALL_INT8) else None
    return [
        at_most(f"{name}: int8 file, % of the float one", share, SIZE, "{:.1f}"),
        Line(f"{name}: float Conv left", "" if bound is None else "0", *_count(float_convs(files["int8"]), bound)),
    ]


def _count(value: int, bound: int | None) -> tuple[str, bool | None]:
    return str(value), None if bound is None else value <= bound


def speed_lines(name: str, files: dict[str, Path], missing: dict[str, str], runs: int) -> list[Line]:
    """Our int8 file against float and the peers: medians of the ratios of several interleaved runs."""
    first = {kind: timed.p50 for kind, (timed, _) in measure_latency(files, threads=1, batch=1, rounds=1).items()}
    round_ms = sum(max(TURN_MS, MIN_RUNS * ms) for ms in first.values())
    rounds = min(max(round(RUN_MS / round_ms), 2), 20)
    measured = [measure_latency(files, threads=1, batch=1, rounds=rounds) for _ in range(runs)]
    lines = []
    for kind, what, bound in (
        ("float", "float", AGAINST_FLOAT.get(name)),
        ("defaults", "quantize_static's defaults", AGAINST_DEFAULTS.get(name, 1.0)),
        ("best", "quantize_static's best settings", AGAINST_BEST.get(name, 0.97)),
    ):
        title = f"{name}: times as fast as {what}"
        if kind in missing:
            lines.append(Line(title, f"≥ {bound:g}", missing[kind]))
            continue
        ratio = statistics.median(run[kind][0].p50 / run["int8"][0].p50 for run in measured)
        ours, theirs = (statistics.median(run[k][0].p50 for run in measured) for k in ("int8", kind))
        lines.append(at_least(title, ratio, bound, f"{{:.2f}}× ({theirs:.2f} → {ours:.2f} ms)"))
    return lines


def old_lines(pairs: dict[str, dict[str, str]], folder: Path) -> list[Line]:
    """The same files in ONNX Runtime 1.18: none slower than its float file."""
    what = "{}: times as fast as float, ONNX Runtime 1.18"
    if not OLD_PYTHON.exists():
        return [
            Line(what.format("all nets"), "≥ 1", "not measured: make .venv-old first (`make bench-quantization` does)")
        ]
    listed = folder / "pairs.json"
    listed.write_text(json.dumps(pairs))
    script = ROOT / "benchmarks" / "old_latency.py"
    done = subprocess.run([OLD_PYTHON, script, listed], capture_output=True, text=True, check=False)
    if done.returncode:
        return [Line(what.format("all nets"), "≥ 1", done.stderr.strip().splitlines()[-1], False)]
    lines = []
    for name, found in json.loads(done.stdout).items():
        floats = sum(found["operators"].get(kind, 0) for kind in FLOAT_CONVS)
        times = f"({found['float_ms']:.2f} → {found['int8_ms']:.2f} ms, {floats} float Conv)"
        lines.append(at_least(what.format(name), found["float_ms"] / found["int8_ms"], 1.0, f"{{:.2f}}× {times}"))
    return lines
