"""What was measured on a device of the user's, as plain data."""

from dataclasses import dataclass

from compress.row import Latency


@dataclass(frozen=True)
class OnDevice:
    """One file on a device. `net` names a row of the report; of a file in ONNX Runtime's own format it ends with .ort.

    `latency_ms` is None where the file could not be run there. `ratio` is its median over that of the baseline's file
    on the same device, None where that was not measured. `verified` says whether the file predicts there what it
    predicted where it was made, None where that was not looked at; `said` has the figures.
    """

    net: str
    latency_ms: Latency | None
    ratio: float | None
    verified: bool | None
    said: str


@dataclass(frozen=True)
class Device:
    """A device, how it was measured on, and what came out.

    `control` is what one file took a second time as a share of what it took at first: 1 on a quiet device.
    `temperature_c` is that of the hottest sensor after the measurement, None where the system does not tell, likewise
    `governor`. `inputs` says what the files were compared on.
    """

    name: str
    cpu: str
    flags: tuple[str, ...]
    cores: int
    system: str
    onnxruntime: str
    threads: int
    batch: int
    rows: tuple[OnDevice, ...]
    control: float | None = None
    governor: str | None = None
    temperature_c: float | None = None
    inputs: str = "none"
