"""Quantization's promises, measured: `make bench-quantization`.

Parts, each with its lines: `latency` (int8 files against float and against ONNX Runtime's quantizer, all taking turns,
medians of five runs; the same files in ONNX Runtime 1.18), `size` (bytes and float convolutions; part of `latency`),
`step` (one training step with rounding against one float step), `accuracy` (three seeds on digits and on a subset of
CIFAR-100, figures of the files), `openvino` (the trained nets' files in OpenVINO) and `nncf` (the same with NNCF's
post-training file of MobileNetV2 beside). Prints a table against the bounds, writes benchmarks/quantization.json, and
exits 1 if one is missed. Half an hour on two cores that have nothing else to do; float nets of the accuracy part are
kept in benchmarks/cache/.

    python benchmarks/quantization.py [--only PART] [--nets NET …] [--cifar PATH] [--quick]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import quantization_accuracy as accuracy
from lines import Line, conclude
from quantization_files import NETS
from quantization_latency import latency_lines
from quantization_peers import openvino_lines
from quantization_step import step_lines

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "quantization.json"
CACHE = ROOT / "benchmarks" / "cache"
PARTS = ("latency", "accuracy", "step", "size", "openvino", "nncf")
SIZE, QUICK_SIZE = 224, 64


def main() -> None:
    """Measure what is asked for, print the table, write the record."""
    chosen = options()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="compress-bench-") as folder:
        for part in [chosen.only] if chosen.only else ["latency", "step", "accuracy", "nncf"]:
            began = time.perf_counter()
            lines += measure(part, chosen, Path(folder))
            print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    sys.exit(conclude(lines, None if chosen.quick else RECORD))


def options() -> argparse.Namespace:
    """What the command line asks for."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--only", choices=PARTS, help="measure this part and keep the other lines of the record")
    known.add_argument("--nets", nargs="+", choices=NETS, help="the nets of the latency, size and accuracy parts")
    known.add_argument("--cifar", type=Path, help="CIFAR-100: an .npz archive, or the folder of torchvision's")
    known.add_argument("--quick", action="store_true", help="try the flow in a minute or two; nothing is recorded")
    known.add_argument("--peers", type=Path, help="the Python that has openvino and nncf (default: .venv-peers)")
    chosen = known.parse_args()
    chosen.nets = chosen.nets or (["mobilenet_v2"] if chosen.quick else NETS)
    return chosen


def measure(part: str, chosen: argparse.Namespace, folder: Path) -> list[Line]:
    """The lines of one part."""
    size = QUICK_SIZE if chosen.quick else SIZE
    if part in ("latency", "size"):
        runs = {"runs": 1} if chosen.quick else {}
        return latency_lines(chosen.nets, size, folder, timed=part == "latency", **runs)
    if part == "step":
        return step_lines(quick=chosen.quick)
    given, lines = accuracy.sources(CACHE, chosen.cifar)
    if part == "accuracy":
        return accuracy.accuracy_lines(accuracy.results(CACHE, given, quick=chosen.quick, nets=chosen.nets)) + lines
    cache = CACHE / "quick" if chosen.quick else CACHE
    trained = [accuracy.folder_of(cache, data, net, 0) for data in given for net in accuracy.NETS]
    if not all((each / "result.json").exists() for each in trained):
        accuracy.results(CACHE, given, quick=chosen.quick)
    return openvino_lines(trained, size, folder, nncf=part == "nncf", python=chosen.peers)


if __name__ == "__main__":
    main()
