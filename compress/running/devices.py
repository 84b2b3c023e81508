"""What bench.py measured on devices: read, checked against the run's files, and kept in the run folder."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.config import described, fingerprint
from compress.errors import ArtifactError
from compress.files import checksums
from compress.report.device import Device, OnDevice
from compress.row import Latency, Row

MOST_BYTES = 2**20  # of a JSON file; a hundred nets take a tenth of it
MOST_FILES = 1000
KEPT = "devices"

Text = Annotated[str, Field(max_length=1000)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31)]


class Part(BaseModel):
    """A piece of what bench.py writes; keys of later versions of it are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Percentiles(Part):
    """Milliseconds of a run."""

    p50: Milliseconds
    p90: Milliseconds
    p99: Milliseconds


class MeasuredFile(Part):
    """One file; its path is relative to `models/`."""

    file: Text
    sha256: Text
    verified: bool | None
    said: Text
    latency_ms: Percentiles | None = None


class Machine(Part):
    """What it was measured on."""

    name: Text
    cpu: Text
    flags: Annotated[list[Text], Field(max_length=100)]
    cores: Count
    system: Text
    onnxruntime: Text


class State(Part):
    """How warm the machine was, and who sets its clock."""

    governor: Text | None = None
    temperature_c: float | None = None


class Settings(Part):
    """How it was measured."""

    threads: Count
    batch: Count


class Control(Part):
    """One file measured twice."""

    ratio: Milliseconds


class Measured(Part):
    """All that bench.py writes and the report shows."""

    compress_device: Literal[1]
    device: Machine
    state: dict[Literal["before", "after"], State]
    settings: Settings
    reference: Text
    files: Annotated[list[MeasuredFile], Field(min_length=1, max_length=MOST_FILES)]
    control: Control | None = None


def keep(measured: Measured, folder: Path) -> None:
    """Put what bench.py measured into a run folder, where later runs find it; ResourceError where that fails.

    What was measured before on a device of the same name is replaced.
    """
    name = measured.device.name
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    checksums.write(folder / KEPT / f"{readable}-{fingerprint(name)}.json", {"measured": measured.model_dump()})


def devices_of(folder: Path, rows: Sequence[Row], baseline: str, warn: Callable[[str], None]) -> tuple[Device, ...]:
    """The devices that a run folder keeps figures of; `warn` hears of those measured on other files, or damaged."""
    found = []
    for path in sorted((folder / KEPT).glob("*.json")):
        try:
            measured = Measured.model_validate(checksums.read(path).get("measured"))
            found.append(on_device(measured, str(path), folder, rows, baseline))
        except (ArtifactError, ValidationError) as error:
            why = f"{path} is of another version" if isinstance(error, ValidationError) else error
            warn(f"{why}. The report is without these figures")
    return tuple(found)


def on_device(measured: Measured, source: str, folder: Path, rows: Sequence[Row], baseline: str) -> Device:
    """What bench.py measured of a run's nets, those of its report's `rows`; raises ArtifactError, naming the `source`.

    `baseline` is the net whose file others are compared with.
    """
    nets = dict(nets_of(rows))
    require_same(source, folder, measured.files, nets)
    reference = next((each.latency_ms for each in measured.files if nets[each.file] == baseline), None)
    in_order = sorted(measured.files, key=lambda each: [*nets].index(each.file))  # as the report's rows
    machine, state = measured.device, measured.state.get("after", State())
    return Device(
        name=machine.name,
        cpu=machine.cpu,
        flags=tuple(machine.flags),
        cores=machine.cores,
        system=machine.system,
        onnxruntime=machine.onnxruntime,
        threads=measured.settings.threads,
        batch=measured.settings.batch,
        rows=tuple(_row(nets[each.file], each, reference) for each in in_order),
        control=measured.control.ratio if measured.control else None,
        governor=state.governor,
        temperature_c=state.temperature_c,
        inputs=measured.reference,
    )


def parsed(path: Path) -> Measured:
    """What a file says, checked; raises ArtifactError."""
    again = "write it again with bench.py from the run's models folder"
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MOST_BYTES:
            raise ArtifactError(f"{path} is no file of bench.py (it writes some kilobytes of JSON); {again}")
        return Measured.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"there is no file {path}; bench.py in the run's models folder writes one") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first, *rest = described(error)
        more = f" (and {len(rest)} more)" if rest else ""
        raise ArtifactError(f"{path} is not what bench.py writes: {first}{more}; {again}") from None


def nets_of(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Every file that a device may have measured, relative to `models/`, with what the report calls it."""
    for row in rows:
        file = row.onnx.removeprefix("models/")
        yield file, row.net
        yield str(Path(file).with_suffix(".ort").as_posix()), f"{row.net}.ort"


def require_same(source: str, folder: Path, files: Sequence[MeasuredFile], nets: Mapping[str, str]) -> None:
    """See that all measured files are the run's, byte for byte; raises ArtifactError that names the others."""
    models = folder / "models"
    known = {name: checksums.sha256(models / name) for name in nets if (models / name).is_file()}
    other = [each.file for each in files if known.get(each.file) != each.sha256]
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        raise ArtifactError(
            f"{source} was measured on other files than those in {models}: {', '.join(other[:5])}{more}; copy that "
            "folder to the device again and run its bench.py"
        )


def _row(net: str, measured: MeasuredFile, reference: Percentiles | None) -> OnDevice:
    ms = measured.latency_ms
    return OnDevice(
        net=net,
        latency_ms=Latency(ms.p50, ms.p90, ms.p99) if ms else None,
        ratio=ms.p50 / reference.p50 if ms and reference else None,
        verified=measured.verified,
        said=measured.said,
    )
