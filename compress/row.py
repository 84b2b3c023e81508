"""One line of the report, as plain data. Knows no torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """Milliseconds a run of the file took: median, 90th and 99th percentile over all measured runs."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Distribution:
    """How a net's file spread over all `runs` timed ones: milliseconds at the percentiles 1, 5, 25, 50, 75, 95, 99."""

    net: str
    ms: tuple[float, float, float, float, float, float, float]
    runs: int


@dataclass(frozen=True)
class Control:
    """A net's file against itself, measured twice among the others (A/A): what two equal files differ by here.

    `ratio` is the second median over the first. `noise` is the share by which two medians may differ for no reason:
    the mean difference of the turns, in which both ran right after another, and half its 95 % interval.
    """

    net: str
    ratio: float
    noise: float


@dataclass(frozen=True)
class Row:
    """All figures of one net, measured on the file named in `onnx`.

    `top1` (with its 95 % Wilson interval) is the PyTorch net's, `top1_onnx` and `top5` the file's, in per cent
    of the `samples` test images; `agreement` is the share of them (per cent) for which both predict the same
    class. `macs` counts the multiply-accumulates of Conv and Gemm for one image, `flops` is twice that,
    `bytes` the size of the file on disk, `params` the PyTorch net's trainable numbers, `throughput` images per
    second at the measured batch size, `seconds` the time the stage took when it was run.
    """

    net: str
    stage: str
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    top1_onnx: float
    agreement: float
    samples: int
    params: int
    macs: int
    flops: int
    bytes: int
    latency_ms: Latency
    throughput: float
    seconds: float
    onnx: str
    int8: bool

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in report.json."""
        return asdict(self)
