"""Any ONNX files side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compress.files.onnx_file import read_whole
from compress.measure.coverage import Coverage, coverage
from compress.measure.file import count_macs
from compress.measure.latency import measure_latency
from compress.row import Latency


@dataclass(frozen=True)
class Figures:
    """One file: bytes on disk, MACs of Conv and Gemm for one image, convolutions by kind, latency of a run.

    `speedup` is the first file's median latency divided by this one's.
    """

    file: str
    bytes: int
    macs: int
    int8_convs: int
    float_convs: int
    latency_ms: Latency
    throughput: float
    speedup: float


def compare_files(files: Sequence[Path], *, threads: int, batch: int, rounds: int) -> list[Figures]:
    """Measure files, which take turns; raises ModelError for what is no ONNX file, ExportError for what cannot run."""
    models = {str(file): read_whole(file, full=False) for file in files}
    kinds: dict[str, Coverage] = {name: coverage(model) for name, model in models.items()}
    timed = measure_latency({name: Path(name) for name in models}, threads=threads, batch=batch, rounds=rounds)
    first = timed[str(files[0])][0].p50
    return [
        Figures(
            file=name,
            bytes=Path(name).stat().st_size,
            macs=count_macs(model),
            int8_convs=kinds[name].int8_convs,
            float_convs=kinds[name].float_convs,
            latency_ms=timed[name][0],
            throughput=1000 * batch / timed[name][0].p50,
            speedup=first / timed[name][0].p50,
        )
        for name, model in models.items()
    ]


def render(figures: Sequence[Figures], *, as_json: bool) -> str:
    """The figures as a table, or as JSON."""
    if as_json:
        return json.dumps([asdict(each) for each in figures], indent=1)
    width = max(len(each.file) for each in figures)
    lines = [f"{'file':{width}}      bytes     MMAC  int8/float conv   p50 ms   p90 ms   p99 ms    img/s  speed-up"]
    for each in figures:
        convs, ms = f"{each.int8_convs}/{each.float_convs}", each.latency_ms
        lines.append(
            f"{each.file:{width}} {each.bytes:10,} {each.macs / 1e6:8.2f} {convs:>16} {ms.p50:8.3f} {ms.p90:8.3f} "
            f"{ms.p99:8.3f} {each.throughput:8.0f} {each.speedup:8.2f}×"
        )
    return "\n".join(lines)
