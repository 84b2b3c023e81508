"""The stage that makes two thin layers of a thick one."""

from typing import Annotated, ClassVar

from pydantic import Field

from compress.config import Config, OneOf
from compress.edits.sparse import Sparse
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net, build
from compress.pruning.low_rank import factorize
from compress.pruning.patterns import listed
from compress.recipe import Training, filled
from compress.stages.base import Env, teach


class Factorize(Config):
    """Factorise weights by singular values (Zhang et al. 2016, arXiv:1505.06798), then train to recover.

    `keep_macs` is the fraction of the dense student's multiply-accumulates: the result has at most that and at
    least 98 % of it, with ranks in multiples of `align` (16, or less for narrow nets, if left out). `include` and
    `exclude` are patterns over layer names such as `features.1[0-7].*`.
    """

    name: ClassVar[str] = "factorize"
    keep_macs: Annotated[float, Field(gt=0, lt=1)] = 0.5
    align: Annotated[int, Field(ge=1, le=256)] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None
    training: Annotated[Training, filled(epochs=12, lr=0.001)] = Training(epochs=12, lr=0.001)

    def __call__(self, net: Net, env: Env) -> Net:
        dense = build(net.spec.model_copy(update={"edits": ()}))
        found = factorize(
            net.module,
            net.example(1),
            keep_macs=self.keep_macs,
            include=self.include,
            exclude=self.exclude,
            align=self.align,
            reference=dense.module,
        )
        for note in found.notes:
            env.note(note)
        sparse = {path for edit in net.spec.edits if isinstance(edit, Sparse) for path in edit.layers}
        if lost := sorted(sparse & found.edit.ranks.keys()):
            env.warn(
                f"the zeros that sparsify left in {listed(lost)} are gone: two factors have none of their product's; "
                "put sparsify behind factorize"
            )
        smaller = Net(net.spec.edited(found.edit), found.module)
        teach(smaller, env, self.training, self.losses or (CrossEntropy(),))
        return smaller
