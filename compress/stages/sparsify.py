"""The stage that removes single weights."""

import copy
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import save
from torch import Tensor, nn

from compress.config import Config, OneOf
from compress.edits.sparse import Sparse
from compress.errors import ConfigError
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.pruning.magnitude import MagnitudePruning, after_each_step, chosen_layers, cubic
from compress.recipe import Training, filled
from compress.stages.base import Env, teach
from compress.training.loop import batch_size_for
from compress.training.state import Companion

GROWING_PART = 2 / 3  # of all steps; in the rest the weights that are left recover
REMOVALS_AN_EPOCH = 8


class Sparsify(Config):
    """Set the smallest weights to zero one by one and train the others (Zhu & Gupta 2017, arXiv:1710.01878).

    Dense runtimes gain nothing in time or memory from it; compressed, the file is smaller. `sparsity` is the share of
    weights to be zero, in all layers together or, with `scope: layer`, in each; instead, `threshold` removes all
    weights smaller than it. With `schedule: cubic` they go over the first two thirds of the training, by eq. 1 of the
    paper; with `one_shot` all before it. `include` and `exclude` are patterns over the names of convolutions and linear
    layers. Removed weights are exactly zero, and stay so in later stages.
    """

    name: ClassVar[str] = "sparsify"
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    threshold: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["cubic", "one_shot"] = "cubic"
    scope: Literal["global", "layer"] = "global"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None
    training: Annotated[Training, filled(epochs=12, lr=0.001)] = Training(epochs=12, lr=0.001)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.sparsity is None) == (self.threshold is None):
            given = "neither" if self.sparsity is None else "both"
            raise ValueError(
                "should have either sparsity, the share of weights to be zero, or threshold, the smallest weight to "
                f"be left; {given} is given"
            )
        return self

    def __call__(self, net: Net, env: Env) -> Net:
        if net.int8:
            raise ConfigError(
                f"stage {env.stage}: sparsify comes after quantize, where rounding has set weights to zero by itself. "
                "Put it before: quantize keeps its zeros."
            )
        sparse = Net(net.spec, copy.deepcopy(net.module))
        layers = chosen_layers(sparse.module, self.include, self.exclude)
        pruning = MagnitudePruning(layers, sparsity=self.sparsity or 0.0, threshold=self.threshold, scope=self.scope)
        steps = self.steps_an_epoch(env)
        companions: list[Companion] = []
        action: Callable[[], None]
        if self.schedule == "one_shot" or not steps * self.training.epochs:
            pruning.remove(1.0)
            action = pruning.hold
        else:
            action = growing = Growing(pruning, steps, self.training.epochs)
            companions.append(growing)
        with after_each_step(action):
            teach(sparse, env, self.training, self.losses or (CrossEntropy(),), companions=companions)
        pruning.hold()  # a moving average may have taken the weights' place
        self.report(net.module, sparse.module, pruning, env)
        return Net(net.spec.edited(Sparse(layers=pruning.zeros)), sparse.module)

    def rehearsed(self) -> Self:
        """With a share in place of a threshold, which says nothing about weights that were not learnt."""
        return self if self.threshold is None else self.model_copy(update={"threshold": None, "sparsity": 0.5})

    def steps_an_epoch(self, env: Env) -> int:
        """How many steps an epoch of this stage's training has."""
        images = len(env.data.train)
        return images // batch_size_for(images, self.training.batch_size) if images and self.training.epochs else 0

    def report(self, before: nn.Module, after: nn.Module, pruning: MagnitudePruning, env: Env) -> None:
        """Say how sparse the net became, and what that is good for."""
        zeros, sizes = pruning.zeros, {path: layer.weight.numel() for path, layer in pruning.layers.items()}
        shares = {path: 100 * zeros[path] / sizes[path] for path in zeros}
        least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        removed, of_all = sum(zeros.values()), sum(p.numel() for p in after.parameters())
        if not removed:
            env.warn("no weight was removed: all are larger than the threshold, or the sparsity is too small")
        env.note(
            f"{removed:,} of {sum(sizes.values()):,} weights in {len(sizes)} layers are zero, "
            f"{100 * removed / sum(sizes.values()):.1f} % ({100 * removed / of_all:.1f} % of all parameters): from "
            f"{shares[least]:.1f} % of {least} to {shares[most]:.1f} % of {most}"
        )
        env.note("dense runtimes such as ONNX Runtime multiply by zeros like by any other number: no time is saved")
        if env.out is not None:  # compressing a large net takes longer than a rehearsal should
            (size, packed), (_, packed_before) = stored(after), stored(before)
            env.note(
                f"its weights take {size:,} bytes as float32 (weights.safetensors) and {packed:,} bytes compressed "
                f"with zlib at level 9; before, {packed_before:,}"
            )


class Growing:
    """Lets the zeros grow by the cubic schedule, several times an epoch; to be called after each step."""

    def __init__(self, pruning: MagnitudePruning, steps: int, epochs: int) -> None:
        self.pruning = pruning
        self.last = max(round(GROWING_PART * steps * epochs), 1)
        self.every = max(steps // REMOVALS_AN_EPOCH, 1)
        self.taken = 0

    def __call__(self) -> None:
        self.taken += 1
        if self.taken == self.last or (self.taken < self.last and self.taken % self.every == 0):
            self.pruning.remove(cubic(self.taken / self.last))
        else:
            self.pruning.hold()

    def state(self) -> dict[str, Tensor]:
        """How many steps were taken, and which weights are removed."""
        return {"taken": torch.tensor(self.taken)} | {f"zero/{k}": v for k, v in self.pruning.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.taken = int(state["taken"])
        self.pruning.restore({key.removeprefix("zero/"): value for key, value in state.items()})


def stored(module: nn.Module) -> tuple[int, int]:
    """Bytes of the file that a network's weights are kept in, as it is and compressed by zlib at level 9."""
    content = save({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()})
    return len(content), len(zlib.compress(content, 9))
