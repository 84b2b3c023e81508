"""How accurate the int8 files of trained nets are, and whether they predict what the fake-quantized nets do."""

import json
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar_files import NoData, arrays
from lines import Line, at_least
from quantization_files import store
from torch import nn

from compress import net as nets
from compress.config import fingerprint
from compress.data import DATASETS
from compress.data.base import Data
from compress.edits.ranges import MovingAverage
from compress.errors import CompressError
from compress.export.onnx import Export, Exporter
from compress.measure.accuracy import judge
from compress.measure.file import session
from compress.models import MODELS
from compress.net import Net, Spec
from compress.recipe import Training
from compress.stages import Distill, Env, Quantize, Train
from compress.training.predicting import predict

SEEDS = (0, 1, 2)
NETS: dict[str, dict[str, Any]] = {"mobilenet_v2": {"width": 0.5}, "mobilenet_v3_small": {"width": 1.0}}
CIFAR_CLASSES, CIFAR_TRAIN = 10, 450  # of each class so many training images, and all 100 test images
FLOAT = {
    "digits": Training(epochs=16, lr=0.003, ema=0.99, clip=5.0, augment="affine"),
    "cifar100": Training(epochs=12, batch_size=64, lr=0.004, ema=0.99, clip=5.0),
}
QAT = {"epochs": 2, "lr": 0.0002, "weight_decay": 0.0}  # else as in float
# The float net teaches its rounded self, as a pipeline's teacher would.
LOSSES = Distill().losses
STAGES = {
    "ptq": Quantize(method="ptq", ranges=MovingAverage(), correct_bias=True),
    "ptq-plain": Quantize(method="ptq", ranges=MovingAverage()),
    "ptq-mse": Quantize(method="ptq"),
    "qat": Quantize(ranges=MovingAverage(), losses=LOSSES),
    "lsq": Quantize(learn="lsq", ranges=MovingAverage(), losses=LOSSES),
}
# torchvision's MobileNetV3 has 0.01: in a few hundred steps its statistics never catch up, and float itself suffers.
BATCH_NORM_MOMENTUM = 0.1
QAT_LOSS, PTQ_LOSS, COLLAPSE = 0.2, 1.0, 3.0  # points under float
AGREEMENT = 99.9
BATCH = 250


@dataclass(frozen=True)
class Result:
    """Top-1 accuracy of the files by kind, and how many test images they and their nets see alike; in per cent."""

    top1: dict[str, float]
    agreement: dict[str, float]
    samples: int
    classes: int


@dataclass(frozen=True)
class Job:
    """One net trained on one data set with one seed; `folder` keeps the float net and takes the files."""

    data: str
    net: str
    seed: int
    folder: Path
    source: dict[str, Any]
    quick: bool

    def __call__(self) -> Result:
        """Train in float unless that was done before, quantize in every way, write the files and try them."""
        torch.set_num_threads(1)
        data: Data = DATASETS[self.data_kind].model_validate(self.source)(self.seed)  # type: ignore[attr-defined]
        if self.quick:
            data = data.smaller(100)
        env = Env(data=data, teachers=(), device=torch.device("cpu"), seed=self.seed, stage="benchmark")
        trained = {"float": self.trained(env)}
        env = replace(env, teachers=(trained["float"],))
        for kind, stage in STAGES.items():
            trained[kind] = self.scheduled(stage, QAT)(trained["float"], env)
        inputs = np.concatenate([data.inputs(data.test.images[part]).numpy() for part in _parts(len(data.test))])
        np.savez(self.folder / "test.npz", inputs=inputs, labels=data.test.labels)
        few = data.train.images[np.arange(min(300, len(data.train)))]
        np.savez(self.folder / "calibration.npz", inputs=data.inputs(few).numpy())
        exporter = Exporter(Export(), data.mean, data.std)
        found = {}
        for kind, net in trained.items():
            store(exporter(net, {}), self.folder / f"{kind}.onnx")
            logits = predict(net.module, data, data.test, env.device).numpy()
            found[kind] = judge(logits, file_logits(self.folder / f"{kind}.onnx", inputs), data.test.labels)
        return Result(
            {kind: accuracy.top1_onnx for kind, accuracy in found.items()},
            {kind: accuracy.agreement for kind, accuracy in found.items()},
            len(inputs),
            data.classes,
        )

    @property
    def data_kind(self) -> str:
        """The data set's name in a pipeline file."""
        return "digits" if self.data == "digits" else "npz"

    def trained(self, env: Env) -> Net:
        """The float net, kept under a key of all that it comes from."""
        architecture = MODELS[self.net].model_validate(NETS[self.net])  # type: ignore[attr-defined]
        spec = Spec(architecture=architecture, classes=env.data.classes, image=env.data.image)
        stage = self.scheduled(Train())
        key = fingerprint(
            spec.key,
            stage.training.model_dump(),
            BATCH_NORM_MOMENTUM,
            env.data.fingerprint,
            self.seed,
            torch.__version__,
        )
        kept = self.folder / f"net-{key}"
        if (kept / "net.json").exists():
            return nets.load(kept)
        fresh = nets.build(spec, self.seed)
        for layer in fresh.module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = BATCH_NORM_MOMENTUM
        net = stage(fresh, env)
        kept.mkdir(parents=True, exist_ok=True)
        nets.save(net, kept)
        return net

    def scheduled(self, stage: Any, changes: dict[str, Any] | None = None) -> Any:
        """The stage on this data set's schedule with some changes, and one epoch where only the flow is tried."""
        update = (changes or {}) | ({"epochs": 1} if self.quick else {})
        return stage.model_copy(update={"training": FLOAT[self.data].model_copy(update=update)})


def _parts(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), max(1, count // BATCH))


def file_logits(path: Path, inputs: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes from a file, (n, classes)."""
    running = session(path, 1)
    name = running.get_inputs()[0].name
    return np.concatenate([running.run(None, {name: inputs[part]})[0] for part in _parts(len(inputs))])


def sources(cache: Path, cifar: Path | None) -> tuple[dict[str, dict[str, Any]], list[Line]]:
    """Where each data set is, and a line for one that is not there."""
    found: dict[str, dict[str, Any]] = {"digits": {"size": 32}}
    title = "cifar100: accuracy"
    if cifar is None:
        return found, [
            Line(title, "", "skipped: give --cifar PATH, an .npz archive or the folder of torchvision's CIFAR100")
        ]
    try:
        found["cifar100"] = {"path": str(subset(cifar, cache / "cifar100-subset.npz")), "size": 32}
    except (OSError, NoData) as error:
        return found, [Line(title, "", f"skipped: {error}")]
    return found, []


def subset(cifar: Path, target: Path) -> Path:
    """The first classes of CIFAR-100 with some of their training and all their test images, as an archive."""
    found = arrays(cifar)
    few: dict[str, np.ndarray] = {}
    for split, limit in (("train", CIFAR_TRAIN), ("test", None)):
        images, labels = found[f"{split}_images"], found[f"{split}_labels"]
        chosen = np.concatenate([np.flatnonzero(labels == label)[:limit] for label in range(CIFAR_CLASSES)])
        chosen.sort()
        few |= {f"{split}_images": images[chosen], f"{split}_labels": labels[chosen]}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **few)  # type: ignore[arg-type]
    return target


def results(
    cache: Path, given: dict[str, dict[str, Any]], *, quick: bool, nets: Sequence[str] = tuple(NETS)
) -> dict[tuple[str, str], list[Result]]:
    """Every data set with every net and seed, as many at a time as there are cores."""
    seeds = SEEDS[:1] if quick else SEEDS
    folder = cache / "quick" if quick else cache
    jobs = [
        Job(data, net, seed, folder_of(folder, data, net, seed), source, quick)
        for data, source in given.items() for net in NETS if net in nets for seed in seeds
    ]  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(partial(_call), jobs))
    found: dict[tuple[str, str], list[Result]] = {}
    for job, result in zip(jobs, done, strict=True):
        (job.folder / "result.json").write_text(json.dumps(asdict(result), indent=1))
        found.setdefault((job.data, job.net), []).append(result)
    return found


def folder_of(cache: Path, data: str, net: str, seed: int) -> Path:
    """Where a job keeps its net and its files."""
    return cache / f"{data}-{net}-{seed}"


def _call(job: Job) -> Result:
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        return job()
    except CompressError as error:
        raise SystemExit(f"{job.data}, {job.net}, seed {job.seed}: {error}") from None


def accuracy_lines(found: dict[tuple[str, str], list[Result]]) -> list[Line]:
    """What is promised of accuracy and agreement."""
    lines = []
    for (data, net), seeds in found.items():
        top1 = {kind: statistics.mean(seed.top1[kind] for seed in seeds) for kind in seeds[0].top1}
        each = "  ".join(f"{kind} {value:.2f}" for kind, value in top1.items())
        lines.append(Line(f"{data}, {net}: top-1 of the files, mean of {len(seeds)} seeds", "", each))
        for kind, bound in (("qat", -QAT_LOSS), ("lsq", -QAT_LOSS), ("ptq", -PTQ_LOSS)):
            lost = top1[kind] - top1["float"]
            lines.append(at_least(f"{data}, {net}: {kind} against float, points", lost, bound, "{:+.2f}"))
        if net == "mobilenet_v3_small":
            lines.append(_no_collapse(f"{data}, {net}: no collapse in any seed", seeds))
        for kind in ("qat", "lsq"):
            alike = sum(seed.agreement[kind] * seed.samples for seed in seeds) / sum(seed.samples for seed in seeds)
            ranges = "ranges moving" if kind == "qat" else "learned scales"
            title = f"{data}, {net}: file and fake-quantized net agree, {ranges}, %"
            lines.append(at_least(title, alike, AGREEMENT))
    return lines


def _no_collapse(title: str, seeds: Sequence[Result]) -> Line:
    worst = min(seed.top1[kind] - seed.top1["float"] for seed in seeds for kind in STAGES)
    above = min(seed.top1[kind] - 100 / seed.classes for seed in seeds for kind in STAGES)
    said = f"worst {worst:+.2f} points against float, {above:+.1f} against chance"
    return Line(title, f"≥ -{COLLAPSE:g}", said, worst >= -COLLAPSE and above > 0)
