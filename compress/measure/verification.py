"""What a verification found, and how it is told."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compress.measure.coverage import Kernel
from compress.measure.layerwise import LayerNoise, first_divergence
from compress.measure.saturation import Risk

MARKS = {True: "ok", False: "FAILED", None: "note"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it holds, None for a remark or what could not be looked at, and why."""

    name: str
    ok: bool | None
    said: str


@dataclass(frozen=True)
class Verification:
    """All that is known of a file.

    `float_nodes` are the nodes without an int8 kernel in a file that has any; `noise` is empty where nothing could be
    compared; `risks` are the layers that can saturate on a CPU without VNNI, worst first.
    """

    file: str
    checks: tuple[Check, ...]
    float_nodes: tuple[Kernel, ...] = ()
    noise: tuple[LayerNoise, ...] = ()
    risks: tuple[Risk, ...] = ()

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if check.ok is False)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data; `ok` of a check is null for a remark."""
        first = first_divergence(self.noise)
        return {
            "file": self.file,
            "ok": not self.failures,
            "checks": [asdict(check) for check in self.checks],
            "float_nodes": [asdict(kernel) for kernel in self.float_nodes],
            "signal_to_noise": [asdict(each) for each in self.noise],
            "first_diverging": first.quantizer if first else None,
            "saturation": [asdict(risk) | {"share": risk.share} for risk in self.risks],
        }


def render(found: Verification, *, as_json: bool) -> str:
    """The findings as text, or as JSON."""
    if as_json:
        return json.dumps(found.as_json(), indent=1)
    lines = [found.file, *(f"{MARKS[check.ok]:7} {check.name:15} {check.said}" for check in found.checks)]
    if found.float_nodes:
        lines += ["", "not int8", *_table([(k.name, k.operator, k.reason) for k in found.float_nodes])]
    if found.noise:
        lines += ["", "signal-to-noise in dB: rounding, the file optimised, the file as it is", *_noise(found.noise)]
    return "\n".join(lines)


def _noise(noise: Sequence[LayerNoise]) -> list[str]:
    rows = []
    for each in noise:
        ratios = ("–" if db is None else f"{db:.1f}" for db in (each.rounding_db, each.file_db, each.plain_db))
        rows.append((each.quantizer, *ratios, "diverges" if each.diverges else ""))
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
