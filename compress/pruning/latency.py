"""How long a network of any widths would take, from measurements of a few.

Time is not proportional to multiply-accumulates: kernels have a fixed cost, and moving numbers has one too. So each
layer gets a model of its own, fitted to its times in files of different widths. Only aligned widths are measured:
others are slower by factors that no smooth model follows.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compress.errors import ConfigError
from compress.files import durable
from compress.pruning.costs import Floats, LayerCosts

COLUMNS = ("layer", "inputs", "outputs", "ms")
OTHER = ""  # the layer name of all that belongs to no layer


@dataclass(frozen=True)
class Sample:
    """What one layer took at these widths, in milliseconds for one run."""

    layer: str
    inputs: int
    outputs: int
    ms: float


def samples(costs: LayerCosts, removed: Floats, times: Mapping[str, float]) -> list[Sample]:
    """The measured times of a network's layers, with their widths after removing channels, (1, groups)."""
    outputs, inputs = costs.widths(removed)
    rows = zip(costs.paths, inputs[0].astype(int), outputs[0].astype(int), strict=True)
    found = [Sample(path, int(i), int(o), times.get(path, 0.0)) for path, i, o in rows]
    # All widths together stand for those of what lies between the layers.
    return [*found, Sample(OTHER, 0, int(outputs.sum()), times.get(OTHER, 0.0))]


def fitted(macs: LayerCosts, elements: LayerCosts, measured: Sequence[Sample]) -> LayerCosts:
    """Milliseconds as a function of widths: for each layer a + b·MACs + c·outputs, all at least 0, by least squares.

    What belongs to no layer is a + b times all numbers that layers write, `elements`. A layer without samples is
    taken to cost as much for a MAC as the others. Raises ConfigError where there are no samples at all.
    """
    by_layer: dict[str, list[Sample]] = {}
    for sample in measured:
        by_layer.setdefault(sample.layer, []).append(sample)
    if not any(path in by_layer for path in macs.paths):
        raise ConfigError("latency_table: none of its layers is one of this network's convolutions or linear layers.")
    unit, per_output, constant = np.zeros(len(macs.paths)), np.zeros(len(macs.paths)), 0.0
    unknown = []
    for i, path in enumerate(macs.paths):
        found = by_layer.get(path)
        if found is None:
            unknown.append(i)
            continue
        outputs = np.array([s.outputs for s in found], np.float64)
        inputs = np.array([s.inputs for s in found], np.float64)
        work = outputs * inputs / macs.parts[i] * macs.unit[i]
        a, b, c = _least_squares([np.ones(len(found)), work, outputs], [s.ms for s in found])
        unit[i], per_output[i], constant = b * macs.unit[i], c, constant + a
    known = [i for i in range(len(macs.paths)) if i not in unknown]
    ratio = unit[known].sum() / max(macs.unit[known].sum(), 1e-12)
    unit[unknown] = macs.unit[unknown] * ratio
    between, rest = _between(macs, elements, by_layer.get(OTHER, []))
    return replace(macs, unit=unit, per_output=per_output + between, constant=constant + rest)


def _between(macs: LayerCosts, elements: LayerCosts, measured: Sequence[Sample]) -> tuple[Floats, float]:
    """What lies between layers, shared out by the numbers that they write: (layers,) for an output, and the rest."""
    if not measured:
        return np.zeros(len(macs.paths)), 0.0
    whole = macs.outputs.sum()
    share, times = [s.outputs / whole for s in measured], [s.ms for s in measured]
    rest, moved = _least_squares([np.ones(len(share)), np.array(share)], times)
    written = elements.per_output * elements.outputs
    return moved * written / written.sum() / np.maximum(macs.outputs, 1), rest


def _least_squares(columns: Sequence[Floats], times: Sequence[float]) -> Floats:
    """Coefficients of at least 0; columns are brought to one scale first, or rounding decides."""
    from scipy.optimize import nnls  # takes half a second to import, and few commands need it

    scale = np.array([max(float(column.max()), 1e-12) for column in columns])
    matrix = np.stack(columns, axis=1) / scale
    found: Floats = nnls(matrix, np.array(times, np.float64))[0] / scale
    return found


def read_table(path: Path) -> list[Sample]:
    """A latency table from a CSV file with the columns layer, inputs, outputs, ms; raises ConfigError.

    A row with an empty layer has what belongs to no layer, and the sum of all layers' outputs.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"latency_table: {path} cannot be read ({error}).") from error
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            sample = Sample(row["layer"], int(row["inputs"]), int(row["outputs"]), float(row["ms"]))
        except (KeyError, TypeError, ValueError):
            wanted = ", ".join(COLUMNS)
            raise ConfigError(f"latency_table: line {number} of {path} is not a row of {wanted}.") from None
        if not (np.isfinite(sample.ms) and sample.ms >= 0 and sample.outputs > 0):
            raise ConfigError(f"latency_table: line {number} of {path} has a time or a width that cannot be.")
        found.append(sample)
    if not found:
        raise ConfigError(f"latency_table: {path} has no rows.")
    return found


def write_table(path: Path, measured: Sequence[Sample]) -> None:
    """Write a table that `read_table` reads, for use on another machine. Raises ResourceError."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((s.layer, s.inputs, s.outputs, f"{s.ms:.6g}") for s in measured)
    durable.write(path, table.getvalue())
