"""The nets of a run: each made, or taken over where a finished one has the same key."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress import __version__
from compress.config import as_named, fingerprint, near
from compress.data import Data
from compress.distributed.group import current
from compress.environment import version
from compress.errors import ArtifactError, ConfigError, ResourceError
from compress.events import Event, Listener
from compress.files import durable
from compress.named_nets import Model
from compress.net import Net, build, probe
from compress.pipeline import Pipeline
from compress.recipe import Training
from compress.running import kept
from compress.running.ending import int8_in_the_end
from compress.running.kept import Finished
from compress.running.preflight import spec_of
from compress.running.sources import Sources
from compress.stages import Distill, Ending, Env, Stage, Train
from compress.stages.base import losses_of
from compress.stages.soft_labels import SoftLabels
from compress.training.checkpoint import EVERY_S, Checkpoints
from compress.training.objective import Blend
from compress.weights.loading import content_files, is_file, load_weights


@dataclass
class Maker:
    """Makes a pipeline's nets in a run folder; `warnings` gathers what went wrong without stopping it.
    Every `checkpoint_every` seconds, at the end of a step, a training is kept as it is.

    `endings` tell each stage what the file of a net would cost, or are None where there is no time to measure.

    A net's key is a hash of all that determines it: versions, data, seed, plugins' code, the model with its weights'
    content, the stage, the key of the net before, and the teacher's where a loss listens to it. A stage's randomness
    comes from its key, so a resumed run and a fresh one are the same; its folder's name also depends on the device and
    on the packages that build and cut nets.

    `repeat` is 0 for the run itself. Any other number makes the baseline and the stages with other chance, from initial
    weights drawn anew where none are given: all keys but the teachers' depend on it, and folders and stages bear it.
    """

    pipeline: Pipeline
    sources: Sources
    out: Path
    device: torch.device
    tell: Listener
    endings: Sequence[Ending | None]
    plugins: Sequence[Path] = ()
    warnings: list[str] = field(default_factory=list)
    repeat: int = 0
    checkpoint_every: float = EVERY_S

    def __post_init__(self) -> None:
        pipeline = self.pipeline
        self.data = self.sources.data
        code = [file.read_text() for file in self.plugins]
        root = fingerprint(__version__, torch.__version__, self.data.fingerprint, pipeline.seed, code)
        self.teacher_keys = []
        for i, (teacher, view) in enumerate(zip(pipeline.teacher, self.sources.views, strict=True)):
            made_of: list[Any] = [root, "teacher", model_key(teacher.model), _dump(teacher.training)]
            # Two teachers may differ by nothing but chance; what the first one is made of stays as it was.
            made_of += [i] if i else []
            made_of += [view.fingerprint] if view else []
            self.teacher_keys.append(fingerprint(*made_of))
        # What the run itself is made of stays as it was.
        again = [("repeat", self.repeat)] if self.repeat else []
        self.start_key = fingerprint(root, "student", model_key(pipeline.student), *again)
        self.start_seed = _seed(self.start_key) if self.repeat else pipeline.seed
        self.mark = f"-seed-{self.repeat}" if self.repeat else ""
        self.baseline_key = fingerprint(self.start_key, "baseline", _dump(pipeline.baseline.training))

    def repeats(self, count: int) -> list["Maker"]:
        """`count` makers of which this is the first; all share the data and the teachers."""
        return [self, *(replace(self, repeat=k) for k in range(1, count))]

    @property
    def distills_first(self) -> bool:
        """Whether the first stage starts from the student as given; any other starts from the baseline."""
        return isinstance(self.pipeline.stages[0], Distill)

    def keys(self) -> list[str]:
        """One key a stage."""
        key, found = self.start_key if self.distills_first else self.baseline_key, []
        for stage in self.pipeline.stages:
            taught = any(loss.needs_teacher for loss in losses_of(stage))
            key = fingerprint(key, as_named(stage), self.lesson_key() if taught else None)
            found.append(key)
        return found

    def lesson_key(self) -> Any:
        """What a taught stage depends on: its teachers, and whether they see the images augmented."""
        apart = [teacher.view is not None and not teacher.view.augmented for teacher in self.pipeline.teacher]
        if len(self.teacher_keys) == 1 and not any(apart):
            return self.teacher_keys[0]
        return [*self.teacher_keys, apart]

    def folders(self) -> dict[str, Path]:
        """The folder of every net of this run, by `teacher`, `baseline` and `<n>-<stage>`, in order."""
        teachers = dict(zip(self.pipeline.teacher_names, self.teacher_keys, strict=True))
        keys = {"baseline": self.baseline_key}
        for i, (stage, key) in enumerate(zip(self.pipeline.stages, self.keys(), strict=True)):
            keys[f"{i}-{stage.name}"] = key
        # These decide the bits as well, and yet a new version of one should not be another roll of the dice.
        made_with = version("torchvision"), version("torch-pruning"), self.device.type
        names = {label: f"{label}-{fingerprint(key, made_with)}" for label, key in teachers.items()}
        names |= {label: f"{label}{self.mark}-{fingerprint(key, made_with)}" for label, key in keys.items()}
        return {label: self.out / "stages" / name for label, name in names.items()}

    def forget(self, start_from: str) -> None:
        """Throw away a stage's result and those of all that depend on it; raises ConfigError for an unknown name."""
        folders = self.folders()
        label = next((x for x in folders if start_from in (x, x.split("-")[0], x.split("-", 1)[-1])), None)
        if label is None:
            names = [x.split("-", 1)[-1] for x in folders]
            raise ConfigError(f"--from {start_from}: no such stage in this pipeline.{near(start_from, names)}")
        later = [*folders][[*folders].index(label) :]
        if label in self.pipeline.teacher_names:
            # No teacher saw another, and the baseline saw none.
            later = [x for x in later if x == label or x not in (*self.pipeline.teacher_names, "baseline")]
        elif label == "baseline" and self.distills_first:
            later = [label]
        for gone in later:
            shutil.rmtree(folders[gone], ignore_errors=True)
            shutil.rmtree(kept.unfinished_of(folders[gone]), ignore_errors=True)

    def all_there(self) -> bool:
        """Whether nothing is left to be made."""
        return all(folder.is_dir() for folder in self.folders().values())

    def teachers(self) -> list[Finished]:
        """The teachers, none where the pipeline has none."""
        pipeline, folders = self.pipeline, self.folders()
        made = []
        for i, (name, teacher) in enumerate(zip(pipeline.teacher_names, pipeline.teacher, strict=True)):
            env = self.env("teacher", self.teacher_keys[i], data=self.sources.of_teacher(i))
            make = partial(self.alone, teacher.model, teacher.training)
            made.append(self.finished_or(folders[name], make, self.teacher_keys[i], env))
        return made

    def students(self, teachers: Sequence[Net]) -> list[Finished]:
        """The baseline, and one net a stage."""
        pipeline, folders = self.pipeline, self.folders()
        env = self.env("baseline" + self.mark, self.baseline_key)
        make = partial(self.alone, pipeline.student, pipeline.baseline.training, seed=self.start_seed)
        made = [self.finished_or(folders["baseline"], make, self.baseline_key, env)]
        before = None if self.distills_first else made[-1].net
        for i, (stage, key) in enumerate(zip(pipeline.stages, self.keys(), strict=True)):
            env = self.env(
                stage.name + self.mark,
                key,
                teachers=tuple(teachers),
                teacher_keys=tuple(self.teacher_keys),
                views=self.sources.views,
                augmented=tuple(t.view is None or t.view.augmented for t in pipeline.teacher),
                ending=self.endings[i],
                soft_labels=self.soft_labels(i),
                blend=self.blend(i),
            )
            make = partial(self.staged, stage, before)
            made.append(self.finished_or(folders[f"{i}-{stage.name}"], make, key, env))
            before = made[-1].net
        return made

    def soft_labels(self, i: int) -> SoftLabels:
        """Where a stage's soft labels come from unless it says so: as in the last distill stage before it."""
        earlier = [stage.soft_labels for stage in self.pipeline.stages[:i] if isinstance(stage, Distill)]
        return replace(earlier[-1], asked=False) if earlier else SoftLabels()

    def blend(self, i: int) -> Blend:
        """How several teachers count in a stage unless it says so: as in the last distill stage before it."""
        earlier = [stage.blend for stage in self.pipeline.stages[:i] if isinstance(stage, Distill)]
        return earlier[-1] if earlier else "mean"

    def env(self, stage: str, key: str, **more: Any) -> Env:
        """What a stage may use, as far as it does not depend on where its result is kept."""
        given: dict[str, Any] = {"data": self.data, "teachers": (), "out": self.out} | more
        int8 = int8_in_the_end(self.pipeline)
        return Env(device=self.device, seed=_seed(key), stage=stage, int8=int8, **given)

    def staged(self, stage: Stage, before: Net | None, env: Env) -> Net:
        """What a stage makes of the net before it, or of the student as given."""
        if before is None:
            # The baseline is built from the same weights and has said what there is to say of them.
            before = self.fresh(self.pipeline.student, lambda _: None, self.data, self.start_seed)
        return stage(before, env)

    def alone(self, model: Model, training: Training | None, env: Env, *, seed: int | None = None) -> Net:
        """The teacher or the baseline: trained without a teacher, or left as its weights are."""
        net = self.fresh(model, env.warn, env.data, self.pipeline.seed if seed is None else seed)
        if training is None:
            return replace(net, module=net.module.eval())
        return Train(training=training)(net, env)

    def fresh(self, model: Model, warn: Callable[[str], None], data: Data, seed: int) -> Net:
        """A model's net as given: built from the seed, its weights loaded if it has any."""
        net = build(spec_of(model, data), seed)
        probe(net)
        if model.weights is not None:
            for remark in load_weights(net.module, model.architecture.name, model.weights, keep_head=model.keep_head):
                warn(remark)
        return net

    def finished_or(self, folder: Path, make: Callable[[Env], Net], key: str, env: Env) -> Finished:
        """The kept result of a stage, or a new one, kept; of several processes the first says which, and keeps it."""
        stage, group = env.stage, current()
        found: list[Finished] = []
        if group.first(partial(self.take_over, folder, stage, found)):
            return found[0] if found else _required(folder)
        self.tell({"event": "stage", "stage": stage, "folder": folder.name, "time": time.time()})
        unfinished = Path(group.first(lambda: str(kept.start(folder))))
        try:
            result = self.made(folder, unfinished, make, key, env)
            group.first(lambda: kept.finish(unfinished, result))
        except BaseException:
            if group.leads:
                kept.give_up(unfinished)
            raise
        self.tell({"event": "stage finished", "stage": stage, "seconds": result.seconds, "time": time.time()})
        return result

    def take_over(self, folder: Path, stage: str, found: list[Finished]) -> bool:
        """Put the kept result of a stage into `found`, if it can be used; gives whether it can."""
        try:
            result = kept.load(folder)
        except ArtifactError as error:
            self.warnings.append(f"{error}; it was run again")
            self.tell({"event": "warning", "text": self.warnings[-1]})
            return False
        if result is None:
            return False
        self.tell({"event": "unchanged", "stage": stage, "folder": folder.name})
        found.append(result)
        return True

    def damaged(self, stage: str, text: str) -> None:
        """Hear of a checkpoint that cannot be used."""
        self.warnings.append(f"{stage}: {text}")
        self.tell({"event": "warning", "text": self.warnings[-1]})

    def made(self, folder: Path, unfinished: Path, make: Callable[[Env], Net], key: str, env: Env) -> Finished:
        """Run a stage, its curve written to `unfinished` epoch by epoch."""
        notes: list[str] = []
        warnings: list[str] = []
        beside: dict[str, Net] = {}
        records: list[str] = []
        curve = unfinished / "train.jsonl"

        def listen(event: Event) -> None:
            if not event.get("again"):  # else it was told before the stage was taken up again
                self.tell(event)
            if event["event"] == "epoch":
                records.append(json.dumps({k: v for k, v in event.items() if k not in ("event", "again")}) + "\n")
                durable.write(curve, "".join(records))
            elif gone := event.get("withdrawn"):
                del records[-gone:]

        store = Checkpoints(unfinished / kept.CHECKPOINTS, self.checkpoint_every, partial(self.damaged, env.stage))
        told: dict[str, Any] = {"emit": listen, "note": notes.append, "warn": warnings.append}
        net = make(replace(env, **told, beside=beside.__setitem__, checkpoints=store))
        seconds = store.seconds
        curve_kept = kept.read_curve(curve) if current().leads else ()
        return Finished(env.stage, key, folder, net, seconds, beside, tuple(notes), tuple(warnings), curve_kept)


def _required(folder: Path) -> Finished:
    """A result that another process found; raises ResourceError where it is not here."""
    result = kept.load(folder)
    if result is None:
        raise ResourceError(f"{folder} is not here: all processes need the same run folder, on a shared disk")
    return result


def model_key(model: Model) -> str:
    """Changes with the architecture and with the content of the weights."""
    files = content_files(model.weights) if model.weights and is_file(model.weights) else []
    content = []
    for path in files:
        with path.open("rb") as file:
            content.append(hashlib.file_digest(file, "sha256").hexdigest())
    return fingerprint(model.written(), content[0] if len(content) == 1 else content or None)


def _seed(key: str) -> int:
    return int(key, 16) % 2**31


def _dump(training: Training | None) -> Any:
    return None if training is None else training.model_dump(mode="json")
