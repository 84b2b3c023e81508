"""What plans hold, and what making them costs: the MACs target on every family, time, and images read."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lines import Line, at_most
from quantization_files import NETS, untrained

from compress.data import DATASETS
from compress.data.base import Data, Split
from compress.edits.macs import count_macs
from compress.pruning.channels import prune_channels
from compress.pruning.sensitivity import Analysis
from compress.pruning.sensitivity_table import Table

FAMILY_SIZE = 64  # pixels
KEEP = (0.7, 0.5, 0.3)
LEAST = 0.98
PLAN_S = 20.0


def family_lines() -> list[Line]:
    """Every family, to three shares of its MACs: at most the target, at least 98 % of it, aligned."""
    lines = []
    for name in NETS:
        net = untrained(name, FAMILY_SIZE)
        found = []
        for keep in KEEP:
            pruned = prune_channels(net.module, net.example(1), keep_macs=keep)
            assert pruned.macs == count_macs(pruned.module, net.example(1))
            found.append((pruned.macs / pruned.dense_macs / keep, pruned.align))
        said = "  ".join(f"{100 * share:.1f} % (×{align})" for share, align in found)
        ok = all(LEAST <= share <= 1 for share, _ in found)
        title = f"{name}: MACs against a target of {', '.join(f'{keep:g}' for keep in KEEP)}"
        lines.append(Line(title, "98–100 %", said, ok))
    return lines


def plan_time_lines(size: int) -> list[Line]:
    """Seconds to find and make MobileNetV2's plan, nothing trained."""
    net = untrained("mobilenet_v2", size)
    began = time.perf_counter()
    prune_channels(net.module, net.example(1), keep_macs=0.5)
    return [at_most("mobilenet_v2: seconds to plan and cut half the MACs", time.perf_counter() - began, PLAN_S)]


class Counted:
    """Images that count how often each was asked for."""

    def __init__(self, split: Split) -> None:
        self.images = split.images
        self.times = np.zeros(len(split), np.int64)

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        np.add.at(self.times, indices, 1)
        return self.images[indices]


def sensitivity_lines(*, quick: bool) -> list[Line]:
    """Fifty layers of ResNet50 by ten ratios: how often an image is loaded, rows a second, and rows after a break."""
    size, samples = (32, 20) if quick else (32, 100)
    net = untrained("resnet50", size, classes=10)
    given: Data = DATASETS["synthetic"].model_validate({"size": size, "classes": 10, "samples": samples})(0)  # type: ignore[attr-defined]
    counted = Counted(given.val)
    data = replace(given, val=Split(counted, given.val.labels))
    ratios = [round(0.09 * i, 2) for i in range(1, 11)]
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sensitivity.csv"
        began = time.perf_counter()
        rows = Analysis(net, data, cpu, ratios=ratios, by=("layers",), images=samples).rows(Table(path))
        seconds = time.perf_counter() - began
        layers = len({row.name for row in rows if row.kind == "layer"})
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:5])  # as a kill leaves it
        again: list[int] = []
        analysis = Analysis(net, data, cpu, ratios=ratios, by=("layers",), images=samples)
        analysis.rows(Table(path), lambda row, done, total: again.append(done))
        same = path.read_text().splitlines(keepends=True) == lines
    most = int(counted.times.max())
    return [
        Line("sensitivity: layers of resnet50 × ratios", "≥ 50 × 10", f"{layers} × {len(ratios)}", layers >= 50),
        Line("sensitivity: times an image is loaded in one analysis", "1", str(most // 2), most == 2),
        Line("sensitivity: seconds for all", "", f"{seconds:.0f} ({len(rows) / seconds:.1f} rows/s)"),
        Line(
            "sensitivity: rows measured again after a kill half way", f"{len(rows) - (len(lines) // 2 - 1)}",
            f"{len(again)}, the file the same: {'yes' if same else 'no'}", len(again) <= len(rows) // 2 + 2 and same,
        ),
    ]  # fmt: skip
