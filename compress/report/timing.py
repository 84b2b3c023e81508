"""How latencies were measured, how far they can be trusted, and whether int8 paid."""

import math
from collections.abc import Iterator

import compress.report.numbers as numbers
from compress.report.certainty import apart, noise, same
from compress.report.content import Report
from compress.report.tables import Table
from compress.row import Row

NOISY = 0.05
HEAD = ("Net", "p50", "p90", "p99", "Against the baseline", "Images/s", "Timed runs")


def machine(report: Report) -> str:
    """What latencies must have in common to be compared: the processor, the threads, the images a run."""
    known = report.environment
    row = report.result
    images = row.throughput * row.latency_ms.p50 / 1000
    batch = round(images) if math.isfinite(images) else "unknown"
    threads = known.get("threads", "?")
    return f"{known.get('cpu') or 'unknown CPU'}, {threads} thread{'' if threads == 1 else 's'}, batch {batch}"


def control(report: Report) -> str:
    """What the A/A control says of the machine; empty where there was none."""
    found = report.control
    if found is None:
        return ""
    off, limit = 100 * apart(found), 100 * noise(report.control)
    text = (
        f"As a control {found.net} took turns with itself: its two medians differ by {off:.1f} %. "
        f"Differences up to {limit:.1f} % between two files mean nothing here."
    )
    if noise(report.control) <= NOISY:
        return text
    return f"{text} That is a noisy machine ({limit:.0f} %): measure again when it has nothing else to do."


def int8(report: Report) -> tuple[str, ...]:
    """For each int8 file whether it pays here against the float file before it, in a plain sentence."""
    found = []
    for row, before in int8_rows(report):
        ms, base = row.latency_ms.p50, before.latency_ms.p50
        figures = f"{numbers.milliseconds(ms)} against {numbers.milliseconds(base)} of {before.net} in float"
        smaller = f"the file is {numbers.times(before.bytes / row.bytes)} smaller" if row.bytes < before.bytes else ""
        if same(report, ms, base):
            pays = "int8 brings no speed on this machine"
        elif ms < base:
            pays, smaller = f"int8 pays: {row.net} is {_factor(base / ms)} faster", ""
        else:
            pays = f"int8 did not pay in speed on this machine: {row.net} is {_factor(ms / base)} slower"
        found.append(f"{pays} ({figures}{'; ' if smaller else ''}{smaller}).")
    return tuple(found)


def int8_rows(report: Report) -> Iterator[tuple[Row, Row]]:
    """Each int8 row with the last float row before it."""
    for i, row in enumerate(report.rows):
        before = next((other for other in reversed(report.rows[:i]) if not other.int8), None)
        if row.int8 and before is not None:
            yield row, before


def table(report: Report) -> Table:
    """The percentiles of each file, its throughput, and what its median is of the baseline's."""
    base = report.baseline_row.latency_ms.p50
    runs = {each.net: each.runs for each in report.timings}
    body = tuple(
        (
            row.net,
            *(numbers.milliseconds(ms) for ms in (row.latency_ms.p50, row.latency_ms.p90, row.latency_ms.p99)),
            _against(report, row.latency_ms.p50, base) if row != report.baseline_row else numbers.MISSING,
            numbers.short(row.throughput),
            numbers.count(runs.get(row.net)),
        )
        for row in (*report.rows, *report.alternatives)
    )
    return Table(f"Milliseconds of one run: {machine(report)}", HEAD, body)


def _against(report: Report, ms: float, base: float) -> str:
    if same(report, ms, base):
        return "the same"
    return f"{_factor(max(ms / base, base / ms))} {'faster' if ms < base else 'slower'}"


def _factor(ratio: float) -> str:
    """A ratio above one; what would be 1.0× in per cent."""
    return numbers.times(ratio) if ratio >= 1.05 else f"{100 * (ratio - 1):.0f} %"
