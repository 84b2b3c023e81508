"""The stage that searches for a better architecture."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from compress.architecture.candidates import Candidates, SharedCandidates, TrainedCandidates
from compress.architecture.judging import Judge, Score
from compress.architecture.methods import METHODS, Evolution, Method, Moves, Tell, Uniform
from compress.architecture.sharing import InPlace, Shared
from compress.architecture.space import Choices, Rungs, Space, choices
from compress.config import Config, OneOf
from compress.errors import ConfigError
from compress.events import Event, Listener
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.models.mobilenet_blocks import MobileNetBlocks
from compress.net import Net, Spec, build
from compress.pruning.metaheuristics import Tried
from compress.recipe import Training, filled
from compress.stages.base import Env, teach
from compress.stages.search_limit import Affordable, affordable_within, counted

LIMITS = ("max_macs", "keep_macs", "max_latency_ms", "latency_ratio")
ALIGN = 16  # what int8 kernels for x64 want of widths


class Search(Config):
    """Replace the student by the most accurate network within a limit (Tan et al. 2019, arXiv:1807.11626, sec. 4).

    The student is a `mobilenet_blocks`, whose fields are varied.

    How much: one of `max_macs`, `keep_macs` (a share of the student's), `max_latency_ms` of the file that the pipeline
    ends with, in ONNX Runtime here, or `latency_ratio` to the student's file. Left out, half the MACs. Where: `space`
    has the choices, new widths being multiples of `align` (16 if left out). How: `method` is `evolution`, `annealing`
    or, without a search, `uniform`. Candidates are compared by their validation accuracy. `scored_by: sharing` trains
    one set of weights for all of them by `training` (Cai et al. 2020, arXiv:1908.09791) and gives each batch-norm
    statistics of its own; `training` trains each by itself. The winner keeps the weights that it was judged with: a
    stage behind this one goes on training them.
    """

    name: ClassVar[str] = "search"
    method: Annotated[Method, OneOf(METHODS)] = Evolution()
    max_macs: Annotated[float, Field(gt=0)] | None = None
    keep_macs: Annotated[float, Field(gt=0)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    latency_ratio: Annotated[float, Field(gt=0)] | None = None
    space: Space = Space()
    scored_by: Literal["sharing", "training"] = "sharing"
    align: Annotated[int, Field(ge=1, le=256)] | None = None
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None
    training: Annotated[Training, filled(epochs=15)] = Training(epochs=15)

    @model_validator(mode="before")
    @classmethod
    def _half_the_macs(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and all(raw.get(key) is None for key in LIMITS):
            return {**raw, "keep_macs": 0.5}
        return raw

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        given = [key for key in LIMITS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two ways to say how much; give one of them")
        return self

    def __call__(self, net: Net, env: Env) -> Net:
        space = self.choices(net)
        key = next(key for key in LIMITS if getattr(self, key) is not None)
        affordable = affordable_within(key, getattr(self, key), space, net, env)
        moves = Moves(space, affordable.fits)
        searches = self.training.epochs and not isinstance(self.method, Uniform)
        found = self.searched if searches else self.unsearched
        winner = found(moves, affordable, net, env)
        # As it will be when loaded from its files: other kernels run for other layouts, and the last bit differs.
        winner.module.to(memory_format=torch.contiguous_format)
        return winner

    def rehearsed(self) -> Self:
        """Without a search: the largest network within the limit."""
        return self.model_copy(update={"method": Uniform()})

    def choices(self, net: Net) -> Choices:
        """The networks to choose from; raises ConfigError for a net that is of another kind or was changed."""
        architecture = net.spec.architecture
        if not isinstance(architecture, MobileNetBlocks):
            raise ConfigError(
                f"search varies the fields of a mobilenet_blocks network, and the student is a {architecture.name}; "
                "make mobilenet_blocks the student, or use prune"
            )
        if net.spec.edits:
            made = " and ".join(dict.fromkeys(edit.name for edit in net.spec.edits))
            raise ConfigError(f"search would undo what was done to the student before ({made}); put search first")
        return choices(self.space, architecture, net.spec.image, self.align or ALIGN)

    def unsearched(self, moves: Moves, affordable: Affordable, net: Net, env: Env) -> Net:
        """The largest network within the limit, trained."""
        rungs = affordable.lowered(moves.uniform())
        winner = _fresh(moves.choices.architecture(rungs), net, env.seed)
        teach(winner, env, self.training, self.losses or (CrossEntropy(),))
        env.note(f"Not searched: the largest network of the space within the limit has {_described(winner)}.")
        return winner

    def searched(self, moves: Moves, affordable: Affordable, net: Net, env: Env) -> Net:
        """The most accurate network found within the limit."""
        judge = Judge.of(env.data, env.device)
        candidates = self.candidates(moves.choices, judge, net, env)
        scores: dict[Rungs, Score] = {}

        def loss(rungs: Rungs) -> float:
            scores[rungs] = candidates.score(rungs)
            return scores[rungs].loss

        tell = _telling(env, self.method.tries, counted(moves.choices, net), scores)
        found = self.method(moves, loss, np.random.default_rng(env.seed), tell)
        rungs, cost = affordable.best(found)
        winner, limit, own = candidates.net(rungs), affordable.limit, moves.choices.own
        student = scores.get(own) or candidates.score(own)
        given = judge.accuracy(copy.deepcopy(net.module))
        env.note(
            f"{len(found.losses)} of the {moves.choices.size:.3g} networks of the space were compared on "
            f"{len(judge.validation)} validation images. The winner has {_described(winner)}; "
            f"{limit.key} {limit.value:g}: it has {cost / limit.whole:.4g}."
        )
        env.note(
            f"Validation accuracy, scored by {self.scored_by}: the winner {judge.accuracy(winner.module):.1f} %, the "
            f"student {student.accuracy:.1f} %; as it was given the student had {given:.1f} %."
        )
        return winner

    def candidates(self, space: Choices, judge: Judge, net: Net, env: Env) -> Candidates:
        """What scores candidates and makes networks of them."""
        losses = self.losses or (CrossEntropy(),)
        if self.scored_by == "sharing":
            shared = Shared(space, net.spec.classes, net.spec.image, env.seed)
            whole = Net(shared.spec(space.largest), shared)
            # Its forward pass draws other networks each time: nothing that could be compiled once.
            eager = self.training.model_copy(update={"compile": "off"})
            teach(whole, env, eager, (*losses, InPlace(shared)))
            shared.others = []
            return SharedCandidates(shared, judge)
        quiet = replace(env, emit=_without_epochs(env.emit))

        def trained(rungs: Rungs) -> Net:
            candidate = _fresh(space.architecture(rungs), net, env.seed)
            teach(candidate, quiet, self.training, losses)
            return candidate

        return TrainedCandidates(trained, judge)


def _fresh(architecture: MobileNetBlocks, net: Net, seed: int) -> Net:
    return build(Spec(architecture=architecture, classes=net.spec.classes, image=net.spec.image), seed)


def _described(net: Net) -> str:
    fields = net.spec.architecture.model_dump(exclude={"strides", "stem_stride"}, exclude_none=True)  # type: ignore[attr-defined]
    parts = (f"{key} {'-'.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in fields.items())
    return ", ".join(parts)


def _telling(env: Env, tries: int, macs: Callable[[Rungs], float], scores: Mapping[Rungs, Score]) -> Tell:
    """Emits an event for each candidate, with the time that is left."""
    began = time.perf_counter()

    def tell(tried: Tried[Rungs]) -> None:
        """Say how far the search is."""
        score, best = scores[tried.candidate].accuracy, scores[tried.best].accuracy
        spent = time.perf_counter() - began
        left = spent * max(tries - tried.count, 0) / tried.count
        env.emit({
            "event": "progress", "stage": env.stage, "doing": "candidate", "done": tried.count, "of": tries,
            "figures": f"val {score:.1f} %  best {best:.1f} %  {left:.0f} s left",
            "val_accuracy": score, "best": best, "macs": macs(tried.candidate), "seconds": spent,
        })  # fmt: skip

    return tell


def _without_epochs(emit: Listener) -> Listener:
    """Passes on all of a training but its epochs, which would all go to one curve."""

    def tell(event: Event) -> None:
        if event["event"] != "epoch":
            emit(event)

    return tell
