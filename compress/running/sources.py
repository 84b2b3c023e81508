"""All images of a run: the student's, those without labels, and each teacher's own view of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compress.console import one_line
from compress.data import Data, Dataset
from compress.data.overlap import remarks
from compress.errors import DataError
from compress.named_nets import Teacher
from compress.pipeline import Pipeline


@dataclass(frozen=True)
class Sources:
    """The student's data, and for each teacher its own, or None where it sees the images as the student does."""

    data: Data
    views: tuple[Data | None, ...] = ()

    def smaller(self, samples: int) -> "Sources":
        """At most `samples` examples in each split, the same ones in every view."""
        return Sources(self.data.smaller(samples), tuple(view and view.smaller(samples) for view in self.views))

    def of_teacher(self, i: int) -> Data:
        """What a teacher sees, counted from 0."""
        return self.views[i] or self.data


def load(pipeline: Pipeline) -> Sources:
    """Load or index all images; raises DataError."""
    return sources(pipeline, lambda dataset: dataset(pipeline.seed))


def sources(pipeline: Pipeline, images: Callable[[Dataset], Data]) -> Sources:
    """All images of a run, each data set's from `images`, with warnings about what is wrong with them as a whole.

    Raises DataError where views show other examples.
    """
    data = _beside(pipeline, pipeline.data, images)
    data = replace(data, warnings=(*data.warnings, *remarks(data)))
    views = tuple(_seen_by(teacher, pipeline, data, images) for teacher in pipeline.teacher)
    return Sources(data, views)


def _seen_by(teacher: Teacher, pipeline: Pipeline, data: Data, images: Callable[[Dataset], Data]) -> Data | None:
    if teacher.view is None:
        return None
    view = _beside(pipeline, teacher.view.of(pipeline.data), images)
    pairs = ((data.train, view.train), (data.val, view.val), (data.test, view.test))
    if not all(np.array_equal(mine.labels, theirs.labels) for mine, theirs in pairs) or data.samples != view.samples:
        raise DataError(
            f"teacher {teacher.model.architecture.name}: its view shows other examples than the student's; a data set "
            "must give the same examples in the same order whatever their size"
        )
    return view


def _beside(pipeline: Pipeline, dataset: Dataset, images: Callable[[Dataset], Data]) -> Data:
    """A data set's images, with those without labels beside them."""
    prep: Any = dataset
    data = images(dataset)
    # Names of folders may hold anything; as the report and the terminal have them, so has the file.
    data = replace(data, class_names=tuple(map(one_line, data.class_names)))
    return data if pipeline.unlabelled is None else pipeline.unlabelled.joined(data, prep)
