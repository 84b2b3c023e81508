"""Run by the Python of .venv-peers: files in OpenVINO and in ONNX Runtime, and NNCF's own. Prints JSON.

Needs numpy, onnx, onnxruntime, openvino and nncf only. The file that it is given holds a list of jobs: `files` by name,
`test` and `calibration` archives (or null: then inputs are made up and only time is taken), and `nncf`, the float file
that NNCF is to quantize, or null.

    .venv-peers/bin/python benchmarks/other_runtimes.py JOBS.json
"""

import contextlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov

RUNS = 5
RUN_S = 1.0
MADE_UP = 64  # images for NNCF where there are none


def in_onnxruntime(path):
    """A function from one input to logits, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def in_openvino(path, **more):
    """The same in OpenVINO."""
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, **more}
    request = ov.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def run(x):
        request.infer([x], share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    return run


def in_full_precision(path):
    """OpenVINO without bfloat16, which it takes for all float arithmetic on CPUs that have it, unless told not to."""
    return in_openvino(path, INFERENCE_PRECISION_HINT="f32")


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino, "openvino in float32": in_full_precision}


def turn(running, one):
    """Milliseconds of three runs."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        running(one)
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def medians(running, one):
    """The median over five runs of each one's median milliseconds, all taking turns."""
    found = {key: [] for key in running}
    for _ in range(RUNS):
        times = {key: [] for key in running}
        began = time.perf_counter()
        while not all(times.values()) or time.perf_counter() - began < RUN_S * len(running) / 2:
            for key in (*running, *reversed(running)):
                times[key] += turn(running[key], one)
        for key in running:
            found[key].append(np.median(times[key]))
    return {key: float(np.median(values)) for key, values in found.items()}


def with_nncf(path, images):
    """NNCF's post-training quantization of an ONNX file, with its defaults; the file beside it."""
    import nncf

    model = onnx.load(path)
    name = model.graph.input[0].name
    dataset = nncf.Dataset([{name: images[i : i + 1]} for i in range(len(images))])
    target = Path(path).with_suffix(".nncf.onnx")
    onnx.save(nncf.quantize(model, dataset, subset_size=len(images)), target)
    return str(target)


def try_job(job):
    """Accuracy, agreement of the two runtimes, size and latency of every file of a job."""
    files, errors = dict(job["files"]), {}
    shape = [d.dim_value for d in onnx.load(job["files"]["float"]).graph.input[0].type.tensor_type.shape.dim]
    made_up = np.random.default_rng(0).standard_normal((MADE_UP, *shape[1:])).astype(np.float32)
    tested = np.load(job["test"]) if job["test"] else None
    images = np.load(job["calibration"])["inputs"] if job["calibration"] else made_up
    if job["nncf"]:
        try:
            files["nncf"] = with_nncf(job["nncf"], images)
        except Exception as error:  # noqa: BLE001 - the line says why
            errors["nncf"] = f"NNCF fails: {first_line(error)}"
    running, found = {}, {}
    for name, path in files.items():
        found[name] = {"bytes": Path(path).stat().st_size, "logits": {}}
        for runtime, start in RUNTIMES.items():
            try:
                started = start(path)
                started(made_up[:1])
                if tested is not None:
                    found[name]["logits"][runtime] = np.concatenate([started(x[None]) for x in tested["inputs"]])
                running[name, runtime] = started
            except Exception as error:  # noqa: BLE001 - the line says why
                errors[f"{name} in {runtime}"] = first_line(error)
    times = medians(running, made_up[:1])
    for name, figures in found.items():
        logits = figures.pop("logits")
        figures["latency_ms"] = {runtime: times[name, runtime] for runtime in RUNTIMES if (name, runtime) in times}
        predicted = {runtime: values.argmax(1) for runtime, values in logits.items()}
        if tested is not None:
            labels = tested["labels"]
            figures["top1"] = {runtime: 100 * float((p == labels).mean()) for runtime, p in predicted.items()}
        if len(predicted) == len(RUNTIMES):
            ours = predicted.pop("onnxruntime")
            figures["agreement"] = {runtime: 100 * float((ours == p).mean()) for runtime, p in predicted.items()}
    return {"files": found, "errors": errors}


def first_line(error):
    """What an error says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]


def main():
    """Try every job; NNCF's own talk goes to the error output."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        found = [try_job(job) for job in jobs]
    print(json.dumps({"openvino": ov.__version__, "onnxruntime": ort.__version__, "jobs": found}))


if __name__ == "__main__":
    main()
