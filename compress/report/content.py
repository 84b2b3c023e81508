"""What a report says, as plain data: filled by whoever ran the pipeline, drawn by the other files here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compress.measure.confusion import Changes
from compress.report.device import Device
from compress.report.layers import Layer, LeftFloat, Rounding
from compress.row import Control, Distribution, Row

Verdict = Literal["pass", "fail", "untrained"]


@dataclass(frozen=True)
class Limit:
    """One line of the budget: the key of the pipeline file, what it allows, what was measured.

    `max_accuracy_drop` is in points, `max_bytes` in bytes, the ratios are fractions of the baseline's figure.
    """

    limit: str
    value: int | float
    measured: int | float
    ok: bool


@dataclass(frozen=True)
class Curve:
    """What the training loop wrote for one stage, one record for each epoch.

    A record may hold `epoch`, `loss`, `accuracy` and `val_accuracy` (per cent), `lr`, `images_per_s` and
    `seconds`; what is missing or None is left out of the drawing.
    """

    stage: str
    records: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class UnderCorruption:
    """Top-1 (per cent) of one net's file on the test images: clean, under each corruption, and their mean.

    `severity` is 1 to 5; a corruption that was not asked for is None.
    """

    net: str
    clean: float
    noise: float | None
    blur: float | None
    contrast: float | None
    mean: float
    severity: int


@dataclass(frozen=True)
class OverSeeds:
    """Top-1 (per cent) of the files of one net that was made once for each seed; the first is the run's own.

    `onnx` names the files, relative to the run folder. `std` is the sample standard deviation, `standard_error` that of
    the mean. `gain` is the mean difference (points) to the baseline of the same seed, with the standard error of these
    paired differences; both are None for the baseline.
    """

    net: str
    values: tuple[float, ...]
    onnx: tuple[str, ...]
    mean: float
    std: float
    standard_error: float
    gain: float | None
    gain_standard_error: float | None


@dataclass(frozen=True)
class Report:
    """Everything the three reports show.

    `rows` are in order the teacher, the baseline, then one for each stage; the last is the result.
    `alternatives` were measured beside the way; `robustness` has a line for each of the rows, or none; `seeds` has one
    for the baseline and each stage, or none where there was one seed; `devices` are those whose figures came in later.
    `baseline` and `teacher` name rows by their `net`, of several teachers the best.
    `environment` and `data` hold the keys of report.json; of `data` the keys `name`, `classes`,
    `class_names`, `sizes` (images of each split) and `image` (channels, height, width) are known by name.
    `layers` are the result's, in the order of the net; `rounding` (in the order in which data pass) and `left_float`
    are those of the last int8 file. `changes` sets the baseline's file against the result's; `timings` has each
    file's spread of latency, and `control` what one file differs from itself by.
    `warnings` are shown first, `notes` last; `command` runs the same thing again.

    Raises ValueError where `rows` is empty or `baseline` or `teacher` names none of them.
    """

    name: str
    verdict: Verdict
    budget: tuple[Limit, ...]
    rows: tuple[Row, ...]
    alternatives: tuple[Row, ...]
    baseline: str
    teacher: str | None
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    layers: tuple[Layer, ...] = ()
    rounding: tuple[Rounding, ...] = ()
    left_float: tuple[LeftFloat, ...] = ()
    changes: Changes | None = None
    timings: tuple[Distribution, ...] = ()
    control: Control | None = None
    curves: tuple[Curve, ...] = ()
    robustness: tuple[UnderCorruption, ...] = ()
    seeds: tuple[OverSeeds, ...] = ()
    devices: tuple[Device, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pipeline_yaml: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        nets = [row.net for row in self.rows]
        if not nets:
            raise ValueError("a report needs at least one row")
        for role, net in (("baseline", self.baseline), ("teacher", self.teacher)):
            if net is not None and net not in nets:
                raise ValueError(f"the {role} {net!r} is not among the rows {', '.join(nets)}")

    @property
    def result(self) -> Row:
        """The last net on the way: the one that the budget was judged on."""
        return self.rows[-1]

    @property
    def baseline_row(self) -> Row:
        """The student trained alone."""
        return next(row for row in self.rows if row.net == self.baseline)

    @property
    def teacher_row(self) -> Row | None:
        """The teacher, where there is one."""
        return next((row for row in self.rows if row.net == self.teacher), None)

    def role(self, row: Row) -> str:
        """What a row is here: teacher, baseline, alternative, result or stage."""
        if row in self.alternatives:
            return "alternative"
        if row.net == self.teacher or row.stage == "teacher":  # of several the best is named
            return "teacher"
        if row.net == self.baseline:
            return "baseline"
        return "result" if row == self.result else "stage"
