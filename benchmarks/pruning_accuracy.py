"""How accurate nets with half their MACs are: one ratio for all layers against what was measured or searched for."""

import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lines import Line, at_least
from quantization_accuracy import FLOAT, SEEDS, Job, folder_of, sources

from compress.data import DATASETS
from compress.data.base import Data
from compress.net import Net
from compress.pruning.allocation import Annealing, Evolution, Sensitivity, Uniform
from compress.stages import Distill, Env, Prune
from compress.training.predicting import accuracy, predict

NET = "mobilenet_v2"
KEEP = 0.5
ALLOCATIONS = {"uniform": Uniform(), "sensitivity": Sensitivity(), "annealing": Annealing(), "evolution": Evolution()}
RECOVERY = {"digits": {"epochs": 8, "lr": 0.002}, "cifar100": {"epochs": 8, "lr": 0.002}}
BETTER, DROP = 0.3, 1.0  # points of top-1: over uniform, and under the dense net


@dataclass(frozen=True)
class Task:
    """One data set, seed and allocation; `job` knows the trained float net."""

    job: Job
    allocation: str

    def __call__(self) -> tuple[float, float]:
        """Top-1 on the test images of the dense net and of the pruned one after recovery, in per cent."""
        torch.set_num_threads(1)
        job = self.job
        data: Data = DATASETS[job.data_kind].model_validate(job.source)(job.seed)  # type: ignore[attr-defined]
        data = data.smaller(100) if job.quick else data
        env = Env(data=data, teachers=(), device=torch.device("cpu"), seed=job.seed, stage="benchmark")
        dense = job.trained(env)
        update = RECOVERY[job.data] | ({"epochs": 1} if job.quick else {})
        stage = Prune(
            keep_macs=KEEP,
            align=8,
            allocation=ALLOCATIONS[self.allocation],
            losses=Distill().losses,  # the dense net teaches
            training=FLOAT[job.data].model_copy(update=update),
        )
        pruned = stage(dense, replace(env, teachers=(dense,)))
        return top1(dense, env), top1(pruned, env)


def top1(net: Net, env: Env) -> float:
    """Per cent of the test images that a net gets right."""
    return accuracy(predict(net.module, env.data, env.data.test, env.device), env.data.test.labels)


def accuracy_lines(cache: Path, cifar: Path | None, *, quick: bool) -> list[Line]:
    """Means over the seeds, for each data set."""
    given, lines = sources(cache, cifar)
    jobs = [
        Job(data, NET, seed, folder_of(cache / "quick" if quick else cache, data, NET, seed), source, quick)
        for data, source in given.items() for seed in (SEEDS[:1] if quick else SEEDS)
    ]  # fmt: skip
    # One allocation first, so that each float net is trained by one process only.
    first = [Task(job, "uniform") for job in jobs]
    rest = [Task(job, name) for job in jobs for name in ALLOCATIONS if name != "uniform"]
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        done = [*pool.map(_call, first), *pool.map(_call, rest)]
    found: dict[str, dict[str, list[float]]] = {}
    for task, (dense, pruned) in zip([*first, *rest], done, strict=True):
        of_data = found.setdefault(task.job.data, {})
        of_data.setdefault(task.allocation, []).append(pruned)
        if task.allocation == "uniform":
            of_data.setdefault("dense", []).append(dense)
    return [line for data, of_data in found.items() for line in data_lines(data, of_data)] + lines


def data_lines(data: str, found: dict[str, list[float]]) -> list[Line]:
    """What is promised of one data set."""
    means = {kind: statistics.mean(values) for kind, values in found.items()}
    title = f"{data}, {NET}, half the MACs"
    said = "  ".join(f"{kind} {value:.2f}" for kind, value in means.items())
    lines = [Line(f"{title}: top-1, mean of {len(found['dense'])} seeds", "", said)]
    best = max((kind for kind in means if kind not in ("dense", "uniform")), key=means.__getitem__)
    for kind in [*ALLOCATIONS][1:]:
        gain, bound = means[kind] - means["uniform"], BETTER if kind == best else None
        lines.append(at_least(f"{title}: {kind} against uniform, points", gain, bound, "{:+.2f}"))
    lost = means[best] - means["dense"]
    return [*lines, at_least(f"{title}: {best} against the dense net, points", lost, -DROP, "{:+.2f}")]


def _call(task: Task) -> tuple[float, float]:
    task.job.folder.mkdir(parents=True, exist_ok=True)
    return task()
