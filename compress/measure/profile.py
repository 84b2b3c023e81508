"""Where a file's time goes, layer by layer, as ONNX Runtime's own profiler sees it."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto

from compress.export.reading import LAYERS
from compress.measure.latency import input_for, runs_for

WARM_UP, RUNS = 3, 20
SUFFIX = "_kernel_time"
FUSED = ("Relu", "Clip", "HardSigmoid", "Sigmoid", "LeakyRelu", "QuantizeLinear", "DequantizeLinear", "Identity")
ADDED = re.compile(r"(_token_\d+|_nchwc|_quant)$")  # what the runtime's optimiser puts behind names


def layer_times(file: Path, *, threads: int, batch: int, runs: int = RUNS) -> dict[str, float]:
    """Milliseconds for `batch` images in each layer, by the name of its node in the file; "" has all that is in none.

    For every node the median over `runs` runs. The profiler itself takes some time, so that the sum is a little more
    than a run without it.
    """
    layers = _layers_behind(onnx.load(file))
    singles: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for event in _events(file, Path(folder) / "profile", threads, batch, runs):
            if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
                singles.setdefault(event["name"].removesuffix(SUFFIX), []).append(event["dur"] / 1e3)
    times: dict[str, float] = {}
    for name, taken in singles.items():
        layer = layers.get(ADDED.sub("", name), "")
        times[layer] = times.get(layer, 0.0) + float(np.median(taken)) * round(len(taken) / (runs + WARM_UP))
    return times


def _events(file: Path, prefix: Path, threads: int, batch: int, runs: int) -> list[dict[str, Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.enable_profiling, options.profile_file_prefix = True, str(prefix)
    net = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed, times = input_for(net, batch), runs_for(net, batch)
    for _ in range((runs + WARM_UP) * times):
        net.run(None, feed)
    found: list[dict[str, Any]] = json.loads(Path(net.end_profiling()).read_text())
    return found


def _layers_behind(model: ModelProto) -> dict[str, str]:
    """The layer of every node name and tensor name that the runtime may call a layer's kernel by.

    That is the layer's own name, or its output or that of an activation behind it that was fused into it.
    """
    found: dict[str, str] = {}
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in LAYERS:
            layer = node.name
        else:
            data = [name for name in node.input if name and name not in stored and name in found]
            layer = found[data[0]] if len(data) == 1 and node.op_type in FUSED else ""
        found[node.name] = layer
        for output in node.output:
            found[output] = layer
    return found
