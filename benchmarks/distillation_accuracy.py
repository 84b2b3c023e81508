"""What each form of distillation gains or loses: digits and a subset of CIFAR-100, a small teacher, several seeds.

Every result is written down when it is there, so that a run that was stopped goes on where it was. Nets of one seed
start from the same weights and see the images in the same order, whatever teaches them.
"""

import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from distillation_data import NoData, subset
from distillation_forms import ALONE, forms
from distillation_jobs import Job, Result, Setting, settings
from lines import Line

from compress.errors import CompressError

SEEDS = (0, 1, 2)
CIFAR_IMAGES = 10_000


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; None is all."""

    cache: Path
    cifar: Path | None = None
    only: Sequence[str] | None = None
    seeds: Sequence[int] = SEEDS
    epochs: int | None = None
    quick: bool = False


def accuracy_lines(wanted: Wanted) -> list[Line]:
    """A line for each form on each data set; KD has a bound."""
    folder = wanted.cache / ("distillation-quick" if wanted.quick else "distillation")
    folder.mkdir(parents=True, exist_ok=True)
    archive, skipped = None, []
    try:
        if wanted.cifar is None:
            raise NoData("give --cifar PATH, an .npz archive or the folder of torchvision's CIFAR100")
        archive = subset(wanted.cifar, folder / "cifar100.npz", CIFAR_IMAGES)
    except NoData as error:
        skipped = [Line("cifar100: what each form gains", "", f"skipped: {error}")]
    names = [ALONE, *(name for name in wanted.only or forms() if name != ALONE)]
    found = settings(archive)
    jobs = [
        Job(data, setting, form, seed, folder / data, wanted.epochs, wanted.quick)
        for data, setting in found.items() for seed in wanted.seeds for form in names
    ]  # fmt: skip
    results = run_all(jobs, folder / "results.jsonl")
    return [line for data, setting in found.items() for line in of_data(data, setting, results)] + skipped


def run_all(jobs: Sequence[Job], book: Path) -> list[Result]:
    """The results of all jobs, those of earlier runs out of the book, the others as many at a time as there are cores.

    Teachers come first, each in one process, then what fills the files of their logits.
    """
    known = {result["key"]: result for result in read(book)}
    missing = [job for job in jobs if job.key not in known]
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_prepared, *zip(*teachers_of(missing), strict=True))) if missing else None
        list(pool.map(_filled, caches_of(missing)))
        running = [pool.submit(_called, job) for job in missing]
        for done in as_completed(running):
            result = done.result()
            known[result["key"]] = result
            if "error" in result:  # tried again next time
                print(f"{result['data']}, {result['form']}, seed {result['seed']}: {result['error']}", flush=True)
                continue
            with book.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{result['data']}, {result['form']}, seed {result['seed']}: {result['top1']:.2f} %, "
                  f"{result['seconds']:.0f} s", flush=True)  # fmt: skip
    return [known[job.key] for job in jobs]


def teachers_of(jobs: Iterable[Job]) -> list[tuple[Job, int]]:
    """One job for each teacher that is needed."""
    return list({(job.data, i): (job, i) for job in jobs for i in range(forms()[job.form].needs)}.values())


def caches_of(jobs: Iterable[Job]) -> list[Job]:
    """For each data set one job whose training of no epochs at all leaves all teachers' logits on the disk."""
    kept: dict[str, Job] = {}
    for job in jobs:
        form = forms()[job.form]
        if form.cached and (job.data not in kept or form.needs > forms()[kept[job.data].form].needs):
            kept[job.data] = job
    return list(kept.values())


def _prepared(job: Job, i: int) -> None:
    torch.set_num_threads(1)
    job.teacher(job.env().data, i)


def _filled(job: Job) -> None:
    replace(job, epochs=1)()


def _called(job: Job) -> Result:
    """What it came to, or why there is none: one form that does not fit these nets is no reason to stop all."""
    try:
        return job()
    except CompressError as error:
        return job.named | {"error": str(error).splitlines()[0]}


def read(book: Path) -> list[Result]:
    """What earlier runs found; a line that was cut off is left out."""
    found = []
    for line in book.read_text().splitlines() if book.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def of_data(data: str, setting: Setting, results: Sequence[Result]) -> list[Line]:
    """The lines of one data set: the student alone, then the gain of each form, seed by seed."""
    tops: dict[str, dict[int, float]] = {}
    failed = {result["form"]: result["error"] for result in results if result["data"] == data and "error" in result}
    for result in results:
        if result["data"] == data and "error" not in result:
            tops.setdefault(result["form"], {})[result["seed"]] = result["top1"]
    student, teacher = (_words(model) for model in (setting.student, setting.teacher))
    missing = [Line(f"{data}: gain by {form}, points", "", f"not measured: {why}") for form, why in failed.items()]
    if ALONE not in tops:
        return missing
    alone = tops.pop(ALONE)
    title = f"{data}: the student alone, top-1 ({student}; the teacher is {teacher})"
    lines = [Line(title, "", _spread(list(alone.values())))]
    for form, by_seed in tops.items():
        gains = [by_seed[seed] - alone[seed] for seed in by_seed if seed in alone]
        gain = statistics.mean(gains)
        said = f"{_spread(gains, '{:+.2f}')} ({_spread(list(by_seed.values()))})"
        if form == "kd":
            lines.append(Line(f"{data}: gain by {form}, points", "> 0", said, gain > 0))
        else:
            lines.append(Line(f"{data}: gain by {form}, points", "", said))
    return lines + missing


def _spread(values: Sequence[float], mark: str = "{:.2f}") -> str:
    """Mean and its standard error over the seeds."""
    mean = mark.format(statistics.mean(values))
    if len(values) < 2:
        return f"{mean}, one seed"
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def _words(model: dict[str, Any]) -> str:
    ((name, fields),) = model.items()
    return " ".join([name, *(f"{key} {value}" for key, value in fields.items())])
