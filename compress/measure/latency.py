"""How long a file takes here, fairly: all files take turns, so that the machine's mood hits all alike."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from compress.errors import ExportError
from compress.measure.accuracy import Z_95
from compress.measure.file import fixed_batch, session
from compress.row import Control, Distribution, Latency

WARM_UP_S = 0.2
TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
}
TURN_S = 0.02  # a net's turn in a round: as many runs as fit, at least one
MIN_RUNS = 3
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
CONTROL = ""  # the name of the file that runs twice; no net has an empty one


def input_for(net: ort.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    """Fixed pseudo-random inputs of the shapes and types that a session wants, open dimensions but the first as 224.

    A file of a fixed batch size gets that many images where `batch` is a multiple of it.
    """
    random = np.random.default_rng(0)
    feed = {}
    for wanted in net.get_inputs():
        shape = [d if isinstance(d, int) else 224 for d in wanted.shape]
        shape[:1] = [batch // runs_for(net, batch)] if shape else []
        kind: np.dtype[Any] = TYPES.get(wanted.type, np.dtype(np.float32))
        whole = random.integers(0, 256 if kind == np.uint8 else 2, shape)
        values = random.standard_normal(shape) if kind.kind == "f" else whole
        feed[wanted.name] = np.asarray(values).astype(kind)
    return feed


def runs_for(net: ort.InferenceSession, batch: int) -> int:
    """How often a file must be run for so many images: more than once where it insists on fewer at a time."""
    fixed = fixed_batch(net)
    return batch // fixed if fixed and batch % fixed == 0 else 1


def measure_latency(
    files: Mapping[str, Path], *, threads: int, batch: int, rounds: int
) -> dict[str, tuple[Latency, np.ndarray]]:
    """Milliseconds for `batch` images in each file, by name, with all single times (runs,).

    That is one run, but for files of a smaller fixed batch size, which are run as often as it takes.

    After a warm-up the files take turns for `rounds` rounds; in a turn a file runs for 20 ms, at least three times,
    in an order that is reversed every other round. Raises ExportError where a file cannot be run at this batch size.
    """
    return {name: _summed_up(turns) for name, turns in _in_turns(files, threads, batch, rounds).items()}


def measure_with_control(
    files: Mapping[str, Path], *, again: str, threads: int, batch: int, rounds: int
) -> tuple[dict[str, tuple[Latency, np.ndarray]], Control]:
    """The same, with the file named `again` a second time beside itself, to tell what equal files differ by."""
    beside: dict[str, Path] = {}
    for name, path in files.items():
        beside |= {name: path} | ({CONTROL: path} if name == again else {})
    turns = _in_turns(beside, threads, batch, rounds)
    measured = {name: _summed_up(its) for name, its in turns.items()}
    second, _ = measured.pop(CONTROL)
    ratio = second.p50 / measured[again][0].p50
    return measured, Control(again, ratio, noise_of(turns[again], turns[CONTROL]))


def noise_of(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """The share by which two medians of equal files may differ, from each one's times, turn by turn."""
    logs = [math.log(np.median(b) / np.median(a)) for a, b in zip(first, second, strict=True)]
    spread = Z_95 * float(np.std(logs, ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return math.exp(abs(float(np.mean(logs))) + spread) - 1


def distribution(net: str, times: np.ndarray) -> Distribution:
    """How all single times (runs,) in milliseconds are spread."""
    low, fifth, quarter, half, three, ninety_five, high = np.percentile(times, PERCENTILES).tolist()
    return Distribution(net, (low, fifth, quarter, half, three, ninety_five, high), len(times))


def percentiles(milliseconds: Sequence[float] | np.ndarray) -> Latency:
    """The median, 90th and 99th percentile (linear interpolation)."""
    p50, p90, p99 = np.percentile(np.array(milliseconds), [50, 90, 99])
    return Latency(float(p50), float(p90), float(p99))


def _summed_up(turns: Sequence[Sequence[float]]) -> tuple[Latency, np.ndarray]:
    times = np.concatenate([*map(np.array, turns)])
    return percentiles(times), times


def _turn(net: ort.InferenceSession, feed: dict[str, np.ndarray], runs: int, seconds: float) -> list[float]:
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < MIN_RUNS or time.perf_counter() - began < seconds:
        start = time.perf_counter_ns()
        for _ in range(runs):
            net.run(None, feed)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return taken


def _in_turns(files: Mapping[str, Path], threads: int, batch: int, rounds: int) -> dict[str, list[list[float]]]:
    """Each file's milliseconds, a list for each of its turns."""
    nets = {name: session(path, threads) for name, path in files.items()}
    feeds = {name: (input_for(net, batch), runs_for(net, batch)) for name, net in nets.items()}
    for name, net in nets.items():
        try:
            _turn(net, *feeds[name], WARM_UP_S)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ExportError(f"{files[name]} cannot be run with a batch of {batch}: {reason}") from error
    times: dict[str, list[list[float]]] = {name: [] for name in nets}
    for i in range(rounds):
        for name in reversed(nets) if i % 2 else nets:
            times[name].append(_turn(nets[name], *feeds[name], TURN_S))
    return times
