"""What a run came to: every net proven on its file, all files timed together, judged, and put into the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.data import Data
from compress.environment import cpu_flags, environment, has_vnni
from compress.errors import ExportError
from compress.events import Listener
from compress.measure.latency import distribution, measure_with_control
from compress.measure.slowness import slowness
from compress.measure.structure import NOT_JUDGED
from compress.net import Net
from compress.pipeline import Pipeline
from compress.report import Curve, OverSeeds, Report, UnderCorruption
from compress.report.certainty import noise
from compress.report.wording import not_faster
from compress.row import Control, Distribution, Latency, Row
from compress.running.corrupting import Subject, under_corruption
from compress.running.devices import devices_of
from compress.running.kept import Finished
from compress.running.particulars import (
    changed_predictions,
    last_int8,
    layers_of,
    left_float,
    rounding_of,
    sensitivities,
)
from compress.running.proof import Proof, Prover, require_agreement
from compress.running.repeats import Repeated, over_seeds
from compress.running.shipping import ship
from compress.running.sources import Sources
from compress.running.verdict import at_chance, judge_budget, judge_run
from compress.stages import Distill

WIDE_GAP = 4  # times as many parameters, from which a teacher may be too far above its student
MISSED = 5  # the exit code for a budget that was not kept


@dataclass(frozen=True)
class Outcome:
    """A run's report, the folder it stands in, the exit code, and an error that did not stop it."""

    report: Report
    folder: Path
    exit_code: int
    failure: ExportError | None = None


@dataclass
class Conclusion:
    """Turns the nets of a run into its report. `judged` is off for smoke runs, whose accuracy means nothing.

    `processes` is how many trained together.
    """

    pipeline: Pipeline
    sources: Sources
    out: Path
    prover: Prover
    tell: Listener
    judged: bool
    command: str
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    processes: int = 1

    @property
    def data(self) -> Data:
        """The student's images."""
        return self.sources.data

    def data_of(self, i: int) -> Data:
        """The images of the i-th net of the trail, the teachers being the first."""
        return self.sources.of_teacher(i) if i < len(self.sources.views) else self.data

    def draw(self, trail: Sequence[Finished], again: Sequence[Sequence[Finished]] = ()) -> Outcome:
        """Prove, time, judge; nothing is written but models, predictions and test images.

        `again` has what further seeds made, without the teachers; `trail` alone is judged.
        """
        names = unique_names(trail)
        files, variants = self.prove(trail, names)
        latency, timings, control = self.timed({**files, **variants}, again=names[-1])
        rows = [self.row(name, r, files[name], latency[name], r.seconds) for name, r in zip(names, trail, strict=True)]
        owner = {
            f"{name}-{beside}": result for name, result in zip(names, trail, strict=True) for beside in result.beside
        }
        # A variant beside the way came about within its stage's time and has none of its own.
        beside = [self.row(name, owner[name], proof, latency[name], 0.0) for name, proof in variants.items()]
        trained = self.judged and (self.has_weights() or any(result.curve for result in trail))
        failure = self.disagreement(files) if trained else None
        budget = judge_budget(self.pipeline.budget, rows[-1], rows[names.index("baseline")])
        verdict = "fail" if failure else judge_run(budget, rows[-1], self.data.classes, trained)
        self.remark(trail, (*files.values(), *variants.values()), rows, trained)
        self.remark_slowness(rows, noise(control))
        if self.data.embedded:
            self.prover.write_test_images()
        ship(self.out, {**files, **variants}, self.provers(trail, names))
        robustness = self.robustness(trail, names, files)
        seeds = self.over_seeds(trail, names, files, again, trained)
        report = Report(
            name=self.pipeline.name,
            verdict=verdict,
            budget=budget,
            rows=tuple(rows),
            alternatives=tuple(beside),
            baseline="baseline",
            teacher=best_teacher(rows[: len(self.pipeline.teacher)]),
            environment=self.environment(),
            data=self.about_data(),
            timings=timings,
            control=control,
            curves=tuple(Curve(n, result.curve) for n, result in zip(names, trail, strict=True) if result.curve),
            robustness=robustness,
            seeds=seeds,
            warnings=tuple(self.warnings),
            notes=tuple(self.notes),
            pipeline_yaml=self.pipeline.as_yaml(),
            command=self.command,
        )
        code = failure.exit_code if failure else MISSED if verdict == "fail" else 0
        return Outcome(self.detailed(report, trail, [*files.values()]), self.out, code, failure)

    def detailed(self, report: Report, trail: Sequence[Finished], files: Sequence[Proof]) -> Report:
        """The report with what is known of layers, rounding, predictions and devices."""
        rounded = last_int8(trail, files)
        devices = devices_of(self.out, report.rows + report.alternatives, report.baseline, self.warn)
        return replace(
            report,
            layers=layers_of(trail[-1].net, sensitivities(self.out, [result.stage for result in trail])),
            rounding=rounding_of(rounded[1], rounded[0]) if rounded else (),
            left_float=left_float(self.out / rounded[1].onnx) if rounded else (),
            changes=changed_predictions(self.out, report.baseline_row, report.result, self.data),
            devices=devices,
            warnings=tuple(self.warnings),
        )

    def prove(self, trail: Sequence[Finished], names: Sequence[str]) -> tuple[dict[str, Proof], dict[str, Proof]]:
        """Files and figures of all nets, and of the variants beside them, by name."""
        files, variants = {}, {}
        for i, (name, result) in enumerate(zip(names, trail, strict=True)):
            self.tell({"event": "exporting", "net": name})
            path = f"models/{name}.{_ending(result.net)}"
            own = self.data_of(i)
            prover = self.prover if own is self.data else self.prover.seeing(own)
            files[name] = prover.prove(result.net, name, path, result.folder, result.key)
            for variant, net in result.beside.items():
                long = f"{name}-{variant}"
                path = f"models/alternatives/{long}.{_ending(net)}"
                variants[long] = self.prover.prove(net, long, path, result.folder / variant, result.key)
        return files, variants

    def provers(self, trail: Sequence[Finished], names: Sequence[str]) -> dict[str, Prover]:
        """Who sees the images of each net and of each variant beside it, by name."""
        found = {}
        for i, (name, result) in enumerate(zip(names, trail, strict=True)):
            found[name] = self.prover.seeing(self.data_of(i))
            found |= {f"{name}-{variant}": self.prover for variant in result.beside}
        return found

    def timed(
        self, proofs: Mapping[str, Proof], again: str
    ) -> tuple[dict[str, Latency], tuple[Distribution, ...], Control]:
        """The latency of all files, which take turns, `again` twice: medians, spread, noise."""
        self.tell({"event": "measuring", "files": len(proofs)})
        settings = self.pipeline.benchmark
        found, control = measure_with_control(
            {name: self.out / proof.onnx for name, proof in proofs.items()},
            again=again,
            threads=settings.threads,
            batch=settings.batch,
            rounds=settings.rounds,
        )
        spread = tuple(distribution(name, times) for name, (_, times) in found.items())
        return {name: latency for name, (latency, _) in found.items()}, spread, control

    def robustness(
        self, trail: Sequence[Finished], names: Sequence[str], files: Mapping[str, Proof]
    ) -> tuple[UnderCorruption, ...]:
        """The accuracy of every net's file on corrupted test images, where the pipeline asks for it."""
        if self.pipeline.robustness is None:
            return ()
        subjects = [
            Subject(name, files[name], self.data_of(i), result.folder)
            for i, (name, result) in enumerate(zip(names, trail, strict=True))
        ]
        return under_corruption(self.pipeline.robustness, subjects, self.prover, self.pipeline.seed, self.tell)

    def over_seeds(
        self,
        trail: Sequence[Finished],
        names: Sequence[str],
        files: Mapping[str, Proof],
        again: Sequence[Sequence[Finished]],
        trained: bool,
    ) -> tuple[OverSeeds, ...]:
        """The accuracy of the baseline and of each stage's net over all seeds, where there was more than one."""
        if not again:
            return ()
        own = slice(len(self.pipeline.teacher), None)
        made = zip(names[own], trail[own], zip(*again, strict=True), strict=True)
        nets = [Repeated(name, first, files[name], others) for name, first, others in made]
        return over_seeds(nets, self.prover, self.tell, self.warn, judged=trained)

    def row(self, name: str, result: Finished, proof: Proof, latency: Latency, seconds: float) -> Row:
        """The line of a net in the report."""
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
            seconds=seconds,
            onnx=proof.onnx,
            int8=proof.int8,
        )

    def disagreement(self, files: Mapping[str, Proof]) -> ExportError | None:
        """The first file that does not predict what its net predicts."""
        for name, proof in files.items():
            try:
                require_agreement(name, proof)
            except ExportError as error:
                self.warn(str(error))
                return error
        return None

    def remark(self, trail: Sequence[Finished], proofs: Sequence[Proof], rows: Sequence[Row], trained: bool) -> None:
        """Gather what stages, files and figures have to say that a user should hear."""
        for result in trail:
            for text in result.warnings:
                self.warn(f"{result.stage}: {text}")
            self.notes += [f"{result.stage}: {text}" for text in result.notes]
        for text in dict.fromkeys(warning for proof in proofs for warning in proof.warnings):
            self.warn(text)
        by_name = {row.net: row for row in rows}
        baseline = by_name["baseline"]
        if trained:
            for text in lessons(rows[: len(self.pipeline.teacher)], baseline, self.distilled(rows)):
                self.warn(text)
        if trained and at_chance(rows[-1], self.data.classes):
            self.warn(
                f"{rows[-1].net} is no better than guessing, {rows[-1].top1_onnx:.1f} % right with "
                f"{self.data.classes} classes: train longer, lower training.lr, or look at the labels"
            )
        flags = cpu_flags()
        if any(proof.int8 for proof in proofs) and flags and not has_vnni(flags):
            self.warn(
                "this CPU has no VNNI or dot-product instructions: int8 is slow here and products may saturate, so "
                "measure accuracy and latency again on the device"
            )

    def distilled(self, rows: Sequence[Row]) -> Row | None:
        """The row of the first distill stage, None where there is none."""
        stages = rows[len(rows) - len(self.pipeline.stages) :]
        found = zip(self.pipeline.stages, stages, strict=True)
        return next((row for stage, row in found if isinstance(stage, Distill)), None)

    def remark_slowness(self, rows: Sequence[Row], chance: float) -> None:
        """Say of each int8 file that is not faster than the float one before it, and why that may be.

        `chance` is the share by which medians differ for no reason.
        """
        if self.pipeline.export.target in NOT_JUDGED:
            return
        for i, row in enumerate(rows):
            before = next((earlier for earlier in reversed(rows[:i]) if not earlier.int8), None)
            if not row.int8 or before is None or row.latency_ms.p50 < before.latency_ms.p50:
                continue
            found = slowness(self.out / row.onnx, cpu_flags())
            why = "; ".join(found) or "no cause that is known of: measure again on an idle machine"
            speed = before.latency_ms.p50 / row.latency_ms.p50
            within = f", which is within the noise of {100 * chance:.0f} %" if speed * (1 + chance) >= 1 else ""
            self.warn(
                f"{not_faster(row.onnx)} {before.onnx} here, {speed:.2f} times its speed{within}. Likely causes: {why}"
            )

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.tell({"event": "warning", "text": text})

    def has_weights(self) -> bool:
        models = [self.pipeline.student, *(teacher.model for teacher in self.pipeline.teacher)]
        return any(model.weights is not None for model in models)

    def environment(self) -> dict[str, Any]:
        """The machine, the versions, and what tells this run from others."""
        found = environment()
        return found | {
            # What latency was measured with; training may use more.
            "threads": self.pipeline.benchmark.threads,
            "training_threads": found["threads"],
            "processes": self.processes,
            "seed": self.pipeline.seed,
            "pipeline_hash": self.pipeline.key,
            "data_fingerprint": self.data.fingerprint,
        }

    def about_data(self) -> dict[str, Any]:
        """Name, classes, sizes of the splits, image size, mean and std."""
        data = self.data
        return {
            "name": self.pipeline.data.name,
            "classes": data.classes,
            "class_names": list(data.class_names),
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "image": list(data.image),
            "mean": [round(value, 6) for value in data.mean],
            "std": [round(value, 6) for value in data.std],
        }


def unique_names(trail: Sequence[Finished]) -> list[str]:
    """A name for each net, the stage's, numbered from the second of a kind on."""
    names: list[str] = []
    for i, result in enumerate(trail):
        count = 1 + sum(earlier.stage == result.stage for earlier in trail[:i])
        names.append(result.stage if count == 1 else f"{result.stage}-{count}")
    return names


def best_teacher(rows: Sequence[Row]) -> str | None:
    """The name of the most accurate teacher, the first of equals; None without teachers."""
    return max(rows, key=lambda row: row.top1_onnx).net if rows else None


def lessons(teachers: Sequence[Row], baseline: Row, distilled: Row | None) -> Iterator[str]:
    """What the figures say of the teachers: too weak to help, or too far above the student to be followed.

    A difference counts where the two 95 % intervals do not overlap. A wide gap is bridged by a teacher of a size
    between the two (Mirzadeh et al. 2020, arXiv:1902.03393, sec. 3).
    """
    for teacher in teachers:
        if teacher.top1_onnx <= baseline.top1_onnx:
            yield (
                f"the {teacher.net} ({teacher.top1_onnx:.1f} %) is no better than the baseline "
                f"({baseline.top1_onnx:.1f} %), so there is little to learn from it"
            )
    if not teachers or distilled is None:
        return
    best = max(teachers, key=lambda row: row.top1_onnx)
    wide = best.params >= WIDE_GAP * distilled.params and best.top1_low > baseline.top1_high
    if wide and distilled.top1_onnx <= baseline.top1_onnx:
        yield (
            f"the {best.net} is {best.top1_onnx - baseline.top1_onnx:.1f} points better than the baseline, and yet the "
            f"distilled net ({distilled.top1_onnx:.1f} %) is no better than without it "
            f"({baseline.top1_onnx:.1f} %): the gap may be too wide for a student of "
            f"{best.params / distilled.params:.0f} times fewer parameters. Try a teacher of a size between the two, a "
            "loss that asks for less than the exact outputs (dist, or kd at another temperature), or more epochs"
        )


def _ending(net: Net) -> str:
    return "int8.onnx" if net.int8 else "onnx"
