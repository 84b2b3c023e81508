"""Run a pipeline: fold its stages over the student, prove every net on the way, write the report."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from compress.conclusion import Conclusion, Outcome
from compress.data import Data
from compress.ending import endings_of
from compress.errors import BusyError, ConfigError, ResourceError
from compress.events import Event, Listener, ignore
from compress.export.targets import TARGETS
from compress.making import Maker
from compress.pipeline import Pipeline
from compress.preflight import preflight
from compress.proof import Prover
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
    plugins: Sequence[Path] = (),
    emit: Listener = ignore,
    command: str = "",
) -> Outcome:
    """Run a pipeline in the folder `out`, taking over every stage that was finished there with the same key.

    `start_from` names a stage (or teacher, or baseline) to redo with all that depends on it. `smoke` runs the same flow
    on a handful of images for one epoch a stage. `plugins` are the files that were loaded as such: the report names
    them, and a changed one makes all stages run again. Raises CompressError of every kind; a missed budget and a file
    that disagrees with its net are in the outcome instead, with everything written.
    """
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
        maker = Maker(pipeline, sources, out, chosen, tell, endings, plugins, warnings)
        if start_from is not None:
            maker.forget(start_from)
        if not maker.all_there():
            tell({"event": "preflight"})
            preflight(pipeline, sources, prover, endings)
        trail = maker.trail()
        notes = [f"code came in by --plugin {file.name}" for file in plugins]
        outcome = Conclusion(pipeline, sources, out, prover, tell, not smoke, command, warnings, notes).draw(trail)
        beside = TARGETS[pipeline.export.target].format
        remove_stale(out, outcome, data, (beside,) if beside else ())
        write(outcome.report, out)
        tell({
            "event": "finished", "verdict": outcome.report.verdict, "exit_code": outcome.exit_code, "time": time.time()
        })  # fmt: skip
        return outcome


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
    current |= {path.with_suffix(form) for path in current for form in forms}
    models = {path for kind in (".onnx", ".ort") for path in (out / "models").rglob(f"*{kind}")}
    for old in {*models, *(out / "predictions").glob("*.csv")} - current:
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
