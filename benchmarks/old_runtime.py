"""Run by the Python of .venv-old: what an old ONNX Runtime makes of a run's int8 file. Prints JSON.

Needs numpy, onnx and onnxruntime only.

    .venv-old/bin/python benchmarks/old_runtime.py RUN
"""

import csv
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


def session(path, optimized=None):
    """A session on one thread; `optimized` is where to write the graph that really runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def milliseconds(running, feed, runs=200):
    """The median time of a run."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        running.run(None, feed)
        taken.append(1000 * (time.perf_counter() - began))
    return float(np.median(taken[20:]))


def main():
    """Count operators, compare predictions, time int8 against float."""
    folder = Path(sys.argv[1])
    report = json.loads((folder / "report.json").read_text())
    last = report["rows"][-1]
    baseline = next(row for row in report["rows"] if row["net"] == report["baseline"])
    with tempfile.TemporaryDirectory() as temporary:
        optimized = Path(temporary) / "optimized.onnx"
        running = session(folder / last["onnx"], optimized)
        operators = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    inputs = np.load(folder / "test.npz")["inputs"]
    name = running.get_inputs()[0].name
    predicted = np.concatenate(
        [running.run(None, {name: inputs[i : i + 64]})[0] for i in range(0, len(inputs), 64)]
    ).argmax(1)
    with open(folder / "predictions" / f"{last['net']}.csv", newline="") as file:
        here = np.array([int(row["onnx"]) for row in csv.DictReader(file)])
    one = {name: inputs[:1]}
    print(json.dumps({
        "version": ort.__version__,
        "operators": dict(operators),
        "agreement": 100 * float((predicted == here).mean()),
        "speed": milliseconds(session(folder / baseline["onnx"]), one) / milliseconds(running, one),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
