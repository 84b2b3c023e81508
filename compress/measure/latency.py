"""How long a file takes here, fairly: all files take turns, so that the machine's mood hits all alike."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from compress.errors import ExportError
from compress.measure.file import fixed_batch, session
from compress.row import Latency

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
    nets = {name: session(path, threads) for name, path in files.items()}
    feeds = {name: (input_for(net, batch), runs_for(net, batch)) for name, net in nets.items()}
    for name, net in nets.items():
        try:
            _turn(net, *feeds[name], WARM_UP_S)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ExportError(f"{files[name]} cannot be run with a batch of {batch}: {reason}") from error
    times: dict[str, list[float]] = {name: [] for name in nets}
    for i in range(rounds):
        for name in reversed(nets) if i % 2 else nets:
            times[name] += _turn(nets[name], *feeds[name], TURN_S)
    return {name: (percentiles(values), np.array(values)) for name, values in times.items()}


def percentiles(milliseconds: Sequence[float]) -> Latency:
    """The median, 90th and 99th percentile (linear interpolation)."""
    p50, p90, p99 = np.percentile(np.array(milliseconds), [50, 90, 99])
    return Latency(float(p50), float(p90), float(p99))


def _turn(net: ort.InferenceSession, feed: dict[str, np.ndarray], runs: int, seconds: float) -> list[float]:
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < MIN_RUNS or time.perf_counter() - began < seconds:
        start = time.perf_counter_ns()
        for _ in range(runs):
            net.run(None, feed)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return taken
