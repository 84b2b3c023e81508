"""Several runs side by side, as plain data: every net with its gain, what can be compared, and the Pareto fronts."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import yaml

from compress.report.certainty import SLOWER, interval
from compress.report.content import Report, Verdict
from compress.report.timing import machine
from compress.row import Row


@dataclass(frozen=True)
class Entry:
    """One net of one run.

    `top1` is the file's, per cent, with its 95 % Wilson interval; `latency_ms` the median; `gain` is in points against
    the run's own baseline, None for what did not come out of the student, and where nothing was trained. `comparable`
    says that the net was trained and tested on the images that most runs were tested on, `timed` that its latency was
    measured where and how most were; `smallest` and `fastest` that it is on the front of accuracy against bytes or
    latency: among those that are comparable none is at least as good in both and better in one, latencies
    within 2 % being equal.
    """

    run: str
    net: str
    label: str
    role: str
    top1: float
    low: float
    high: float
    samples: int
    gain: float | None
    teacher_top1: float | None
    params: int
    macs: int
    bytes: int
    latency_ms: float
    int8: bool
    comparable: bool
    timed: bool
    smallest: bool = False
    fastest: bool = False


@dataclass(frozen=True)
class Run:
    """What one teacher made of one student.

    `distilled` names the last net of a distill stage, None where there is none; gains are points against the baseline,
    None where nothing was trained. `teacher_model` is the architecture's name, empty where it cannot be told. Of
    several teachers the best one's accuracy is given, and all names joined by `+`.
    """

    run: str
    verdict: Verdict
    teacher: str | None
    teacher_model: str
    teacher_top1: float | None
    student_model: str
    baseline_top1: float
    distilled: str | None
    distilled_top1: float | None
    distilled_gain: float | None
    result: str
    result_top1: float
    result_gain: float | None
    data_fingerprint: str
    machine: str


@dataclass(frozen=True)
class Comparison:
    """Runs in the order given, their nets in each run's order, and what must be known before comparing them."""

    runs: tuple[Run, ...]
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...]


def compare(reports: Mapping[str, Report]) -> Comparison:
    """Put reports side by side, by the name that each run is to have. There must be one at least."""
    trained = {name: report for name, report in reports.items() if report.verdict != "untrained"}
    data = _usual(data_of(report) for report in (trained or reports).values())
    comparable = {name for name, report in trained.items() if data_of(report) == data}
    clock = _usual(machine(reports[name]) for name in comparable or reports)
    entries = tuple(
        entry
        for name, report in reports.items()
        for entry in _entries(name, report, name in comparable, machine(report) == clock, alone=len(reports) == 1)
    )
    small = front(entries, lambda e: e.bytes, lambda e: e.comparable)
    fast = front(entries, lambda e: e.latency_ms, lambda e: e.comparable and e.timed, SLOWER)
    entries = tuple(replace(entry, smallest=entry in small, fastest=entry in fast) for entry in entries)
    runs = tuple(_run(name, report) for name, report in reports.items())
    return Comparison(runs, entries, tuple(_warnings(reports, data, clock)))


def front(
    entries: Sequence[Entry], cost: Callable[[Entry], float], admitted: Callable[[Entry], bool], slack: float = 1.0
) -> frozenset[Entry]:
    """The Pareto front: the admitted ones that no other equals or beats in both accuracy and cost and beats in one.

    Costs whose ratio is at most `slack` count as equal.
    """
    ordered = sorted(filter(admitted, entries), key=cost)
    costs = [cost(entry) for entry in ordered]
    best = list(accumulate((entry.top1 for entry in ordered), max))  # of an entry and all that cost less

    def beaten(entry: Entry) -> bool:
        as_cheap, cheaper = bisect_right(costs, cost(entry) * slack), bisect_left(costs, cost(entry) / slack)
        return best[as_cheap - 1] > entry.top1 or (cheaper > 0 and best[cheaper - 1] >= entry.top1)

    return frozenset(entry for entry in ordered if not beaten(entry))


def data_of(report: Report) -> str:
    """The fingerprint of the images that a run was trained and tested on."""
    return str(report.environment.get("data_fingerprint") or "unknown")


def _usual(values: Iterable[str]) -> str:
    counted = Counter(values)
    return max(counted, key=counted.__getitem__)  # the first of those that are most frequent


def _entries(run: str, report: Report, comparable: bool, timed: bool, *, alone: bool) -> Iterator[Entry]:
    for row in (*report.rows, *report.alternatives):
        low, high = interval(row)
        yield Entry(
            run=run,
            net=row.net,
            label=row.net if alone else f"{run}/{row.net}",
            role=report.role(row),
            top1=row.top1_onnx,
            low=low,
            high=high,
            samples=row.samples,
            gain=_gain(report, row),
            teacher_top1=_best_teacher(report),
            params=row.params,
            macs=row.macs,
            bytes=row.bytes,
            latency_ms=row.latency_ms.p50,
            int8=row.int8,
            comparable=comparable,
            timed=timed,
        )


def _run(name: str, report: Report) -> Run:
    teachers = [row.net for row in report.rows if report.role(row) == "teacher"]
    distilled = None
    for row in report.rows:
        distilled = row if row.stage == "distill" else distilled
    return Run(
        run=name,
        verdict=report.verdict,
        teacher=" + ".join(teachers) or None,
        teacher_model=_model(report, "teacher") if teachers else "",
        teacher_top1=_best_teacher(report),
        student_model=_model(report, "student"),
        baseline_top1=report.baseline_row.top1_onnx,
        distilled=distilled.net if distilled else None,
        distilled_top1=distilled.top1_onnx if distilled else None,
        distilled_gain=_gain(report, distilled) if distilled else None,
        result=report.result.net,
        result_top1=report.result.top1_onnx,
        result_gain=_gain(report, report.result),
        data_fingerprint=data_of(report),
        machine=machine(report),
    )


def _gain(report: Report, row: Row) -> float | None:
    if report.verdict == "untrained" or report.role(row) in ("teacher", "baseline"):
        return None
    return row.top1_onnx - report.baseline_row.top1_onnx


def _best_teacher(report: Report) -> float | None:
    return max((row.top1_onnx for row in report.rows if report.role(row) == "teacher"), default=None)


def _model(report: Report, key: str) -> str:
    """The names of the teachers' or the student's architecture, as the pipeline has them, empty if it has none."""
    try:
        found = yaml.safe_load(report.pipeline_yaml)[key]
        models = found if isinstance(found, list) else [found]
        models = [teacher["model"] for teacher in models] if key == "teacher" else models
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return ""
    names = [next(iter(model)) if isinstance(model, dict) and len(model) == 1 else model for model in models]
    return " + ".join(names) if all(isinstance(name, str) for name in names) else ""


def _warnings(reports: Mapping[str, Report], data: str, clock: str) -> Iterator[str]:
    untrained = [name for name, report in reports.items() if report.verdict == "untrained"]
    if untrained:
        yield (
            f"Nothing was trained in {_named(untrained)}, or it was a smoke run: accuracies of such a run mean nothing "
            "and are on no front."
        )
    others = _by(data_of, reports, untrained)
    if len(others) > 1:
        shown = "; ".join(f"{_named(names)} on {fingerprint}" for fingerprint, names in others.items())
        yield (
            f"The runs were not tested on the same images ({shown}): their accuracies cannot be compared. Only "
            f"{_named(others[data])} can be on a front."
        )
    kept = _by(machine, reports, [name for name in reports if name not in others.get(data, ())])
    clocks = kept or _by(machine, reports, ())
    if len(clocks) > 1:
        shown = "; ".join(f"{_named(names)} on {where}" for where, names in clocks.items())
        yield (
            f"Latency was not measured in the same way ({shown}): these milliseconds cannot be compared. Only "
            f"{_named(clocks[clock])} can be on the front of accuracy against latency."
        )


def _by(kind: Callable[[Report], str], reports: Mapping[str, Report], without: Collection[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, report in reports.items():
        if name not in without:
            found.setdefault(kind(report), []).append(name)
    return found


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
