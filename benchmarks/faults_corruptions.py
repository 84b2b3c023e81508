"""Files of a finished or interrupted run that are damaged: every damage must be found out, said, and mended.

What a run leaves is damaged one file at a time: a bit is flipped, the end is cut off, all is emptied or overwritten.
The same command again must say so and leave what an undisturbed run leaves. Checkpoints are damaged in the same ways.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml
from faults_child import TINY, Runs
from faults_kills import PIPELINES, QUICK, events, left_behind
from lines import Line, at_least, at_most
from tiny import raw_pipeline

from compress.training.checkpoint import Checkpoints

PATTERNS = ("stages/**/*.safetensors", "stages/**/*.json", "stages/**/train.jsonl", "models/**/*.onnx",
            "predictions/**/*.csv", "test.npz", "pipeline.yaml", "report.json", "report.md", "report.html",
            "pictures/*.svg")  # fmt: skip


def flipped(content: bytes, drawn: random.Random) -> bytes:
    """One bit the other way round."""
    changed = bytearray(content)
    changed[drawn.randrange(len(changed))] ^= 1 << drawn.randrange(8)
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a flipped bit": flipped,
    "a cut": lambda content, drawn: content[: drawn.randrange(len(content))],
    "nothing in it": lambda content, drawn: b"",
    "zeros": lambda content, drawn: bytes(len(content)),
    "something else": lambda content, drawn: drawn.randbytes(len(content)),
}


def corruption_lines(work: Path, *, quick: bool) -> list[Line]:
    """Damage what a run leaves, and checkpoints."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    files, wrong = run_files(work, quick=quick)
    checkpoints, missed = checkpoint_files(work / "checkpoints")
    for text in (*wrong, *missed):
        print(text)
    return [
        at_least("damaged files of a run, and checkpoints", files + checkpoints, None if quick else 100, "{:.0f}"),
        at_most("of them not found out, not said or not mended", len(wrong) + len(missed), 0, "{:.0f}"),
    ]


def run_files(work: Path, *, quick: bool) -> tuple[int, list[str]]:
    """How many files of a run were damaged, and what went wrong."""
    runs, drawn = Runs(), random.Random(7)
    pipeline, whole = work / "main.yaml", work / "whole"
    pipeline.write_text(yaml.safe_dump(raw_pipeline(name="main", **(QUICK["short"] if quick else PIPELINES["main"]))))
    words = ["run", str(pipeline), "--plugin", str(TINY), "--out"]
    assert runs.run([*words, str(whole)], work / "whole.log") in (0, 5), work / "whole.log"
    reference = left_behind(whole)
    paths = sorted({path.relative_to(whole) for pattern in PATTERNS for path in whole.glob(pattern)})
    cases = [(path, name) for path in paths for name in DAMAGES if (whole / path).stat().st_size > 1]
    cases = drawn.sample(cases, min(4 if quick else 90, len(cases)))

    def tried(number: int, path: Path, name: str) -> Iterator[str]:
        out, log = work / str(number), work / f"{number}.log"
        shutil.copytree(whole, out)
        content = DAMAGES[name]((out / path).read_bytes(), random.Random(number))
        (out / path).write_bytes(content)
        before = len(events(out))
        code = runs.run([*words, str(out)], log)
        told = events(out)[before:]
        if code not in (0, 5):
            yield f"{path} with {name}: ended with {code}; see {log}"
        elif not any(each["event"] == "warning" and path.name in each["text"] for each in told):
            yield f"{path} with {name}: nothing was said of it; see {log}"
        elif left_behind(out) != reference:
            yield f"{path} with {name}: the run did not mend it; see {out}"
        else:
            shutil.rmtree(out)

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda case: [*tried(case[0], *case[1])], enumerate(cases))
        return len(cases), [text for texts in found for text in texts]


def checkpoint_files(work: Path) -> tuple[int, list[str]]:
    """How many checkpoints were damaged, and which of them were taken for sound."""
    wrong, count = [], 0
    for number in range(60):
        folder = work / str(number)
        keeper = Checkpoints(folder, 0).next()
        for step in (1, 2):
            keeper.save(step, {"x": torch.full((64,), float(step))}, {"made_of": "this", "step": step})
        last = max(folder.iterdir())
        name = [*DAMAGES][number % len(DAMAGES)]
        last.write_bytes(DAMAGES[name](last.read_bytes(), random.Random(number)))
        said: list[str] = []
        found = Checkpoints(folder, 0, said.append).next().find("this")
        count += 1
        if found is None or found.facts["step"] != 1 or last.name not in " ".join(said):
            wrong.append(f"a checkpoint with {name} was not found out")
    return count, wrong
