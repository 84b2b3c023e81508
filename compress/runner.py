"""Run a pipeline: fold its stages over the student, prove every net on the way, write the report."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from compress.conclusion import Conclusion, Outcome
from compress.data import Data
from compress.ending import endings_of
from compress.errors import BusyError, ConfigError, ResourceError
from compress.events import Event, Listener, ignore
from compress.export.targets import TARGETS
from compress.kept import Finished
from compress.making import Maker
from compress.pipeline import Pipeline
from compress.preflight import preflight
from compress.proof import Prover
from compress.repeats import name_of_repeat
from compress.report import write
from compress.smoke import few_images, for_smoke
from compress.sources import load

LOCK = ".lock"


def run(
    pipeline: Pipeline,
    out: Path,
    *,
    device: str = "auto",
    start_from: str | None = None,
    smoke: bool = False,
    seeds: int = 1,
    plugins: Sequence[Path] = (),
    emit: Listener = ignore,
    command: str = "",
) -> Outcome:
    """Run a pipeline in the folder `out`, taking over every stage that was finished there with the same key.

    `start_from` names a stage (or teacher, or baseline) to redo with all that depends on it. `smoke` runs the same flow
    on a handful of images for one epoch a stage. `seeds` is how many times all but the teachers is made, each time from
    other initial weights and with other chance: the first is the run, the others give its figures a mean and a spread.
    `plugins` are the files that were loaded as such: the report names them, and a changed one makes all stages run
    again. Raises CompressError of every kind; a missed budget and a file that disagrees with its net are in the outcome
    instead, with everything written.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: should be 1 or more, as many times as the student is to be made")
    chosen = pick_device(device)
    make_folder(out)
    with locked(out), _EventFile(out / "events.jsonl", emit) as tell:
        tell({"event": "started", "pipeline": pipeline.name, "time": time.time(), "smoke": smoke})
        warnings: list[str] = []
        if smoke:
            pipeline = for_smoke(pipeline, warnings)
        sources = few_images(pipeline, warnings) if smoke else load(pipeline)
        data = sources.data
        warnings += data.warnings
        for warning in warnings:
            tell({"event": "warning", "text": warning})
        (out / "pipeline.yaml").write_text(pipeline.as_yaml(), encoding="utf-8")
        prover = Prover(out, data, pipeline.export, chosen, about(pipeline))
        endings = [None if smoke else each for each in endings_of(pipeline, data, prover)]
        makers = Maker(pipeline, sources, out, chosen, tell, endings, plugins, warnings).repeats(seeds)
        check = partial(preflight, pipeline, sources, prover, endings)
        trail, again = trails(makers, start_from, check, tell)
        notes = [f"code came in by --plugin {file.name}" for file in plugins]
        conclusion = Conclusion(pipeline, sources, out, prover, tell, not smoke, command, warnings, notes)
        outcome = conclusion.draw(trail, again)
        beside = TARGETS[pipeline.export.target].format
        remove_stale(out, outcome, data, (beside,) if beside else ())
        write(outcome.report, out)
        tell({
            "event": "finished", "verdict": outcome.report.verdict, "exit_code": outcome.exit_code, "time": time.time()
        })  # fmt: skip
        return outcome


def trails(
    makers: Sequence[Maker], start_from: str | None, check: Callable[[], None], tell: Listener
) -> tuple[list[Finished], list[list[Finished]]]:
    """The run's nets, the teachers first; and for each further seed its own, without the teachers that all share.

    `check` is called before anything is made.
    """
    if start_from is not None:
        for maker in makers:
            maker.forget(start_from)
    if not all(maker.all_there() for maker in makers):
        tell({"event": "preflight"})
        check()
    teachers = makers[0].teachers()
    nets = [result.net for result in teachers]
    made = []
    for maker in makers:
        if len(makers) > 1:
            tell({"event": "seed", "seed": maker.repeat, "of": len(makers)})
        made.append(maker.students(nets))
    return [*teachers, *made[0]], made[1:]


def about(pipeline: Pipeline) -> dict[str, str]:
    """How images must be brought to the net's size, for the files' metadata."""
    written = pipeline.data.model_dump(mode="json")  # type: ignore[attr-defined]
    return {key: str(written[key]) for key in ("resize", "interpolation") if key in written}


def remove_stale(out: Path, outcome: Outcome, data: Data, forms: tuple[str, ...]) -> None:
    """Remove files, predictions and test images of an earlier pipeline in the same folder.

    `forms` are the endings of what stands beside each ONNX file.
    """
    rows = (*outcome.report.rows, *outcome.report.alternatives)
    current = {out / row.onnx for row in rows} | {out / "predictions" / f"{row.net}.csv" for row in rows}
    for each in outcome.report.seeds:
        current |= {out / path for path in each.onnx}
        current |= {out / "predictions" / f"{name_of_repeat(each.net, k)}.csv" for k in range(1, len(each.onnx))}
    current |= {path.with_suffix(form) for path in current for form in forms}
    models = {path for kind in (".onnx", ".ort") for path in (out / "models").rglob(f"*{kind}")}
    for old in {*models, *(out / "predictions").rglob("*.csv")} - current:
        old.unlink()
    if not data.embedded:
        (out / "test.npz").unlink(missing_ok=True)


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; raises ConfigError where there is no such GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu, or see `compress doctor`")
    return torch.device(name)


def make_folder(out: Path) -> None:
    """Make the run folder and see that it can be written; raises ResourceError."""
    if out.exists() and not out.is_dir():
        raise ResourceError(f"{out} is a file, and a run needs a folder there; choose another with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / ".writable"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ResourceError(
            f"the folder {out} cannot be written: {error.strerror}; choose another with --out"
        ) from error


def locked(out: Path) -> FileLock:
    """Hold the run folder for this process alone; raises BusyError where another has it."""
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"another run uses {out}; wait for it, or choose another folder with --out") from None
    return lock


class _EventFile:
    """Writes what is worth keeping to events.jsonl and passes everything on."""

    def __init__(self, path: Path, emit: Listener) -> None:
        self.path, self.emit = path, emit

    def __enter__(self) -> Listener:
        self.file = self.path.open("a", encoding="utf-8")
        return self.tell

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def tell(self, event: Event) -> None:
        if event["event"] not in ("step", "progress"):
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()
        self.emit(event)
