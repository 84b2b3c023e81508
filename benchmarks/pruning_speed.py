"""How fast pruned nets are: against Torch-Pruning's own plan, against the dense net, and against a target."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch_pruning as tp
from lines import Line, at_least
from quantization_files import CALIBRATION, MEAN, STD, in_order, pictures, rounding, store, untrained
from torch import nn

from compress.data import DATASETS
from compress.data.base import Data
from compress.edits import Channels
from compress.edits.macs import count_macs
from compress.export.onnx import Export, Exporter
from compress.measure.latency import measure_latency
from compress.net import Net
from compress.pruning.channels import prune_channels
from compress.running.ending import FileEnding
from compress.stages import Env, Prune, Quantize
from compress.stages import untrained as without_training

KEEP = 0.5
SAME = 0.03  # plans within this share of each other's MACs are compared
AGAINST_UNROUNDED = {"float": 2.3, "int8": 1.6}
REALISED = {"float": 0.9, "int8": 0.8}
TARGETS = (("float", 0.5), ("int8", 0.6))
RUNS, ROUNDS = 5, 20


@dataclass(frozen=True)
class Files:
    """The files of one net by kind, `float` and `int8`, and its MACs."""

    paths: dict[str, Path]
    macs: int


def speed_lines(size: int, folder: Path, runs: int) -> list[Line]:
    """MobileNetV2 with half its MACs: our widths against unrounded ones, and the speed-up against the MACs saved."""
    dense = in_order(untrained("mobilenet_v2", size))
    example = dense.example(1)
    ours = prune_channels(dense.module, example, keep_macs=KEEP)
    theirs = unrounded(dense.module, example, ours.macs)
    nets = {"dense": dense.module, "ours": ours.module, "unrounded": theirs}
    exporter = Exporter(Export(), MEAN, STD)
    files = {name: written(dense, module, exporter, folder, name) for name, module in nets.items()}
    lines = [_same_macs(files)]
    for kind in ("float", "int8"):
        paths = {name: each.paths[kind] for name, each in files.items()}
        measured = [measure_latency(paths, threads=1, batch=1, rounds=ROUNDS) for _ in range(runs)]
        ms = {name: statistics.median(run[name][0].p50 for run in measured) for name in paths}
        faster = statistics.median(run["unrounded"][0].p50 / run["ours"][0].p50 for run in measured)
        words = f"{{:.2f}}× ({ms['unrounded']:.2f} → {ms['ours']:.2f} ms; dense {ms['dense']:.2f})"
        title = f"mobilenet_v2, half the MACs, {kind}: times as fast as unrounded widths"
        lines.append(at_least(title, faster, AGAINST_UNROUNDED[kind], words))
        speedup = statistics.median(run["dense"][0].p50 / run["ours"][0].p50 for run in measured)
        saved = files["dense"].macs / files["ours"].macs
        words = f"{{:.2f}} ({speedup:.2f}× as fast with {saved:.2f}× fewer MACs)"
        title = f"mobilenet_v2, half the MACs, {kind}: speed-up against MACs saved"
        lines.append(at_least(title, speedup / saved, REALISED[kind], words))
    return lines


def _same_macs(files: dict[str, Files]) -> Line:
    apart = abs(files["unrounded"].macs / files["ours"].macs - 1)
    said = f"{100 * apart:.1f} % ({files['ours'].macs / 1e6:.0f} and {files['unrounded'].macs / 1e6:.0f} MMAC)"
    return Line("mobilenet_v2: the two plans' MACs apart", f"≤ {100 * SAME:g} %", said, apart <= SAME)


def unrounded(module: nn.Module, example: torch.Tensor, macs: int) -> nn.Module:
    """Torch-Pruning's uniform plan without rounding, its ratio found by bisection for these MACs."""
    low, high = 0.0, 0.9
    for _ in range(12):
        ratio = (low + high) / 2
        pruned = by_ratio(module, example, ratio)
        found = count_macs(pruned, example)
        if abs(found / macs - 1) < SAME / 6:
            break
        low, high = (ratio, high) if found > macs else (low, ratio)
    return pruned


def by_ratio(module: nn.Module, example: torch.Tensor, ratio: float) -> nn.Module:
    """A copy, pruned by Torch-Pruning with one ratio for all layers but the classifier."""
    pruned = copy.deepcopy(module)
    kept = [layer for layer in pruned.modules() if isinstance(layer, nn.Linear) and layer.out_features == 1000]
    pruner = tp.pruner.BasePruner(
        pruned, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio,
        pruning_ratio_dict={}, ignored_layers=kept, customized_pruners={}, channel_groups={}, num_heads={},
    )  # fmt: skip
    pruner.step()
    return pruned.eval()


def written(dense: Net, module: nn.Module, exporter: Exporter, folder: Path, name: str) -> Files:
    """The files of a pruned net, its weights as they are."""
    net = dense if module is dense.module else Net(dense.spec.edited(Channels.of(module, dense.module)), module)
    paths = {kind: folder / f"{name}.{kind}.onnx" for kind in ("float", "int8")}
    store(exporter(net, {}), paths["float"])
    store(exporter(rounding(net, pictures(CALIBRATION, net.spec.image[1], seed=1)), {}), paths["int8"])
    return Files(paths, count_macs(module, net.example(1)))


def latency_lines(nets: Sequence[str], size: int, folder: Path) -> list[Line]:
    """Files of nets pruned to a share of the dense file's latency, measured again in runs of their own."""
    data = made_up(size)
    lines = []
    for name in nets:
        dense = untrained(name, size)
        dense.module.eval()
        for kind, ratio in TARGETS:
            exporter = Exporter(Export(), MEAN, STD)
            env = Env(data=data, teachers=(), device=torch.device("cpu"), seed=0, stage="prune")
            later = (Quantize(method="ptq"),) if kind == "int8" else ()
            ending = FileEnding(exporter, later, env, threads=1, batch=1)
            stage = without_training(Prune(latency_ratio=ratio))
            pruned = stage(dense, replace(env, ending=ending))
            files = {
                each: ending.written(net, folder / f"{each}.onnx")
                for each, net in (("dense", dense), ("pruned", pruned))
            }
            measured = [measure_latency(files, threads=1, batch=1, rounds=ROUNDS) for _ in range(RUNS)]
            found = statistics.median(run["pruned"][0].p50 / run["dense"][0].p50 for run in measured)
            off = found / ratio - 1
            title = f"{name}, {kind}: pruned to {ratio:g} of the dense file's latency, off by"
            lines.append(Line(title, "≤ 5 %", f"{100 * off:+.1f} % ({found:.3f})", abs(off) <= 0.05))
    return lines


def made_up(size: int) -> Data:
    """A few images of this size."""
    given = DATASETS["synthetic"].model_validate({"size": size, "classes": 10, "samples": 20})  # type: ignore[attr-defined]
    found: Data = given(0)
    return found.smaller(8)
