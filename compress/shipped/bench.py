#!/usr/bin/env python3
"""Benchmarks and verifies the ONNX files beside it on the device itself, and writes the figures as JSON.

It needs Python 3.8 or later, numpy and onnxruntime, and nothing else. Copy the folder to the device, and there

    python3 bench.py --out pi.json

Every file is fed the inputs of reference.npz and compared with what it gave where it was made; then all files take
turns, so that the device's mood hits all alike. The first file runs a second time as a control: what the two differ by
is noise. `compress report RUN --device pi.json` puts the figures into the run's report.

It ends with 0 where all is well, with 1 where a file predicts something else than where it was made or cannot be run,
and with 2 where it was called wrongly or something is missing.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import platform
import sys
import time
import zipfile
import zlib
from typing import Any, NamedTuple

try:
    import numpy as np
    import onnxruntime as ort
except ImportError as error:
    sys.stderr.write(f"error: {error}; `python3 -m pip install numpy onnxruntime` brings both\n")
    sys.exit(2)

VERSION = 1  # of the JSON's form
CHANGED, USAGE = 1, 2  # exit codes
HERE = os.path.dirname(os.path.abspath(__file__))
# How far a file's logits may be from those where it was made, by whether it computes in int8: signal-to-noise in dB.
# Devices sum and round in other orders, which int8 shows far more.
LEAST_DB = {False: 40.0, True: 20.0}
# Another class is no fault where the two best logits were closer than this share of all logits' range.
TIE = {False: 0.01, True: 0.1}
CONTROL = "control"
MOST_DB = 200.0  # what equal logits count as
WARM_UP_S, TURN_S, MIN_RUNS = 0.2, 0.02, 3
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
# What decides the speed of kernels on x64 and on Arm.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
# Arm's numbers of its cores, by which /proc/cpuinfo names them (Arm's Main ID Register, implementer 0x41).
ARM_CORES = {
    "0xb76": "ARM1176", "0xc07": "Cortex-A7", "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57", "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2",
}  # fmt: skip


class Wrong(Exception):
    """What a user can mend, in one sentence."""


def main(words: list[str] | None = None) -> int:
    """Measure, verify, write; gives the exit code."""
    parser = argparse.ArgumentParser(description="Benchmark and verify the ONNX files beside this script.")
    parser.add_argument("files", nargs="*", help="files to take; default all *.onnx here and in alternatives/")
    parser.add_argument("--out", default="device.json", help="where to write the JSON; default device.json")
    parser.add_argument("--name", help="what the report calls this device; default its model")
    parser.add_argument("--threads", type=positive, default=1, help="threads of ONNX Runtime; default 1")
    parser.add_argument("--batch", type=positive, default=1, help="images a run; default 1")
    parser.add_argument("--rounds", type=positive, default=30, help="rounds in which the files take turns; default 30")
    chosen = parser.parse_args(words)
    try:
        found = measured(chosen)
        with open(chosen.out, "w", encoding="utf-8") as file:
            file.write(json.dumps(found, indent=1, allow_nan=False) + "\n")
    except Wrong as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    except OSError as error:
        sys.stderr.write(f"error: {error.filename}: {error.strerror}\n")
        return USAGE
    show(found, chosen.out)
    return CHANGED if any(each["verified"] is False for each in found["files"]) else 0


def positive(text: str) -> int:
    """A whole number of one or more."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything that the JSON says; raises Wrong, and OSError for a file that cannot be read."""
    paths = {name_of(path): path for path in chosen.files or files_here()}
    reference = Reference(os.path.join(HERE, "reference.npz"))
    before, files, sessions = state(), [], {}
    for name, path in paths.items():
        each: dict[str, Any] = {"file": name, "sha256": sha256(path), "bytes": os.path.getsize(path)}
        try:
            session = opened(path, chosen.threads)
            each.update(reference.verdict(name, each["sha256"], session))
            timed = Timed(session, *made_up(session, chosen.batch))
            turn(timed, WARM_UP_S)
            sessions[name] = timed
        except Exception as error:  # noqa: BLE001 - the runtime's own exceptions share no base class but this
            each.update(verified=False, said="it cannot be run here: " + " ".join(str(error).split()))
        files.append(each)
    first = next(iter(sessions), None)
    if first is not None:
        sessions[CONTROL] = sessions[first]._replace(session=opened(paths[first], chosen.threads))
        turn(sessions[CONTROL], WARM_UP_S)
    times = in_turns(sessions, chosen.rounds)
    for each in files:
        if each["file"] in times:
            each.update(figures(times[each["file"]], chosen.batch))
    return {
        "compress_device": VERSION,
        "device": device(chosen.name),
        "state": {"before": before, "after": state()},
        "settings": {"threads": chosen.threads, "batch": chosen.batch, "rounds": chosen.rounds},
        "reference": reference.source,
        "files": files,
        "control": controlled(first, times),
    }


def files_here() -> list[str]:
    """The ONNX files beside this script and in alternatives/, the baseline first; raises Wrong where there are none."""
    found = sorted(glob.glob(os.path.join(glob.escape(HERE), "*.onnx")))
    found += sorted(glob.glob(os.path.join(glob.escape(HERE), "alternatives", "*.onnx")))
    if not found:
        raise Wrong(f"there is no .onnx file in {HERE}; copy the whole models folder, or name files")
    return sorted(found, key=lambda path: name_of(path) != "baseline.onnx")


def name_of(path: str) -> str:
    """A file's path as the run knows it, from this script's folder on."""
    return os.path.relpath(os.path.abspath(path), HERE).replace(os.sep, "/")


def sha256(path: str) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def opened(path: str, threads: int) -> Any:
    """An ONNX Runtime session on the CPU, as the run measured."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Reference:
    """What every file gave where it was made, out of reference.npz; without that file nothing is verified."""

    def __init__(self, path: str) -> None:
        self.source, self.files, self.arrays = "none", {}, {}  # type: str, dict[str, Any], dict[str, Any]
        if not os.path.exists(path):
            return
        try:
            with open(path, "rb") as file:
                found = np.load(file, allow_pickle=False)
                self.arrays = {key: found[key] for key in found.files}
            about = json.loads(str(self.arrays.pop("about")))
            self.source, self.files = str(about["inputs"]), dict(about["files"])
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise Wrong(f"{path} is damaged ({error}); copy the folder again") from None

    def verdict(self, name: str, digest: str, session: Any) -> dict[str, Any]:
        """Whether a file is what the run wrote and predicts what it predicted there; None where nothing is known."""
        known = self.files.get(name)
        if known is None:
            said = "reference.npz does not know this file" if self.files else "there is no reference.npz here"
            return {"verified": None, "said": said}
        if digest != known["sha256"]:
            return {"verified": False, "said": "the file is not the one that the run wrote; copy it again"}
        expected = self.arrays[known["logits"]]
        return judged(expected, run_all(session, self.arrays[known["inputs"]]), bool(known["int8"]))


def judged(expected: Any, found: Any, int8: bool) -> dict[str, Any]:
    """The comparison of logits (n, classes): signal-to-noise, classes that stayed, and whether that is good enough."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return {"verified": False, "said": "its outputs have another shape, or numbers that are not finite"}
    exact = centred(expected)
    db = decibels(exact, centred(found) - exact)
    same = expected.argmax(1) == found.argmax(1)
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > TIE[int8] * (best[:, -1] - best[:, 0])
    changed = int((~same & clear).sum())
    figures = {"images": len(same), "same_class": int(same.sum()), "signal_to_noise_db": db}
    equal = "the same logits" if db == MOST_DB else f"logits {db:.0f} dB"
    said = f"{same.sum()} of {len(same)} images get the same class, {equal}"
    if changed:
        said += f"; {changed} were no close call"
    if db < LEAST_DB[int8]:
        said += f"; {LEAST_DB[int8]:.0f} dB are needed"
    return dict(figures, verified=not changed and db >= LEAST_DB[int8], said=said)


def centred(logits: Any) -> Any:
    """Logits without what is common to all classes, which changes no probability."""
    return logits.astype(np.float64) - logits.astype(np.float64).mean(axis=1, keepdims=True)


def decibels(signal: Any, noise: Any) -> float:
    """The ratio of two powers, between -MOST_DB and MOST_DB."""
    powers = float((signal**2).sum()), float((noise**2).sum())
    if powers[1] == 0:
        return MOST_DB
    ratio = 10 * float(np.log10(max(powers[0], 1e-300) / powers[1]))
    return max(min(ratio, MOST_DB), -MOST_DB)


def run_all(session: Any, images: Any) -> Any:
    """A file's logits for all images; one of a fixed batch size is fed that many at a time, the last ones repeated."""
    name, size = session.get_inputs()[0].name, fixed_batch(session) or len(images)
    parts = []
    for begin in range(0, len(images), size):
        part = images[begin : begin + size]
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        parts.append(session.run(None, {name: filled})[0][: len(part)])
    return np.concatenate(parts)


def fixed_batch(session: Any) -> int | None:
    """The batch size that a file insists on, None where it takes any."""
    size = session.get_inputs()[0].shape[0]
    return size if isinstance(size, int) else None


class Timed(NamedTuple):
    """A session with what it is fed, and how many runs make up a batch."""

    session: Any
    feed: dict[str, Any]
    runs: int


def made_up(session: Any, batch: int) -> tuple[dict[str, Any], int]:
    """Fixed pseudo-random inputs for a run, and how many runs make up a batch."""
    wanted, fixed = session.get_inputs()[0], fixed_batch(session)
    runs = batch // fixed if fixed and batch % fixed == 0 else 1
    kind = TYPES.get(wanted.type, np.float32)
    random = np.random.RandomState(0)  # the same numbers in every version of numpy
    shape = [batch // runs] + [size if isinstance(size, int) else 224 for size in wanted.shape[1:]]
    values = random.randint(0, 128, shape) if "int8" in wanted.type else random.standard_normal(shape)
    return {wanted.name: values.astype(kind)}, runs


def in_turns(sessions: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every batch, by file; the files take turns in an order that is reversed every other round."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(rounds):
        for name in reversed(list(sessions)) if i % 2 else list(sessions):
            times[name] += turn(sessions[name], TURN_S)
    return times


def turn(timed: Timed, seconds: float) -> list[float]:
    """As many batches as fit the time, at least three; milliseconds of each."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < MIN_RUNS or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(timed.runs):
            timed.session.run(None, timed.feed)
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def figures(times: list[float], batch: int) -> dict[str, Any]:
    """Percentiles and throughput."""
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return {
        "latency_ms": {"p50": p50, "p90": p90, "p99": p99},
        "runs": len(times),
        "throughput": 1000 * batch / p50,
    }


def controlled(first: str | None, times: dict[str, list[float]]) -> dict[str, Any] | None:
    """What the first file took a second time, as a share of what it took: how far from 1, so noisy is the device."""
    if first is None:
        return None
    return {"file": first, "ratio": float(np.median(times[CONTROL]) / np.median(times[first]))}


def device(name: str | None) -> dict[str, Any]:
    """What the machine is."""
    model = read("/proc/device-tree/model").strip("\0 \n")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": name or model or cpu(),
        "model": model or None,
        "cpu": cpu(),
        "flags": flags(),
        "cores": cores,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
    }


def cpu() -> str:
    """The processor's name; of Arm's cores each kind's."""
    about = cpuinfo()
    for key in ("model name", "Hardware"):
        if about.get(key):
            return about[key][0]
    parts = [ARM_CORES.get(part, "Arm part " + part) for part in about.get("CPU part", ())]
    return ", ".join(dict.fromkeys(parts)) or platform.processor() or platform.machine()


def flags() -> list[str]:
    """Those of FLAGS that every core has."""
    about = cpuinfo()
    per_core = [set(line.split()) for line in about.get("flags") or about.get("Features") or ()]
    return [flag for flag in FLAGS if per_core and all(flag in each for each in per_core)]


def cpuinfo() -> dict[str, list[str]]:
    """The lines of /proc/cpuinfo, by key."""
    found: dict[str, list[str]] = {}
    for line in read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), []).append(value.strip())
    return found


def state() -> dict[str, Any]:
    """What may slow the machine down: clock, governor, the hottest sensor; None where the system does not tell."""
    cores = "/sys/devices/system/cpu/cpu*/cpufreq/"
    clocks = [int(text) / 1000 for text in contents(cores + "scaling_cur_freq") if text.isdigit()]
    heat = [int(text) / 1000 for text in contents("/sys/class/thermal/thermal_zone*/temp") if text.isdigit()]
    return {
        "clock_mhz": max(clocks, default=None),
        "governor": ", ".join(sorted(set(contents(cores + "scaling_governor")))) or None,
        "temperature_c": max((each for each in heat if 0 < each < 150), default=None),
    }


def contents(pattern: str) -> list[str]:
    """The text of every file of a pattern."""
    return [text for text in (read(path).strip() for path in sorted(glob.glob(pattern))) if text]


def read(path: str) -> str:
    """The text of a file, empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def show(found: dict[str, Any], out: str) -> None:
    """Print the figures as a table."""
    about, marks = found["device"], {True: "ok", False: "CHANGED", None: "not checked"}
    width = max(len(each["file"]) for each in found["files"])
    lines = [f"{about['name']}: {about['cpu']}; threads: {found['settings']['threads']}", ""]
    lines.append(f"{'file':{width}}   p50 ms   p90 ms   p99 ms  verified")
    for each in found["files"]:
        cells = "".join(f" {value:8.2f}" for value in each.get("latency_ms", {}).values()) or " " * 27
        lines.append(f"{each['file']:{width}}{cells}  {marks[each['verified']]}: {each['said']}")
    if found["control"]:
        lines += ["", f"the first file measured twice: {found['control']['ratio']:.3f} times its own latency"]
    sys.stdout.write("\n".join([*lines, f"written: {out}", ""]))


if __name__ == "__main__":
    sys.exit(main())
