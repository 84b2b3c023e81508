from typing import Annotated, ClassVar, Literal

from pydantic import Field

from compress.config import Config, OneOf
from compress.edits.channels import Channels
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net, build
from compress.pruning.channels import prune_channels
from compress.recipe import Training, filled
from compress.stages.base import Env, teach


class Prune(Config):
    """Remove whole channels (DepGraph, Fang et al. 2023, arXiv:2301.12900), then train to recover.

    `keep_macs` is the fraction of the unpruned student's multiply-accumulates: the result has at most that and at
    least 98 % of it, after widths are aligned to multiples of `align` (16, or less for narrow nets, if left
    out). `include` and `exclude` are patterns over layer names such as `features.1[0-7].*`.
    """

    name: ClassVar[str] = "prune"
    keep_macs: Annotated[float, Field(gt=0, lt=1)] = 0.5
    importance: Literal["l2", "l1", "fpgm", "bn_scale", "random"] = "l2"
    align: Annotated[int, Field(ge=1, le=256)] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None
    training: Annotated[Training, filled(epochs=12, lr=0.001)] = Training(epochs=12, lr=0.001)

    def __call__(self, net: Net, env: Env) -> Net:
        pruned = prune_channels(
            net.module,
            net.example(1),
            keep_macs=self.keep_macs,
            importance=self.importance,
            align=self.align,
            include=self.include,
            exclude=self.exclude,
            reference=dense(net).module,
            seed=env.seed,
        )
        for note in pruned.notes:
            env.note(note)
        smaller = Net(net.spec.edited(Channels.of(pruned.module, net.module)), pruned.module)
        teach(smaller, env, self.training, self.losses or (CrossEntropy(),))
        return smaller


def dense(net: Net) -> Net:
    """The net's architecture before any edit, its weights random."""
    return build(net.spec.model_copy(update={"edits": ()}))
