"""The same files in OpenVINO, and NNCF's post-training file of MobileNetV2, measured by the Python of .venv-peers."""

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lines import Line, at_least
from quantization_files import files_of

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
AGREEMENT = 99.5
KINDS = ("float", "ptq", "qat", "lsq")
NOT_THERE = "not measured: make .venv-peers first (`make bench-quantization` does)"


def openvino_lines(
    trained: Iterable[Path], size: int, folder: Path, *, nncf: bool, python: Path | None = None
) -> list[Line]:
    """Agreement and latency of trained nets' files in OpenVINO, and of MobileNetV2's at the published size.

    `trained` are the folders in which the accuracy part left files and test images. With `nncf` its post-training
    file of each MobileNetV2 stands beside ours.
    """
    python = python or PEERS_PYTHON
    if not python.exists():
        return [Line("int8 files in OpenVINO", f"≥ {AGREEMENT:g}", NOT_THERE)]
    jobs = {each.name: of_trained(each, nncf and "mobilenet_v2" in each.name) for each in trained}
    files, _ = files_of("mobilenet_v2", size, folder)
    pair = {kind: str(files[kind]) for kind in ("float", "int8")}
    jobs[f"mobilenet_v2, {size} px"] = {
        "files": pair, "test": None, "calibration": None, "nncf": pair["float"] if nncf else None
    }  # fmt: skip
    listed = folder / "jobs.json"
    listed.write_text(json.dumps([*jobs.values()]))
    script = ROOT / "benchmarks" / "other_runtimes.py"
    done = subprocess.run([python, script, listed], capture_output=True, text=True, check=False)
    if done.returncode:
        return [Line("int8 files in OpenVINO", f"≥ {AGREEMENT:g}", done.stderr.strip().splitlines()[-1], False)]
    found = json.loads(done.stdout)
    lines = [Line("OpenVINO and ONNX Runtime beside it", "", f"{found['openvino']}, {found['onnxruntime']}")]
    for name, job in zip(jobs, found["jobs"], strict=True):
        lines += job_lines(name, job)
    return lines


def of_trained(folder: Path, nncf: bool) -> dict[str, Any]:
    """What to do with one trained net."""
    return {
        "files": {kind: str(folder / f"{kind}.onnx") for kind in KINDS},
        "test": str(folder / "test.npz"),
        "calibration": str(folder / "calibration.npz"),
        "nncf": str(folder / "float.onnx") if nncf else None,
    }


def job_lines(name: str, job: dict[str, Any]) -> list[Line]:
    """A line for agreement of each of our int8 files, and one with all figures of each file."""
    lines = []
    for kind, figures in job["files"].items():
        for runtime, agreement in figures.get("agreement", {}).items():
            # By default OpenVINO computes in bfloat16 where it can, float files too: then the file is not to blame.
            ours = kind not in ("float", "nncf") and runtime == "openvino in float32"
            title = f"{name}: {kind} file, {runtime} and ONNX Runtime agree, %"
            lines.append(at_least(title, agreement, AGREEMENT if ours else None))
        said = [f"{figures['bytes']:,} bytes"]
        said += [f"{value:.2f} ms in {runtime}" for runtime, value in figures["latency_ms"].items()]
        said += [f"top-1 {value:.2f} in {runtime}" for runtime, value in figures.get("top1", {}).items()]
        lines.append(Line(f"{name}: {kind} file", "", ", ".join(said)))
    return lines + [Line(f"{name}: {what}", "", error) for what, error in job["errors"].items()]
