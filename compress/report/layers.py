"""What is known of single layers, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """Output channels of one layer before and after pruning.

    `macs_before` and `macs` are its multiply-accumulates for one image, in the student as given and in the result;
    `sensitivity` is what cutting it cost in a sensitivity stage, the mean points of accuracy. None where not known.
    """

    name: str
    before: int
    after: int
    macs_before: int | None = None
    macs: int | None = None
    sensitivity: float | None = None


@dataclass(frozen=True)
class Rounding:
    """What rounding leaves of the values behind one layer: signal-to-noise in dB against the net without rounding."""

    layer: str
    db: float


@dataclass(frozen=True)
class LeftFloat:
    """An operation of the int8 file that ONNX Runtime computes in float here, and why."""

    name: str
    operator: str
    reason: str
