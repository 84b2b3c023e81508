"""Reports of made-up runs, as plain data: what the tests of the report write and look at."""

from dataclasses import replace

import numpy as np
import torch

from compress.measure.confusion import changes
from compress.measure.thumbnails import thumbnail
from compress.report import Curve, Layer, LeftFloat, Limit, Report, Rounding, UnderCorruption
from compress.row import Control, Distribution, Latency, Row

HOSTILE = "</script><script>alert('1')</script> \"q\" | `x` <img src=x onerror=alert(2)> $x$ {{ 7*7 }}"


def row(net: str, top1: float, size: int, p50: float, *, stage: str = "", int8: bool = False) -> Row:
    latency = Latency(p50, 1.1 * p50, 1.5 * p50)
    file = f"models/{net}{'.int8' if int8 else ''}.onnx"
    fine = {"top5": 99.9, "top1_onnx": top1, "agreement": 99.81, "samples": 540, "throughput": 1000 / p50}
    counted = {"params": size // 4, "macs": size, "flops": 2 * size, "bytes": size, "seconds": 85.2}
    return Row(
        net=net, stage=stage or net, top1=top1, top1_low=top1 - 1.4, top1_high=min(100, top1 + 0.8),
        latency_ms=latency, onnx=file, int8=int8, **fine, **counted,
    )  # fmt: skip


TEACHER = row("teacher", 98.7, 94_430_112, 4.82)
BASELINE = row("baseline", 98.52, 8_942_331, 0.712)
PRUNED = row("prune", 98.15, 4_071_002, 0.463)
QUANTIZED = row("quantize", 98.33, 1_130_412, 0.311, int8=True)
PTQ = row("prune-ptq", 97.22, 1_130_398, 0.313, stage="ptq", int8=True)


def records(epochs: int) -> tuple[dict[str, float], ...]:
    return tuple(
        {"epoch": e, "loss": 2 / e, "accuracy": 90.0 + e, "val_accuracy": 89.5 + e, "lr": 0.1, "seconds": 1.5}
        | {"images_per_s": 900.0}
        for e in range(1, epochs + 1)
    )


FULL = Report(
    name="mobilenet",
    verdict="pass",
    budget=(Limit("max_accuracy_drop", 1.0, 0.19, True), Limit("max_bytes", 1_200_000, 1_130_412, True)),
    rows=(TEACHER, BASELINE, row("distill", 98.7, 8_942_331, 0.709), PRUNED, QUANTIZED),
    alternatives=(PTQ,),
    baseline="baseline",
    teacher="teacher",
    environment={
        "cpu": "EPYC",
        "flags": ["avx2", "avx512_vnni"],
        "threads": 1,
        "gpu": None,
        "python": "3.11.2",
        "packages": {"torch": "2.15.0"},
        "commit": "4612c7f",
        "seed": 0,
        "pipeline_hash": "9f21c0aa17b3",
        "data_fingerprint": "71d0e2f4c9aa",
    },
    data={
        "name": "digits",
        "classes": 2,
        "class_names": ["zero", "one"],
        "sizes": {"train": 1078, "test": 540},
    },
    layers=(Layer("features.0.0", 32, 16), Layer("features.1.0", 96, 48)),
    curves=(Curve("teacher", records(5)), Curve("distill", records(3))),
    warnings=("The teacher is no better than the baseline.",),
    notes=("Narrow layers were aligned to multiples of 8.",),
    pipeline_yaml="name: mobilenet\nseed: 0\n",
    command="compress run pipelines/mobilenet.yaml",
)
CORRUPTED = (
    UnderCorruption("teacher", 98.7, 91.2, 95.1, None, 93.15, 3),
    UnderCorruption("baseline", 98.52, 85.0, 92.0, None, 88.5, 3),
    UnderCorruption("distill", 98.7, 88.04, 93.0, None, 90.52, 3),
    UnderCorruption("prune", 98.15, 84.0, 90.0, None, 87.0, 3),
    UnderCorruption("quantize", 98.33, 83.0, 90.6, None, 86.8, 3),
)
MANY = tuple(row(f"a-rather-long-stage-name-{i}", 98 - 0.05 * i, 9_000_000 - 90_000 * i, 0.7) for i in range(10))
VARIANTS = {
    "full": FULL,
    "no teacher": replace(FULL, teacher=None, rows=FULL.rows[1:]),
    "two rows": replace(FULL, teacher=None, rows=(BASELINE, QUANTIZED), alternatives=()),
    "baseline alone": replace(FULL, teacher=None, rows=(BASELINE,), alternatives=(), budget=()),
    "twelve rows": replace(FULL, rows=(TEACHER, BASELINE, *MANY)),
    "not pruned": replace(FULL, layers=()),
    "no curves": replace(FULL, curves=()),
    "empty curves": replace(FULL, curves=(Curve("distill", ()), Curve("prune", ({"epoch": 1, "loss": None},)))),
    "untrained": replace(FULL, verdict="untrained", robustness=CORRUPTED),
    "corrupted": replace(FULL, robustness=CORRUPTED),
    "hostile": replace(
        FULL,
        name=HOSTILE,
        rows=(TEACHER, BASELINE, replace(QUANTIZED, net=HOSTILE)),
        data={"class_names": [HOSTILE], "名": "数字"},
        layers=(Layer(HOSTILE, 32, 16),),
        curves=(Curve(HOSTILE, records(2)),),
        warnings=(HOSTILE,),
        notes=(HOSTILE,),
        pipeline_yaml=f"name: {HOSTILE!r}\n```\n",
        command=HOSTILE,
    ),
}

NAMES = ("cat", "dog", "fox")
# Images of three classes: what they are, what the first file says, what the second does.
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
BEFORE = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 0])
AFTER = np.array([0, 1, 1, 1, 0, 1, 0, 0, 2, 1])
CHANGES = changes(("baseline", "quantize"), LABELS, BEFORE, AFTER, NAMES)
TINY_PNG = thumbnail(torch.zeros(3, 4, 4, dtype=torch.uint8))
RICH = replace(
    FULL,
    layers=(Layer("features.0.0", 32, 16, 900_000, 400_000, 12.5), Layer("classifier.1", 10, 10, 12_800, 7_000)),
    rounding=(Rounding("the image", 44.1), Rounding("features.0.2", 31.5), Rounding("the logits", 27.25)),
    left_float=(LeftFloat("head.act", "Erf", "there is no int8 kernel for Erf"),),
    changes=replace(CHANGES, examples=tuple(replace(each, png=TINY_PNG) for each in CHANGES.examples)),
    timings=tuple(
        Distribution(each.net, tuple(each.latency_ms.p50 * k for k in (0.9, 0.95, 0.98, 1, 1.1, 1.3, 2)), 500)
        for each in (*FULL.rows, PTQ)
    ),
    control=Control("quantize", 1.01, 0.03),
)
THOUSAND = tuple(f"class-{k:04d} with a name that is long" for k in range(1000))


def thousand() -> Report:
    """A run of a thousand classes of which every tenth changed."""
    labels = np.arange(1000).repeat(3)
    after = np.where(np.arange(3000) % 10 == 0, (labels + 7) % 1000, labels)
    found = changes(("baseline", "quantize"), labels, labels.copy(), after, THOUSAND)
    return replace(RICH, changes=found, data={"name": "image_folder", "classes": 1000, "class_names": list(THOUSAND)})


DETAILED = {"rich": RICH, "thousand classes": thousand()}
