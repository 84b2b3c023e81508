"""Run by the Python of .venv-old: int8 against float files in an old ONNX Runtime. Prints JSON.

Needs numpy, onnx and onnxruntime only. The file that it is given holds {net: {"float": path, "int8": path}}.

    .venv-old/bin/python benchmarks/old_latency.py PAIRS.json
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from old_runtime import session

RUNS = 5
RUN_S = 1.0


def turn(running, feed):
    """Milliseconds of three runs."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        running.run(None, feed)
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def compare(pair):
    """The medians of five runs' medians, the two files taking turns."""
    with tempfile.TemporaryDirectory() as temporary:
        optimized = Path(temporary) / "optimized.onnx"
        running = {"int8": session(pair["int8"], optimized), "float": session(pair["float"])}
        operators = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    given = running["float"].get_inputs()[0]
    shape = [1, *given.shape[1:]]
    feed = {given.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for each in running.values():
        turn(each, feed)
    medians = {kind: [] for kind in running}
    for _ in range(RUNS):
        times = {kind: [] for kind in running}
        began = time.perf_counter()
        while not times["int8"] or time.perf_counter() - began < RUN_S:
            for kind in (*running, *reversed(running)):
                times[kind] += turn(running[kind], feed)
        for kind in running:
            medians[kind].append(np.median(times[kind]))
    return {"operators": operators, **{f"{kind}_ms": float(np.median(medians[kind])) for kind in running}}


def main():
    """Compare every pair."""
    pairs = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({name: compare(pair) for name, pair in pairs.items()}))


if __name__ == "__main__":
    main()
