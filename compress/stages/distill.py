import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, model_validator

from compress.config import Config, OneOf
from compress.losses import KD, LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.recipe import Training
from compress.stages.base import Env, teach
from compress.stages.soft_labels import SoftLabels
from compress.training.objective import Blend

Losses = tuple[Annotated[Loss, OneOf(LOSSES)], ...]
_SHARES = TypeAdapter(Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)])
WAYS = ("mean", "confidence")
DEFAULT_LOSSES: tuple[Loss, ...] = (CrossEntropy(weight=0.1), KD())


def _blended(raw: Any) -> Blend:
    """A way's name or weights; not left to a union, whose error has a line for each of its types."""
    if isinstance(raw, str):
        if raw not in WAYS:
            raise ValueError(f"should be mean, confidence, or a list with a weight for each teacher, not {raw!r}")
        return raw  # type: ignore[return-value]
    return _SHARES.validate_python(raw)


def _written(blend: Blend) -> str | list[float]:
    return blend if isinstance(blend, str) else list(blend)


class Phase(Config):
    """A part of a progressive distillation, with losses and training of its own; left out, they are the stage's."""

    name: ClassVar[str] = "phase"
    losses: Annotated[Losses, Field(min_length=1)]
    training: Training


class Distill(Config):
    """Train a student to say what its teachers say (Hinton et al. 2015, arXiv:1503.02531).

    `losses` is the whole sum: by default 0.1 of cross-entropy and 0.9 of soft labels at temperature 4. `blend` says how
    several teachers count: all alike (`mean`; You et al. 2017, doi:10.1145/3097983.3098135), by a weight each
    (`[0.7, 0.3]`), or for each image by how sure they are of the truth (`confidence`; Zhang et al. 2022,
    arXiv:2201.00007).

    `phases` follow each other, the student of one being the start of the next: features first, then deeper ones, then
    logits, then labels alone. Each may give `losses` and `training`, or keys of the latter.

    `targets` says where soft labels come from: `online`, the teacher running beside the student; `cached`, its outputs
    computed once and kept on disk, all of them where the augmentation has finitely many views (`shift`, `shift_flip`,
    `none`), or for `views` of each image, which then are the only ones that the student sees; `auto` keeps them where
    nothing is lost by it and fewer images pass through the teacher.
    """

    name: ClassVar[str] = "distill"
    newer: ClassVar[tuple[str, ...]] = ("blend", "targets", "views", "phases")
    losses: Losses = DEFAULT_LOSSES
    training: Training = Training()
    blend: Annotated[
        Blend, PlainValidator(_blended, Literal["mean", "confidence"] | tuple[float, ...]), PlainSerializer(_written)
    ] = "mean"
    targets: Literal["auto", "online", "cached"] = "auto"
    views: Annotated[int, Field(ge=1, le=4096)] | None = None
    phases: tuple[Phase, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: Any) -> Any:
        """Give each phase the stage's losses and training where it has none of its own."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("phases"), list | tuple):
            return raw
        phases = []
        for phase in raw["phases"]:
            if isinstance(phase, Mapping):
                training = _merged(raw.get("training") or {}, phase.get("training") or {})
                phase = {"losses": raw.get("losses", DEFAULT_LOSSES), **phase, "training": training}
            phases.append(phase)
        return {**raw, "phases": tuple(phases)}

    @model_validator(mode="after")
    def _consistent(self) -> "Distill":
        if self.views is not None and self.targets == "online":
            raise ValueError("views are what is kept of a teacher's outputs, and targets: online keeps none; drop one")
        return self

    @property
    def parts(self) -> tuple[Phase, ...]:
        """The phases, or the one that there is without any."""
        return self.phases or (Phase(losses=self.losses, training=self.training),)

    @property
    def soft_labels(self) -> SoftLabels:
        """Where the soft labels of this stage and of those behind it come from."""
        return SoftLabels(self.targets, self.views, sum(training.epochs for training in self.trainings))

    @property
    def trainings(self) -> tuple[Training, ...]:
        """What is trained one after the other."""
        return tuple(phase.training for phase in self.phases) or (self.training,)

    @property
    def all_losses(self) -> tuple[Loss, ...]:
        """The losses of all phases."""
        return tuple(loss for phase in self.phases for loss in phase.losses) or self.losses

    def retrained(self, change: Callable[[Training], Training]) -> "Distill":
        """The same with its trainings changed."""
        phases = tuple(phase.model_copy(update={"training": change(phase.training)}) for phase in self.phases)
        return self.model_copy(update={"training": change(self.training), "phases": phases})

    def __call__(self, net: Net, env: Env) -> Net:
        student = Net(net.spec, copy.deepcopy(net.module))
        for i, phase in enumerate(self.parts):
            part = env.part(i, self.trainings) if self.phases else env
            teach(student, part, phase.training, phase.losses, blend=self.blend, soft_labels=self.soft_labels)
        return student


def _merged(shared: Any, own: Any) -> Any:
    """A phase's training with what it does not say taken from the stage's."""
    if isinstance(shared, Training):
        shared = shared.model_dump()
    if not isinstance(shared, Mapping) or not isinstance(own, Mapping):
        return own
    # As a resolved file has it: all is there, and what is newer than published results is left out at its default.
    if Training.model_fields.keys() - {*Training.newer} <= own.keys():
        return own
    return {**shared, **own}
