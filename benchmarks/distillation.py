"""Distillation's promises, measured: `make bench-distillation`.

Parts, each with its lines: `speed` (the half-width MobileNetV2 learning from ResNet50's kept logits, and learning
alone, against loops as the papers' code has them, taking turns; a few minutes) and `accuracy` (what every form gains
over the student alone on digits and on 10,000 images of CIFAR-100, several seeds; hours where nothing is kept, and it
goes on where it was stopped). Prints a table against the bounds, writes benchmarks/distillation.json, and exits 1 if
one is missed. Teachers, their logits and single results are kept in benchmarks/cache/. What needs a GPU is in
distillation_gpu.py.

    python benchmarks/distillation.py [--only PART] [--cifar PATH] [--forms F …] [--seeds N …] [--epochs N] [--quick]
"""

import argparse
import sys
import time
from pathlib import Path

from distillation_accuracy import SEEDS, Wanted, accuracy_lines
from distillation_forms import ALONE, forms
from distillation_speed import speed_lines
from lines import Line, conclude

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "distillation.json"
CACHE = ROOT / "benchmarks" / "cache"
PARTS = ("speed", "accuracy")


def main() -> None:
    """Measure what is asked for, print the table, write the record."""
    chosen = options()
    lines: list[Line] = []
    for part in [chosen.only] if chosen.only else PARTS:
        began = time.perf_counter()
        lines += measure(part, chosen)
        print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    sys.exit(conclude(lines, None if chosen.quick else RECORD))


def options() -> argparse.Namespace:
    """What the command line asks for."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--only", choices=PARTS, help="measure this part and keep the other lines of the record")
    known.add_argument("--cifar", type=Path, help="CIFAR-100: an .npz archive, or the folder of torchvision's")
    taught = [name for name in forms() if name != ALONE]
    known.add_argument("--forms", nargs="+", choices=taught, help="the forms of the accuracy part (default: all)")
    known.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of the accuracy part")
    known.add_argument("--epochs", type=int, help="of the students in the accuracy part")
    known.add_argument("--quick", action="store_true", help="try the flow in a minute or two; nothing is recorded")
    return known.parse_args()


def measure(part: str, chosen: argparse.Namespace) -> list[Line]:
    """The lines of one part."""
    if part == "speed":
        return speed_lines(quick=chosen.quick)
    seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
    return accuracy_lines(Wanted(CACHE, chosen.cifar, chosen.forms, seeds, chosen.epochs, chosen.quick))


if __name__ == "__main__":
    main()
