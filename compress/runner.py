"""Run a pipeline: fold its stages over the student, prove every net on the way, write the report."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from compress import __version__, kept
from compress.config import as_named, fingerprint, near
from compress.data import Data, MissingData
from compress.data.synthetic import Synthetic
from compress.environment import cpu_flags, environment, has_vnni
from compress.errors import ArtifactError, BusyError, ConfigError, ExportError, ResourceError
from compress.events import Event, Listener, ignore
from compress.kept import Finished
from compress.measure.latency import measure_latency
from compress.net import Net, build, probe
from compress.pipeline import Model, Pipeline
from compress.preflight import preflight, spec_of
from compress.proof import Proof, Prover, require_agreement
from compress.report import Curve, Layer, Report, write
from compress.row import Latency, Row
from compress.stages import Distill, Env, Stage, Train
from compress.train import Training
from compress.verdict import judge_budget, judge_run
from compress.weights import is_file, load_weights

log = logging.getLogger(__name__)
SMOKE_IMAGES = 64
LOCK = ".lock"


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its report, the folder it stands in, the exit code, and an error that did not stop it."""

    report: Report
    folder: Path
    exit_code: int
    failure: ExportError | None = None


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

    `start_from` names a stage (or teacher, or baseline) to redo with all that depends on it. `smoke` runs
    the same flow on a handful of images for one epoch a stage. `plugins` are the files that were loaded as such: the
    report names them, and a changed one makes all stages run again. Raises CompressError of every kind; a missed budget and
    a file that disagrees with its net are in the outcome instead, with everything written.
    """
    chosen = pick_device(device)
    make_folder(out)
    with locked(out), _EventFile(out / "events.jsonl", emit) as tell:
        tell({"event": "started", "pipeline": pipeline.name, "time": time.time(), "smoke": smoke})
        warnings: list[str] = []
        if smoke:
            pipeline = for_smoke(pipeline, warnings)
        data = load_data(pipeline, smoke, warnings)
        for warning in (*warnings, *data.warnings):
            tell({"event": "warning", "text": warning})
        (out / "pipeline.yaml").write_text(pipeline.as_yaml())
        job = _Job(pipeline, data, out, chosen, tell, plugins, warnings=[*warnings, *data.warnings])
        job.forget(start_from)
        job.preflight()
        trail = job.train()
        outcome = job.conclude(trail, smoke, command)
        tell({"event": "finished", "verdict": outcome.report.verdict, "exit_code": outcome.exit_code, "time": time.time()})
        return outcome


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
        raise ResourceError(f"the folder {out} cannot be written: {error.strerror}; choose another with --out") from error


def locked(out: Path) -> FileLock:
    """Hold the run folder for this process alone; raises BusyError where another has it."""
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"another run uses {out}; wait for it, or choose another folder with --out") from None
    return lock


def load_data(pipeline: Pipeline, smoke: bool, warnings: list[str]) -> Data:
    """The pipeline's images; for a smoke run a handful of them, or made-up ones where they are missing."""
    if not smoke:
        return pipeline.data(pipeline.seed)
    try:
        return pipeline.data(pipeline.seed).smaller(SMOKE_IMAGES)
    except MissingData as error:
        warnings.append(f"made-up images stand in for the data, which are missing: {error}")
    given = pipeline.data
    synthetic = Synthetic(
        size=given.size, channels=given.channels, classes=SMOKE_CLASSES.get(given.name, 10), samples=128  # type: ignore[attr-defined]
    )
    return synthetic(pipeline.seed).smaller(SMOKE_IMAGES)


SMOKE_CLASSES = {"cifar100": 100}


def for_smoke(pipeline: Pipeline, warnings: list[str]) -> Pipeline:
    """The same flow in seconds: one epoch a stage, small batches, no downloads, no budget."""
    stages = tuple(s.model_copy(update={"training": brief(s.training)}) for s in pipeline.stages)  # type: ignore[attr-defined]
    update: dict[str, Any] = {
        "stages": stages,
        "student": without_download(pipeline.student, warnings),
        "budget": type(pipeline.budget)(),
        "benchmark": pipeline.benchmark.model_copy(update={"rounds": 3}),
    }
    if pipeline.baseline.training is not None:
        update["baseline"] = pipeline.baseline.model_copy(update={"training": brief(pipeline.baseline.training)})
    if pipeline.teacher is not None:
        training = pipeline.teacher.training and brief(pipeline.teacher.training)
        model = without_download(pipeline.teacher.model, warnings)
        update["teacher"] = pipeline.teacher.model_copy(update={"model": model, "training": training})
    warnings.append("this is a smoke run: a handful of images, one epoch a stage; its figures mean nothing")
    return pipeline.model_copy(update=update)


def brief(training: Training) -> Training:
    """At most one epoch of small batches."""
    return training.model_copy(
        update={
            "epochs": min(training.epochs, 1),
            "batch_size": min(training.batch_size, 16),
            "milestones": training.milestones and (1,),
            "warmup": min(training.warmup, 0.5),
        }
    )


def without_download(model: Model, warnings: list[str]) -> Model:
    """The model with random weights where its own would have to be downloaded."""
    if model.weights is None or is_file(model.weights):
        return model
    warnings.append(f"random weights stand in for {model.architecture.name}'s {model.weights}")
    return model.model_copy(update={"weights": None})


@dataclass
class _Job:
    """One run: what it works on, and what it has to say so far."""

    pipeline: Pipeline
    data: Data
    out: Path
    device: torch.device
    tell: Listener
    plugins: Sequence[Path] = ()
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        written = self.pipeline.data.model_dump(mode="json")  # type: ignore[attr-defined]
        about = {key: str(written[key]) for key in ("resize", "interpolation") if key in written}
        self.prover = Prover(self.out, self.data, self.pipeline.export, self.device, about)
        pipeline = self.pipeline
        code = [file.read_text() for file in self.plugins]
        self.notes += [f"code came in by --plugin {file.name}" for file in self.plugins]
        self.root = fingerprint(__version__, torch.__version__, self.data.fingerprint, pipeline.seed, code)
        self.teacher_key = ""
        if pipeline.teacher is not None:
            training = _dump(pipeline.teacher.training)
            self.teacher_key = fingerprint(self.root, "teacher", self.model_key(pipeline.teacher.model), training)
        self.start_key = fingerprint(self.root, "student", self.model_key(pipeline.student))
        self.baseline_key = fingerprint(self.start_key, "baseline", _dump(pipeline.baseline.training))

    def model_key(self, model: Model) -> str:
        """Changes with the architecture and with the content of the weights."""
        path = Path(model.weights) if model.weights and is_file(model.weights) else None
        content = fingerprint(path.read_bytes().hex()) if path and path.is_file() else None
        return fingerprint(model.written(), content)

    def keys(self) -> list[str]:
        """One key a stage, each made of the one before, the teacher's where it is used, and the stage itself."""
        distills = isinstance(self.pipeline.stages[0], Distill)
        key, found = self.start_key if distills else self.baseline_key, []
        for stage in self.pipeline.stages:
            taught = any(loss.needs_teacher for loss in stage.losses or ())
            key = fingerprint(key, as_named(stage), self.teacher_key if taught else None)
            found.append(key)
        return found

    def folder(self, label: str, key: str) -> Path:
        return self.out / "stages" / f"{label}-{key}"

    def labels(self) -> dict[str, Path]:
        """The folder of every net of this run, by `teacher`, `baseline` and `<n>-<stage>`, in order."""
        folders = {"teacher": self.folder("teacher", self.teacher_key)} if self.pipeline.teacher else {}
        folders["baseline"] = self.folder("baseline", self.baseline_key)
        for i, (stage, key) in enumerate(zip(self.pipeline.stages, self.keys(), strict=True)):
            folders[f"{i}-{stage.name}"] = self.folder(f"{i}-{stage.name}", key)
        return folders

    def forget(self, start_from: str | None) -> None:
        """Throw away a stage's result and those of all that depend on it; raises ConfigError for an unknown name."""
        if start_from is None:
            return
        folders = self.labels()
        label = next((x for x in folders if start_from in (x, x.split("-")[0], x.split("-", 1)[-1])), None)
        if label is None:
            raise ConfigError(f"--from {start_from}: no such stage in this pipeline.{near(start_from, folders)}")
        later = [*folders][[*folders].index(label) :]
        if label == "teacher":
            later.remove("baseline")  # which never saw the teacher
        elif label == "baseline" and isinstance(self.pipeline.stages[0], Distill):
            later = [label]
        for gone in later:
            shutil.rmtree(folders[gone], ignore_errors=True)

    def preflight(self) -> None:
        """Try everything with stand-ins unless all stages are there already."""
        if all(folder.is_dir() for folder in self.labels().values()):
            return
        self.tell({"event": "preflight"})
        preflight(self.pipeline, self.data, self.prover)

    def train(self) -> list[Finished]:
        """Teacher, baseline and one net a stage, each made or taken over."""
        pipeline, folders, trail = self.pipeline, self.labels(), []
        teacher = None
        if pipeline.teacher is not None:
            teacher = self.alone("teacher", pipeline.teacher.model, pipeline.teacher.training, self.teacher_key)
            trail.append(teacher)
        baseline = self.alone("baseline", pipeline.student, pipeline.baseline.training, self.baseline_key)
        trail.append(baseline)
        net: Callable[[], Net] = lambda: baseline.net  # noqa: E731
        if isinstance(pipeline.stages[0], Distill):
            net = lambda: self.fresh(pipeline.student, forget)  # noqa: E731
        for i, (stage, key) in enumerate(zip(pipeline.stages, self.keys(), strict=True)):
            folder, before = folders[f"{i}-{stage.name}"], net
            result = self.finished_or(
                stage.name, key, folder, lambda env, stage=stage, before=before: stage(before(), env), teacher
            )
            trail.append(result)
            net = lambda result=result: result.net  # noqa: E731
        return trail

    def fresh(self, model: Model, note: Callable[[str], None]) -> Net:
        """A model's net as given: built from the seed, its weights loaded if it has any."""
        net = build(spec_of(model, self.data), self.pipeline.seed)
        probe(net)
        if model.weights is not None:
            for remark in load_weights(net.module, model.architecture.name, model.weights, keep_head=model.keep_head):
                note(remark)
        return net

    def alone(self, role: str, model: Model, training: Training | None, key: str) -> Finished:
        """The teacher or the baseline: trained without a teacher, or left as its weights are."""

        def make(env: Env) -> Net:
            net = self.fresh(model, env.warn)
            return Train(training=training)(net, env) if training is not None else replace(net, module=net.module.eval())

        return self.finished_or(role, key, self.folder(role, key), make, None)

    def finished_or(
        self, stage: str, key: str, folder: Path, make: Callable[[Env], Net], teacher: Finished | None
    ) -> Finished:
        """The kept result of a stage, or a new one, kept."""
        try:
            result = kept.load(folder)
        except ArtifactError as error:
            self.warn(f"{error}; it is run again")
            result = None
        if result is not None:
            self.tell({"event": "unchanged", "stage": stage, "folder": folder.name})
            return result
        self.tell({"event": "stage", "stage": stage, "folder": folder.name, "time": time.time()})
        unfinished = kept.start(folder)
        notes: list[str] = []
        warnings: list[str] = []
        beside: dict[str, Net] = {}
        began = time.perf_counter()

        def listen(event: Event) -> None:
            self.tell(event)
            if event["event"] == "epoch":
                with (unfinished / "train.jsonl").open("a") as file:
                    file.write(json.dumps({k: v for k, v in event.items() if k != "event"}) + "\n")

        env = Env(
            data=self.data,
            teachers=(teacher.net,) if teacher is not None else (),
            device=self.device,
            seed=int(key, 16) % 2**31,
            stage=stage,
            emit=listen,
            note=notes.append,
            warn=warnings.append,
            beside=beside.__setitem__,
        )
        try:
            net = make(env)
            seconds = time.perf_counter() - began
            curve = kept.read_curve(unfinished / "train.jsonl")
            result = Finished(stage, key, folder, net, seconds, beside, tuple(notes), tuple(warnings), curve)
            kept.finish(unfinished, result)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self.tell({"event": "stage finished", "stage": stage, "seconds": seconds, "time": time.time()})
        return result

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.tell({"event": "warning", "text": text})

    def conclude(self, trail: Sequence[Finished], smoke: bool, command: str) -> Outcome:
        """Prove every net, time all files together, judge, and write the report."""
        names = unique_names(trail)
        files, beside = self.prove(trail, names)
        self.tell({"event": "measuring", "files": len(files) + len(beside)})
        paths = {name: self.out / proof.onnx for name, proof in (*files.items(), *beside.items())}
        benchmark = self.pipeline.benchmark
        timed = measure_latency(paths, threads=benchmark.threads, batch=benchmark.batch, rounds=benchmark.rounds)
        latency = {name: found for name, (found, _) in timed.items()}
        rows = [self.row(name, r, files[name], latency[name]) for name, r in zip(names, trail, strict=True)]
        variants = [
            self.row(f"{name}-{variant}", result, beside[f"{name}-{variant}"], latency[f"{name}-{variant}"], extra=True)
            for name, result in zip(names, trail, strict=True)
            for variant in result.beside
        ]
        trained = not smoke and any(result.curve for result in trail) or (not smoke and self.has_weights())
        failure = self.judge_files(files) if trained else None
        baseline = rows[names.index("baseline")]
        budget = judge_budget(self.pipeline.budget, rows[-1], baseline)
        verdict = "fail" if failure else judge_run(budget, rows[-1], self.data.classes, trained)
        self.remarks(trail, [*files.values(), *beside.values()], rows, trained)
        if self.data.embedded:
            self.prover.write_test_images()
        report = Report(
            name=self.pipeline.name,
            verdict=verdict,
            budget=budget,
            rows=tuple(rows),
            alternatives=tuple(variants),
            baseline="baseline",
            teacher="teacher" if self.pipeline.teacher else None,
            environment=environment() | {
                "seed": self.pipeline.seed,
                "pipeline_hash": self.pipeline.key,
                "data_fingerprint": self.data.fingerprint,
            },
            data=self.about_data(),
            layers=changed_layers(trail[-1].net),
            curves=tuple(Curve(name, result.curve) for name, result in zip(names, trail, strict=True) if result.curve),
            warnings=tuple(self.warnings),
            notes=tuple(self.notes),
            pipeline_yaml=self.pipeline.as_yaml(),
            command=command,
        )  # fmt: skip
        write(report, self.out)
        code = failure.exit_code if failure else 5 if verdict == "fail" else 0
        return Outcome(report, self.out, code, failure)

    def prove(self, trail: Sequence[Finished], names: Sequence[str]) -> tuple[dict[str, Proof], dict[str, Proof]]:
        """Files and figures of all nets, and of the variants beside them, by name."""
        files, beside = {}, {}
        for name, result in zip(names, trail, strict=True):
            self.tell({"event": "exporting", "net": name})
            ending = "int8.onnx" if result.net.int8 else "onnx"
            files[name] = self.prover.prove(result.net, name, f"models/{name}.{ending}", result.folder, result.key)
            for variant, net in result.beside.items():
                long = f"{name}-{variant}"
                ending = "int8.onnx" if net.int8 else "onnx"
                path = f"models/alternatives/{long}.{ending}"
                beside[long] = self.prover.prove(net, long, path, result.folder / variant, result.key)
        return files, beside

    def row(self, name: str, result: Finished, proof: Proof, latency: Latency, extra: bool = False) -> Row:
        accuracy = proof.accuracy
        return Row(
            net=name,
            stage=result.stage,
            top1=accuracy.top1,
            top1_low=accuracy.top1_low,
            top1_high=accuracy.top1_high,
            top5=accuracy.top5,
            top1_onnx=accuracy.top1_onnx,
            agreement=accuracy.agreement,
            samples=accuracy.samples,
            params=proof.params,
            macs=proof.macs,
            flops=2 * proof.macs,
            bytes=proof.bytes,
            latency_ms=latency,
            throughput=1000 * self.pipeline.benchmark.batch / latency.p50,
            # A variant beside the way came about within the stage's time and has none of its own.
            seconds=0.0 if extra else result.seconds,
            onnx=proof.onnx,
            int8=proof.int8,
        )

    def judge_files(self, files: Mapping[str, Proof]) -> ExportError | None:
        """The first file that does not predict what its net predicts."""
        for name, proof in files.items():
            try:
                require_agreement(name, proof)
            except ExportError as error:
                self.warn(str(error))
                return error
        return None

    def has_weights(self) -> bool:
        teacher = self.pipeline.teacher
        return self.pipeline.student.weights is not None or bool(teacher and teacher.model.weights)

    def remarks(
        self, trail: Sequence[Finished], proofs: Sequence[Proof], rows: Sequence[Row], trained: bool
    ) -> None:
        """Gather what stages, files and figures have to say that a user should hear."""
        for result in trail:
            for text in result.warnings:
                self.warn(f"{result.stage}: {text}")
            self.notes += [f"{result.stage}: {text}" for text in result.notes]
        for text in dict.fromkeys(warning for proof in proofs for warning in proof.warnings):
            self.warn(text)
        by_name = {row.net: row for row in rows}
        teacher, baseline, last = by_name.get("teacher"), by_name["baseline"], rows[-1]
        if trained and teacher and teacher.top1_onnx <= baseline.top1_onnx:
            self.warn(
                f"the teacher ({teacher.top1_onnx:.1f} %) is no better than the baseline "
                f"({baseline.top1_onnx:.1f} %), so there is little to learn from it"
            )
        slower = last.latency_ms.p50 / baseline.latency_ms.p50
        if last.int8 and slower > 1:
            self.warn(
                f"the int8 file is slower than the float baseline here: {slower:.2f}× its time. {self.why_slow()}"
            )

    def why_slow(self) -> str:
        if not has_vnni(cpu_flags()):
            return "This CPU has no VNNI or dot-product instructions, which int8 kernels need to be fast."
        return "The net may be too small, or its widths no multiples of 16, for int8 kernels to pay."

    def about_data(self) -> dict[str, Any]:
        data = self.data
        return {
            "name": self.pipeline.data.name,
            "classes": data.classes,
            "class_names": list(data.class_names),
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "image": list(data.image),
            "mean": list(data.mean),
            "std": list(data.std),
        }


def forget(text: str) -> None:
    """Say nothing: the baseline, built from the same weights, has said it."""


def unique_names(trail: Sequence[Finished]) -> list[str]:
    """A name for each net, the stage's, numbered from the second of a kind on."""
    names: list[str] = []
    for result in trail:
        count = sum(name == result.stage or name.startswith(f"{result.stage}-") for name in names)
        names.append(f"{result.stage}-{count + 1}" if count else result.stage)
    return names


def changed_layers(net: Net) -> tuple[Layer, ...]:
    """Output channels of every convolution in the architecture and in the net, where any differ."""
    dense = build(net.spec.model_copy(update={"edits": ()})).module
    now = {name: m.out_channels for name, m in net.module.named_modules() if isinstance(m, nn.Conv2d)}
    layers = [
        Layer(name, conv.out_channels, now[name])
        for name, conv in dense.named_modules()
        if isinstance(conv, nn.Conv2d) and name in now
    ]
    return tuple(layers) if any(layer.before != layer.after for layer in layers) else ()


def _dump(training: Training | None) -> Any:
    return None if training is None else training.model_dump(mode="json")


class _EventFile:
    """Writes what is worth keeping to events.jsonl and passes everything on."""

    def __init__(self, path: Path, emit: Listener) -> None:
        self.path, self.emit = path, emit

    def __enter__(self) -> Listener:
        self.file = self.path.open("a")
        return self.tell

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def tell(self, event: Event) -> None:
        if event["event"] != "step":
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()
        self.emit(event)
