"""Files, names and texts of strangers, and disks that are full: the tables of the tests, all of them."""

import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from faults_child import ROOT
from lines import Line, at_least, at_most

sys.path.insert(0, str(ROOT / "tests"))
import full_disk
import malicious
from bad_pipelines import answers, bad_pipelines

PIPELINES, QUICK = 1200, 60


def pipeline_lines(work: Path, *, quick: bool) -> list[Line]:
    """What `compress validate` says to generated pipelines, all of them bad."""
    fresh(work)
    cases = bad_pipelines(seed=0, count=PIPELINES)
    cases = random.Random(0).sample(cases, QUICK) if quick else cases
    found = [*answers(cases, work / "bad.yaml")]
    for each in found:
        if each.code != 2 or "Traceback" in each.said or "bug of compress" in each.said:
            print(f"{each.name}: exit {each.code}: {each.said[:300]}", file=sys.stderr)
    return [
        at_least("generated bad pipelines", len(found), None if quick else 1000, "{:.0f}"),
        at_most("of them not answered with exit 2", sum(each.code != 2 for each in found), 0, "{:.0f}"),
        at_most("of them answered with a traceback or as a bug of ours",
                sum("Traceback" in each.said or "bug of compress" in each.said for each in found), 0, "{:.0f}"),
        at_most("seconds within which 99 % of them are answered, once imported",
                float(np.percentile([each.seconds for each in found], 99)), 1.0),
    ]  # fmt: skip


def stranger_lines(work: Path, *, quick: bool) -> list[Line]:
    """Files that mean harm, each fed to the command line."""
    fresh(work)
    torch.set_num_threads(1)
    table = malicious.table()
    names = random.Random(0).sample([*table], 10) if quick else [*table]
    found = [malicious.run_case(name, table[name], work / str(i)) for i, name in enumerate(names)]
    touched = sum("the canary was touched" in each.complaints for each in found)
    wrong = [each for each in found if each.complaints]
    for each in wrong:
        print(f"{each.name}: {', '.join(each.complaints)}: {each.said[:300]}", file=sys.stderr)
    shutil.rmtree(work, ignore_errors=True)
    return [
        Line("malicious files: pickles, weights, ONNX, archives, images", "", f"{len(found)}"),
        at_most("canaries touched by them", touched, 0, "{:.0f}"),
        at_most("of them not refused with one sentence, in bounded time and memory", len(wrong), 0, "{:.0f}"),
    ]


def disk_lines(work: Path, *, quick: bool) -> list[Line]:
    """A run whose disk fails at each of its writes."""
    fresh(work)
    sites, wanted = full_disk.undisturbed(work / "whole")
    chosen = full_disk.spread(sites, 6 if quick else None)
    faults = [*full_disk.disturbed(work / "full", chosen)]
    wrong = [f"{fault.site}, {fault.error}: {problem}" for fault in faults for problem in fault.problems]
    wrong += full_disk.mended(work / "full", wanted)
    for text in wrong:
        print(text, file=sys.stderr)
    shutil.rmtree(work, ignore_errors=True)
    return [
        Line("writes of a run at which the disk was made to fail", "", f"{len(faults)} of {len(sites)}"),
        at_most("of them not ended with exit 6 and one sentence, or not mended by the same command", len(wrong), 0,
                "{:.0f}"),
    ]  # fmt: skip


def fresh(work: Path) -> None:
    """An empty folder."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
