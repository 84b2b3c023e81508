"""The stage that measures where a net can be cut."""

import copy
from functools import partial
from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator

import compress.pruning.sensitivity as sensitivity
from compress.config import Config
from compress.distributed.group import current
from compress.files import durable
from compress.losses import CrossEntropy, Loss
from compress.net import Net
from compress.pruning.sensitivity import By
from compress.pruning.sensitivity_picture import drawn
from compress.pruning.sensitivity_table import Row, Table, summary
from compress.recipe import Training
from compress.stages.base import Env

Ratio = Annotated[float, Field(gt=0, lt=1)]


class Sensitivity(Config):
    """Measure what every coupled group and layer can lose (Li et al. 2017, arXiv:1608.08710); the net stays as it is.

    Each group loses its least important channels, each convolution has its filters of smallest mean |w| zeroed, by
    each of `ratios`, one at a time and without training; `by` says which of the two. Accuracy is that on `images`
    validation images. Writes sensitivity/<stage>.csv and .svg into the run folder; when it is interrupted, the next run
    goes on from the last row.
    """

    name: ClassVar[str] = "sensitivity"
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)] = sensitivity.RATIOS
    by: Annotated[tuple[By, ...], Field(min_length=1)] = ("groups", "layers")
    images: Annotated[int, Field(ge=1, le=1_000_000)] = sensitivity.IMAGES

    @field_validator("ratios", "by")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ValueError(f"names {twice} twice; once is enough")
        return values

    @property
    def training(self) -> Training:
        """None: an analysis trains nothing."""
        return Training(epochs=0)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What is measured besides accuracy."""
        return (CrossEntropy(),)

    def __call__(self, net: Net, env: Env) -> Net:
        current().first(partial(self.measure, net, env))
        return Net(net.spec, copy.deepcopy(net.module).eval())

    def measure(self, net: Net, env: Env) -> None:
        """Write the table and the picture, and note what they come to; in a rehearsal there is nothing to write."""
        analysis = self.analysis(net, env)
        if env.out is not None:
            path = env.out / "sensitivity" / f"{env.stage}.csv"
            rows = analysis.rows(Table(path, env.warn), self.telling(env))
            durable.write(path.with_suffix(".svg"), drawn(rows))
            for sentence in summary(rows):
                env.note(sentence)

    def analysis(self, net: Net, env: Env) -> sensitivity.Analysis:
        """The analysis of a net with these settings."""
        return sensitivity.Analysis(net, env.data, env.device, ratios=self.ratios, by=self.by, images=self.images)

    def telling(self, env: Env) -> sensitivity.Tell:
        """A listener for rows that emits `progress` events."""

        def tell(row: Row, done: int, total: int) -> None:
            place = f"{row.kind} {row.name}".strip()
            env.emit({
                "event": "progress", "stage": env.stage, "doing": "measuring sensitivity", "done": done, "of": total,
                "figures": f"{place} -{row.removed}/{row.channels}: {row.accuracy:.1f} %",
            })  # fmt: skip

        return tell

    def rehearsed(self) -> Self:
        """A row for each group and layer, judged by few images."""
        return self.model_copy(update={"ratios": self.ratios[:1], "images": min(self.images, 32)})
