"""Pruning's promises, measured: `make bench-pruning`.

Parts, each with its lines: `speed` (half the MACs of MobileNetV2 at 224 px, our aligned plan against Torch-Pruning's
own at equal MACs, and against the dense net: medians of five interleaved runs, float and int8), `latency` (files of
nets pruned to a latency), `macs` (the target on every family, and the time to plan), `sensitivity` (what an analysis of
fifty layers reads), and `accuracy` (three seeds on digits and on a subset of CIFAR-100, half the MACs, with recovery).
Prints a table against the bounds, writes benchmarks/pruning.json, and exits 1 if one is missed. Float nets of the
accuracy part are kept in benchmarks/cache/.

    python benchmarks/pruning.py [--only PART] [--cifar PATH] [--quick]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from lines import Line, conclude
from pruning_accuracy import accuracy_lines
from pruning_plans import family_lines, plan_time_lines, sensitivity_lines
from pruning_speed import latency_lines, speed_lines

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "pruning.json"
CACHE = ROOT / "benchmarks" / "cache"
PARTS = ("speed", "latency", "macs", "sensitivity", "accuracy")
SIZE, QUICK_SIZE = 224, 64


def main() -> None:
    """Measure what is asked for, print the table, write the record."""
    chosen = options()
    lines: list[Line] = []
    for part in [chosen.only] if chosen.only else PARTS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="compress-bench-") as folder:
            lines += measure(part, chosen, Path(folder))
        print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    sys.exit(conclude(lines, None if chosen.quick else RECORD))


def options() -> argparse.Namespace:
    """What the command line asks for."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--only", choices=PARTS, help="measure this part and keep the other lines of the record")
    known.add_argument("--cifar", type=Path, help="CIFAR-100: an .npz archive, or the folder of torchvision's")
    known.add_argument("--quick", action="store_true", help="try the flow in a minute or two; nothing is recorded")
    return known.parse_args()


def measure(part: str, chosen: argparse.Namespace, folder: Path) -> list[Line]:
    """The lines of one part."""
    size = QUICK_SIZE if chosen.quick else SIZE
    if part == "speed":
        return speed_lines(size, folder, runs=1 if chosen.quick else 5)
    if part == "latency":
        return latency_lines(["mobilenet_v2"] if chosen.quick else ["mobilenet_v2", "resnet50"], size, folder)
    if part == "macs":
        return family_lines() + plan_time_lines(size)
    if part == "sensitivity":
        return sensitivity_lines(quick=chosen.quick)
    return accuracy_lines(CACHE, chosen.cifar, quick=chosen.quick)


if __name__ == "__main__":
    main()
