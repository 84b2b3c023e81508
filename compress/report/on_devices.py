"""The table and the sentences about devices, shared by HTML and Markdown."""

import compress.report.numbers as numbers
from compress.report.content import Report
from compress.report.device import Device, OnDevice
from compress.report.tables import Table

HEAD = ("Device", "Net", "p50", "p90", "p99", "Against the baseline there", "Verified there")
VERIFIED = {True: "yes", False: "NO", None: "not looked at"}
NOISY = 0.05  # of its own latency, by which a file may differ from itself on a quiet device


def table(report: Report) -> Table:
    """Latency of every file on every device, and whether it predicts the same there."""
    body = tuple(
        (
            device.name,
            row.net,
            *(numbers.milliseconds(value) for value in _percentiles(row)),
            _against(row),
            VERIFIED[row.verified],
        )
        for device in report.devices
        for row in device.rows
    )
    return Table("Measured by bench.py on the devices themselves", HEAD, body)


def sentences(report: Report) -> tuple[str, ...]:
    """What each device is, how quiet it was, and what does not hold there."""
    return tuple(text for device in report.devices for text in (_about(device), *_failures(device)))


def _percentiles(row: OnDevice) -> tuple[float | None, ...]:
    ms = row.latency_ms
    return (None, None, None) if ms is None else (ms.p50, ms.p90, ms.p99)


def _against(row: OnDevice) -> str:
    if row.ratio is None:
        return numbers.MISSING
    ratio = max(row.ratio, 1 / row.ratio)
    if ratio < 1.05:
        return "the same"
    return f"{numbers.times(ratio)} {'faster' if row.ratio < 1 else 'slower'}"


def _about(device: Device) -> str:
    flags = f" with {', '.join(device.flags)}" if device.flags else ""
    cores = "1 core" if device.cores == 1 else f"{device.cores} cores"
    threads = "1 thread" if device.threads == 1 else f"{device.threads} threads"
    text = f"{device.name}: {device.cpu}{flags}, {cores}, {device.system}; ONNX Runtime {device.onnxruntime}, {threads}"
    text += f", batch {device.batch}"
    if device.governor:
        text += f", governor {device.governor}"
    if device.temperature_c is not None:
        text += f", {device.temperature_c:.0f} °C afterwards"
    if device.control is None:
        return f"{text}."
    off = abs(device.control - 1)
    text += f". One file measured twice differs by {100 * off:.1f} %"
    return f"{text}: smaller differences than that mean nothing." if off > NOISY else f"{text}."


def _failures(device: Device) -> tuple[str, ...]:
    return tuple(
        f"On {device.name} {row.net} is not what it is here: {row.said}."
        for row in device.rows
        if row.verified is False
    )
