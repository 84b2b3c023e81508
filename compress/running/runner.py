"""Run a pipeline: fold its stages over the student, prove every net on the way, write the report."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from compress.data import Data
from compress.distributed.group import current
from compress.distributed.launch import pick_device
from compress.errors import ConfigError
from compress.events import Event, Listener, ignore
from compress.export.targets import TARGETS
from compress.files import durable, run_folder
from compress.files.lock import Owner, locked
from compress.pipeline import Pipeline
from compress.report import read, write
from compress.running.changes import changes, last_plan, plan
from compress.running.conclusion import Conclusion, Outcome
from compress.running.ending import endings_of
from compress.running.kept import Finished
from compress.running.making import Maker
from compress.running.preflight import preflight
from compress.running.proof import Prover
from compress.running.repeats import name_of_repeat
from compress.running.smoke import few_images, for_smoke
from compress.running.sources import Sources, load
from compress.training.checkpoint import EVERY_S


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
    checkpoint_every: float = EVERY_S,
) -> Outcome:
    """Run a pipeline in the folder `out`, taking over every stage that was finished there with the same key.

    `start_from` names a stage (or teacher, or baseline) to redo with all that depends on it. `smoke` runs the same flow
    on a handful of images for one epoch a stage. `seeds` is how many times all but the teachers is made, each time from
    other initial weights and with other chance: the first is the run, the others give its figures a mean and a spread.
    `plugins` are the files that were loaded as such: the report names them, and a changed one makes all stages run
    again. A training is kept as it is every `checkpoint_every` seconds, at the end of a step (0 for every step), and a
    run that was stopped in any way goes on from there to the same bits. Raises CompressError of every kind; a missed
    budget and a file that disagrees with its net are in the outcome instead, with everything written.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: should be 1 or more, as many times as the student is to be made")
    group = current()
    chosen = pick_device(device) if group.size == 1 else group.device
    with taken(out) as dead:
        tell = recording(out / run_folder.EVENTS, emit)
        tell({"event": "started", "pipeline": pipeline.name, "time": time.time(), "smoke": smoke})
        if dead is not None:
            tell({"event": "taken over", **asdict(dead)})
        damaged = group.first(partial(run_folder.damaged, out))
        warnings = [*remarks(damaged)]
        pipeline, sources = loaded(pipeline, warnings, smoke=smoke)
        for warning in warnings:
            tell({"event": "warning", "text": warning})
        warn = partial(warning_of, warnings, tell)
        prover = Prover(out, sources.data, pipeline.export, chosen, about(pipeline), warn=warn)
        endings = [None if smoke else each for each in endings_of(pipeline, sources.data, prover)]
        maker = Maker(
            pipeline, sources, out, chosen, tell, endings, plugins, warnings, checkpoint_every=checkpoint_every
        )
        makers = maker.repeats(seeds)
        if start_from is not None:
            for each in makers:
                group.first(partial(each.forget, start_from))
        check = partial(preflight, pipeline, sources, prover, endings, exporting=not smoke)
        known = run_folder.PIPELINE not in damaged
        group.first(partial(take_up, out, pipeline, makers, check, tell, compare=known))
        trail, again = trails(makers, tell)
        notes = [f"code came in by --plugin {file.name}" for file in plugins]
        if group.size > 1:
            notes.append(f"{group.size} processes trained together; another number of them gives other last digits")
        conclusion = Conclusion(pipeline, sources, out, prover, tell, not smoke, command, warnings, notes, group.size)
        return concluded(conclusion, trail, again)


def loaded(pipeline: Pipeline, warnings: list[str], *, smoke: bool) -> tuple[Pipeline, Sources]:
    """The pipeline as it is to run, and its images; `warnings` gathers what there is to say of both."""
    if smoke:
        pipeline = for_smoke(pipeline, warnings)
    # In turn: what the first process has to fetch the others find.
    sources = current().in_turn(partial(few_images, pipeline, warnings) if smoke else partial(load, pipeline))
    current().same("pipeline", pipeline.key)
    current().same("data set", sources.data.fingerprint)
    warnings += sources.data.warnings
    return pipeline, sources


@contextmanager
def taken(out: Path) -> Iterator[Owner | None]:
    """The run folder, made if need be and this run's alone; gives the owner that died with it in hand, if one did.

    Of several processes the first one holds it. Raises ResourceError, and BusyError where another run has it.
    """
    if current().leads:
        run_folder.make(out)
    with locked(out) if current().leads else nullcontext() as dead:
        yield dead


def concluded(conclusion: Conclusion, trail: Sequence[Finished], again: Sequence[Sequence[Finished]]) -> Outcome:
    """What a run came to, with everything written; of several processes the first does that, and the others read it."""
    found: list[Outcome] = []

    def conclude() -> int:
        found.append(written(conclusion, conclusion.draw(trail, again)))
        return found[0].exit_code

    code = current().first(conclude)
    return found[0] if found else Outcome(read(conclusion.out), conclusion.out, code)


def written(conclusion: Conclusion, outcome: Outcome) -> Outcome:
    """Put the report into the run folder, take out what does not belong to it, and write down all checksums."""
    out, report = outcome.folder, outcome.report
    beside = TARGETS[conclusion.pipeline.export.target].format
    remove_stale(out, outcome, conclusion.data, (beside,) if beside else ())
    write(report, out)
    run_folder.seal(out)
    conclusion.tell({
        "event": "finished", "verdict": report.verdict, "exit_code": outcome.exit_code, "time": time.time()
    })  # fmt: skip
    return outcome


def take_up(
    out: Path,
    pipeline: Pipeline,
    makers: Sequence[Maker],
    check: Callable[[], None],
    tell: Listener,
    *,
    compare: bool = True,
) -> None:
    """Say what is different from the last run in the folder, call `check` where anything is left to be made, and begin.

    What was checked before the last run began, and is the same in all, is not checked again.
    `compare` is off where the folder's pipeline.yaml is not what that run wrote. From here on the folder is this run's;
    a run that fails before has changed nothing in it.
    """
    run_folder.see_free(folder for maker in makers for folder in maker.folders().values())
    now = plan(makers)
    try:
        changed = changes(out, pipeline, now) if compare else None
    except ConfigError as error:
        changed = {"event": "warning", "text": f"what changed since the last run cannot be told: {error}"}
    if changed is not None:
        tell(changed)
    checked = compare and changed is None and last_plan(out / run_folder.EVENTS) == now
    if not checked and not all(maker.all_there() for maker in makers):
        tell({"event": "preflight"})
        check()
    run_folder.unseal(out)
    durable.write(out / run_folder.PIPELINE, pipeline.as_yaml())
    tell(now.event())


def trails(makers: Sequence[Maker], tell: Listener) -> tuple[list[Finished], list[list[Finished]]]:
    """The run's nets, the teachers first; and for each further seed its own, without the teachers that all share."""
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
        durable.remove(old)
    if not data.embedded:
        durable.remove(out / "test.npz")


def warning_of(warnings: list[str], tell: Listener, text: str) -> None:
    """Say a warning, and keep it for the report."""
    warnings.append(text)
    tell({"event": "warning", "text": text})


def remarks(damaged: Mapping[str, str]) -> Iterator[str]:
    """What to say of files that are not as the last run left them."""
    for name, what in damaged.items():
        made_again = not name.startswith(run_folder.MADE_BY_STAGES)
        yield f"{name} {what}; " + ("it is made again" if made_again else "its stage makes it again: --from STAGE")


def recording(path: Path, emit: Listener) -> Listener:
    """Writes what is worth keeping to events.jsonl and passes everything on. Raises ResourceError where it cannot."""

    def tell(event: Event) -> None:
        if event["event"] not in ("step", "progress"):
            durable.append(path, json.dumps(event))
        emit(event)

    return tell
